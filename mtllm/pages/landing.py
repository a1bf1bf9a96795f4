"""The page at `/`: says what this is, and where dashboard, documentation and the first call are."""

from __future__ import annotations

import base64
from hashlib import sha256

from flask import Flask, Response

from mtllm.pages.paths import DOCUMENT_PATH

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --text: #1b2026; --muted: #56606b; --line: #d5dbe1;
  --link: #0b5fb0; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1216; --card: #171c22; --text: #e7ebef; --muted: #9ca8b4;
  --line: #2d3640; --link: #5aa9f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); }
main { max-width: 44rem; margin: 0 auto; padding: 2.5rem 1.25rem; }
h1 { margin: 0 0 .5rem; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2rem 0 .5rem; font-size: 1.05rem; }
p { margin: 0 0 1rem; }
a { color: var(--link); }
a:focus-visible, pre:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
ul { list-style: none; margin: 0; padding: 0; }
li { padding: .7rem 0; border-top: 1px solid var(--line); }
li a { font-weight: 600; }
li span, .note { color: var(--muted); display: block; }
pre { margin: 0 0 .75rem; padding: 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; font-size: .875rem; }
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Multi-Task LLM API</title>
<link rel="icon" href="dashboard/icon.svg" type="image/svg+xml">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Multi-Task LLM API</h1>
<p>Text generation, code generation and text classification by Google Gemini. A repeated question costs nothing, and
every answer says what it cost.</p>
<h2>The first call</h2>
<pre tabindex="0"><code>curl -i http://127.0.0.1:5000/api/v1/classify/text \\
  -H 'Content-Type: application/json' \\
  -d '{{"text": "I love this product!", "categories": ["positive", "negative"]}}'</code></pre>
<p class="note">Put this page's address in place of http://127.0.0.1:5000. Where the service asks for a key, add
-H 'X-API-Key: your key'.</p>
<h2>Where to look</h2>
<ul>
<li><a href="swagger/">Swagger UI</a><span>Every endpoint, field, header and error; calls from the browser.</span></li>
<li><a href="dashboard">Dashboard</a><span>What is asked, what it costs, what the cache saves.</span></li>
<li><a href="{DOCUMENT_PATH[1:]}">OpenAPI document</a><span>For generators of clients.</span></li>
<li><a href="api/v1/health/ready">Readiness</a><span>Whether the service can answer, and if not, why.</span></li>
</ul>
</main>
</body>
</html>
"""

_STYLE_HASH = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def register(app: Flask) -> None:
    """Add the page to `app`. Its links are relative, so that it also works below a proxy's path."""

    def landing() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return Response(PAGE, mimetype="text/html", headers=headers)

    app.add_url_rule("/", "landing", landing)
