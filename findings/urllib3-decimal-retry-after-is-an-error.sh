#!/usr/bin/env bash
# urllib3: a server's "Retry-After: 0.5" ends a request that was to be retried with an InvalidHeader error.
#
# One would guess:  a wait that cannot be read is ignored, and the usual pause is made; clients of LLM services read
#                   decimals, and some of their servers send them.
# What happens:     urllib3's Retry (so also requests with an HTTPAdapter) raises InvalidHeader: neither the retry nor the
#                   503 itself reaches the caller. "Retry-After: 1" is waited for and retried.
# Seen with:        urllib3 2.8.0, Python 3.11.7; 2026-11-27
# Output seen:      1: status 200 after 2 requests; 0.5: InvalidHeader "Invalid Retry-After header: 0.5" after 1 request

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  urllib3==2.8.0

"$work/venv/bin/python" - <<'PYTHON'
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3
from urllib3.exceptions import InvalidHeader

requests = []
wait = ""


class Busy(BaseHTTPRequestHandler):
    """503 with a Retry-After, then 200."""

    def do_GET(self):
        requests.append(self.path)
        first = len(requests) == 1
        self.send_response(503 if first else 200)
        if first:
            self.send_header("Retry-After", wait)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(retry_after):
    global wait
    wait = retry_after
    requests.clear()
    pool = urllib3.PoolManager(retries=urllib3.Retry(3, status_forcelist=[503]))
    try:
        outcome = str(pool.request("GET", f"http://127.0.0.1:{server.server_port}/").status)
    except InvalidHeader as error:
        outcome = f"InvalidHeader: {error}"
    print(f"Retry-After {retry_after}: {outcome} after {len(requests)} request(s)")
    return outcome, len(requests)


whole, decimal = ask("1"), ask("0.5")
assert whole == ("200", 2), f"CHANGED: {whole}"
assert decimal == ("InvalidHeader: Invalid Retry-After header: 0.5", 1), f"CHANGED: {decimal}"
print("as described")
PYTHON
