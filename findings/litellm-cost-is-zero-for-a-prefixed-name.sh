#!/usr/bin/env bash
# litellm: an answer that names its model "models/gemini-2.5-flash" is priced at 0.0, not at "unknown".
#
# One would guess:  a model whose price cannot be found has no cost (None), however its name is spelled.
# What happens:     behind an OpenAI-shaped endpoint the answer's own model name decides. "gemini-2.5-flash" gives
#                   response_cost None, which a caller can notice; "models/gemini-2.5-flash", as Gemini's own API spells
#                   it, gives 0.0, which adds up to a bill of nothing. completion_cost() raises for both.
# Seen with:        litellm 1.110.2, openai 3.57.0, Python 3.11.7; 2026-11-27
# Output seen:      gemini-2.5-flash None, models/gemini-2.5-flash 0.0

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  litellm==1.110.2 openai==3.57.0

"$work/venv/bin/python" - <<'PYTHON'
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices
import litellm

litellm.suppress_debug_info = True
named = "gemini-2.5-flash"


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "hi"}
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": named,
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
costs = {}
for named in ("gemini-2.5-flash", "models/gemini-2.5-flash"):
    answer = litellm.completion(
        model="openai/gemini-2.5-flash",
        api_base=f"http://127.0.0.1:{server.server_port}/v1",
        api_key="none",
        messages=[{"role": "user", "content": "hello"}],
    )
    costs[named] = answer._hidden_params.get("response_cost")
    print(named, costs[named])
assert costs == {"gemini-2.5-flash": None, "models/gemini-2.5-flash": 0.0}, f"CHANGED: {costs}"
print("as described")
PYTHON
