#!/usr/bin/env bash
# google-generativeai: a finish reason newer than the library turns into "unspecified", and the text passes as an answer.
#
# One would guess:  a reason that the library does not know is kept by its name, or raises.
# What happens:     it becomes 0 (FINISH_REASON_UNSPECIFIED) without a word, and .text gives the text. The name is gone, so
#                   the reasons added to the API since the library was frozen (MALFORMED_RESPONSE, ESCALATION, ...) look
#                   the same: a broken answer, a filtered one, a blocked account.
#                   In the same way usageMetadata.thoughtsTokenCount vanishes: the parts no longer add up to the total.
# Seen with:        google-generativeai 0.8.6, protobuf 5.29.6, Python 3.11.7, transport "rest"; 2026-11-27
# Output seen:      finish_reason 0, text 'half an ans', tokens 3 + 2 of 105

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  google-generativeai==0.8.6 protobuf==5.29.6 google-api-core==2.33.0

"$work/venv/bin/python" - <<'PYTHON'
import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

warnings.simplefilter("ignore")
import google.generativeai as genai

ANSWER = {
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "half an ans"}]},
            "finishReason": "MALFORMED_RESPONSE",
            "index": 0,
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 3,
        "candidatesTokenCount": 2,
        "thoughtsTokenCount": 100,
        "totalTokenCount": 105,
    },
}


class Gemini(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Gemini)
threading.Thread(target=server.serve_forever, daemon=True).start()
genai.configure(
    api_key="none", transport="rest", client_options={"api_endpoint": f"http://127.0.0.1:{server.server_port}"}
)
answer = genai.GenerativeModel("gemini-2.5-flash").generate_content("hello")
reason, usage = answer.candidates[0].finish_reason, answer.usage_metadata
print(
    f"finish_reason {int(reason)}, text {answer.text!r}, "
    f"tokens {usage.prompt_token_count} + {usage.candidates_token_count} of {usage.total_token_count}"
)
assert int(reason) == 0 and answer.text == "half an ans", "CHANGED: the reason is kept, or the call raises"
assert not hasattr(usage, "thoughts_token_count"), "CHANGED: thinking tokens are kept"
print("as described")
PYTHON
