#!/usr/bin/env bash
# google-generativeai: a time-out of 1 second does not end a call after 1 second while the server answers 503.
#
# One would guess:  request_options={"timeout": 1} makes generate_content fail after about one second, and nothing is
#                   tried again, since no retry was asked for.
# What happens:     the time-out counts for each attempt. The method has a retry policy of its own, which tries a 503
#                   again and again, with pauses of up to 10 seconds, until 600 seconds are over. A full run with
#                   {"timeout": 8} made 127 calls and ended after 600 s ("Timeout of 600.0s exceeded").
#                   request_options={"timeout": 1, "retry": None} makes one call.
# Seen with:        google-generativeai 0.8.6, google-api-core 2.33.0, Python 3.11.7, transport "rest"; 2026-11-27
# Output seen:      default policy: still calling after 12 s, 8 calls (the pauses are random, so the number differs)
#                   retry None: ServiceUnavailable after 1 call

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  google-generativeai==0.8.6 protobuf==5.29.6 google-api-core==2.33.0

"$work/venv/bin/python" - <<'PYTHON'
import os
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

warnings.simplefilter("ignore")
import google.generativeai as genai
from google.api_core.exceptions import ServiceUnavailable

calls = []


class Unavailable(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        calls.append(time.monotonic())
        body = b'{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}'
        self.send_response(503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
threading.Thread(target=server.serve_forever, daemon=True).start()
genai.configure(
    api_key="none", transport="rest", client_options={"api_endpoint": f"http://127.0.0.1:{server.server_port}"}
)
model = genai.GenerativeModel("gemini-2.5-flash")

try:
    model.generate_content("hello", request_options={"timeout": 1, "retry": None})
    raise SystemExit("CHANGED: no error")
except ServiceUnavailable:
    print(f"retry None: ServiceUnavailable after {len(calls)} call")
    assert len(calls) == 1, "CHANGED: retry None is tried again"

calls.clear()
caller = threading.Thread(
    target=lambda: model.generate_content("hello", request_options={"timeout": 1}), daemon=True
)
caller.start()
caller.join(12)
print(f"default policy: {'still calling' if caller.is_alive() else 'ended'} within 12 s, {len(calls)} calls")
held = caller.is_alive() and len(calls) >= 2
print("as described" if held else "CHANGED: the time-out bounds the whole call")
sys.stdout.flush()
os._exit(0 if held else 1)  # the caller would go on for ten minutes
PYTHON
