#!/usr/bin/env bash
# langchain-openai: usage sent with each chunk of a stream is added up, so 100 prompt tokens become 300.
#
# One would guess:  a stream whose chunks each carry the usage so far (as Gemini's endpoints do) ends with the last one.
# What happens:     adding chunks adds their counts: three chunks that each say "100 prompt tokens" make 300, and 1, 2, 3
#                   output tokens so far make 6. OpenAI itself sends usage once, in a last chunk without choices.
# Seen with:        langchain-openai 1.7.4, langchain-core 1.8.3, openai 3.57.0, Python 3.11.7; 2026-11-27
# Output seen:      input 300, output 6, total 306 (sent last: 100, 3, 103)

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0

"$work/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from langchain_openai import ChatOpenAI


def event(text, output_tokens, finish=None):
    chunk = {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": output_tokens,
            "total_tokens": 100 + output_tokens,
        },
    }
    return f"data: {json.dumps(chunk)}\n\n"


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = (event("a", 1) + event("b", 2) + event("c", 3, "stop") + "data: [DONE]\n\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
model = ChatOpenAI(model="m", api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1")
whole = None
for chunk in model.stream("hello"):
    whole = chunk if whole is None else whole + chunk
usage = whole.usage_metadata
seen = (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])
print("input {}, output {}, total {} (sent last: 100, 3, 103)".format(*seen))
assert seen == (300, 6, 306), f"CHANGED: {seen}"
print("as described")
PYTHON
