#!/usr/bin/env bash
# litellm: num_retries=N makes 2N+1 calls, not N+1.
#
# One would guess:  num_retries=3 against a server that answers 503 makes four calls: one and three retries.
# What happens:     seven. num_retries=1 makes three, which is also what no num_retries at all makes; 2 makes five.
#                   max_retries=N makes the N+1 calls one expects.
# Seen with:        litellm 1.110.2 with tenacity 9.2.1 (num_retries needs it), openai 3.57.0, Python 3.11.7; 2026-11-27
# Output seen:      {} 3 calls, {'num_retries': 1} 3 calls, {'num_retries': 2} 5 calls, {'num_retries': 3} 7 calls,
#                   {'max_retries': 1} 2 calls

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  litellm==1.110.2 openai==3.57.0 tenacity==9.2.1

"$work/venv/bin/python" - <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices
import litellm

litellm.suppress_debug_info = True
calls = []


class Unavailable(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        calls.append(self.path)
        body = b'{"error": {"message": "overloaded", "type": "server_error", "param": null, "code": null}}'
        self.send_response(503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
threading.Thread(target=server.serve_forever, daemon=True).start()


def count_calls(**options):
    calls.clear()
    try:
        litellm.completion(
            model="openai/some-model",
            api_base=f"http://127.0.0.1:{server.server_port}/v1",
            api_key="none",
            messages=[{"role": "user", "content": "hello"}],
            **options,
        )
    except litellm.ServiceUnavailableError:
        print(options, len(calls), "calls")
        return len(calls)
    raise SystemExit("CHANGED: another error, or none")


seen = [count_calls(), *(count_calls(num_retries=n) for n in (1, 2, 3)), count_calls(max_retries=1)]
assert seen == [3, 3, 5, 7, 2], f"CHANGED: {seen}"
print("as described")
PYTHON
