#!/usr/bin/env bash
# httpx: iter_lines() cuts a line of an event stream or of JSON lines at letters that are no line ends there.
#
# One would guess:  response.iter_lines() gives the lines as the format has them: ended by CR, LF or CRLF.
# What happens:     it also cuts at U+2028, U+2029, U+0085 and others, as str.splitlines does. All are allowed raw inside a
#                   JSON string, and models write them: json.loads of the "line" fails. httpx-sse (0.4.3) reads the same
#                   stream right. A server is safe if it escapes them, for example with json.dumps' ensure_ascii=True.
# Seen with:        httpx 0.28.1, httpx-sse 0.4.3, Python 3.11.7 (httpx2 2.16.2 does the same); 2026-11-27
# Output seen:      httpx ['data: {"t": "one', 'two"}', '']; httpx-sse one event with "one<U+2028>two"

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  httpx==0.28.1 httpx-sse==0.4.3

"$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import httpx_sse

TEXT = "one\u2028two"


class Stream(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("data: " + json.dumps({"t": TEXT}, ensure_ascii=self.path == "/ascii") + "\n\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"


def lines(path):
    with httpx.stream("GET", address + path) as response:
        return list(response.iter_lines())


raw, escaped = lines("/raw"), lines("/ascii")
with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", address + "/raw") as source:
    events = [json.loads(event.data) for event in source.iter_sse()]
print("raw:", raw, " escaped:", escaped, " httpx-sse:", events)
assert raw == ['data: {"t": "one', 'two"}', ""], f"CHANGED: {raw}"
assert len(escaped) == 2 and json.loads(escaped[0].removeprefix("data: ")) == {"t": TEXT}, "CHANGED: escaped"
assert events == [{"t": TEXT}], "CHANGED: httpx-sse"
print("as described")
PYTHON
