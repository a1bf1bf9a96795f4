#!/usr/bin/env bash
# google-generativeai: a streamed answer arrives one piece late: a piece is held back until the next one has come.
#
# One would guess:  with stream=True each piece reaches the loop as soon as the server has sent it.
# What happens:     the loop gets piece N only when piece N+1 (or the end of the stream) is there. The first words show
#                   up with the second piece; a server that pauses between two pieces seems to pause one piece earlier.
#                   The generated client below it (google.ai.generativelanguage, stream_generate_content) does not wait.
# Seen with:        google-generativeai 0.8.6, google-api-core 2.33.0, Python 3.11.7, transport "rest"; 2026-11-27
# Output seen:      sent at 0.0, 1.0 and 2.0 s; GenerativeModel got them at 1.0, 2.0, 3.0 s; the client below 0.0, 1.0, 2.0 s

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  google-generativeai==0.8.6 protobuf==5.29.6 google-api-core==2.33.0

"$work/venv/bin/python" - <<'PYTHON'
import json
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

warnings.simplefilter("ignore")
import google.generativeai as genai
from google.ai import generativelanguage


def piece(text):
    return json.dumps({"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}]})


class Slow(BaseHTTPRequestHandler):
    """An array whose three objects are sent a second apart, as Gemini's REST stream is."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in ("[" + piece("a"), "," + piece("b"), "," + piece("c")):
            self.send(part)
            time.sleep(1)
        self.send("]")
        self.wfile.write(b"0\r\n\r\n")

    def send(self, text):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text.encode()))
        self.wfile.flush()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {"api_endpoint": f"http://127.0.0.1:{server.server_port}"}
genai.configure(api_key="none", transport="rest", client_options=options)


def arrivals(open_stream):
    start = time.monotonic()
    return [time.monotonic() - start for _ in open_stream()]


high = arrivals(lambda: genai.GenerativeModel("gemini-2.5-flash").generate_content("hello", stream=True))
client = generativelanguage.GenerativeServiceClient(
    transport="rest", client_options={**options, "api_key": "none"}
)
low = arrivals(
    lambda: client.stream_generate_content(
        {"model": "models/gemini-2.5-flash", "contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    )
)
print("GenerativeModel:", [f"{at:.1f}" for at in high], " the client below:", [f"{at:.1f}" for at in low])
assert len(high) == len(low) == 3, "CHANGED: not three pieces"
late = [a - b > 0.5 for a, b in zip(high, low, strict=True)]
assert all(late), "CHANGED: pieces are no longer held back"
print("as described")
PYTHON
