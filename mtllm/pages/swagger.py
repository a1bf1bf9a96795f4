"""The OpenAPI document, and Swagger UI at /swagger/.

The UI is the files of an installed package and a page of ours; nothing is asked of other servers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from flask import Flask, Response, send_from_directory

from mtllm.pages.paths import DOCUMENT_PATH
from mtllm.settings import Settings
from mtllm.tasks import Task

PREFIX = "/swagger"
PACKAGE = "flask_swagger_ui"
"""Only its copy of Swagger UI is used: the page of its blueprint needs inline scripts, which the policy forbids."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Swagger UI sets style attributes and draws its icons from data: URLs; everything else comes from this server."""

OPTIONS = {
    "url": DOCUMENT_PATH,
    "defaultModelsExpandDepth": 0,
    "dom_id": "#swagger-ui",
    "deepLinking": True,
    "displayRequestDuration": True,
    "tryItOutEnabled": True,
    "validatorUrl": None,
    "persistAuthorization": False,
}
"""`validatorUrl` null: no badge from elsewhere. A key lasts as long as the page."""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Multi-Task LLM API</title>
<link rel="icon" type="image/png" sizes="32x32" href="{PREFIX}/favicon-32x32.png">
<link rel="stylesheet" href="{PREFIX}/index.css">
<link rel="stylesheet" href="{PREFIX}/swagger-ui.css">
<link rel="stylesheet" href="{PREFIX}/theme.css">
</head>
<body>
<div id="swagger-ui"><noscript>This page needs JavaScript; the document itself is at {DOCUMENT_PATH}.</noscript></div>
<script src="{PREFIX}/swagger-ui-bundle.js"></script>
<script src="{PREFIX}/start.js"></script>
</body>
</html>
"""

THEME = """
html, body { background: #fafafa; }
.swagger-ui .markdown code, .swagger-ui .opblock-summary-path { overflow-wrap: anywhere; }
.swagger-ui .info .markdown summary { cursor: pointer; font-weight: 600; padding: 6px 0; }
.swagger-ui .info { margin: 24px 0; }
@media (max-width: 700px) {
  .swagger-ui .wrapper { padding: 0 12px; }
  .swagger-ui table:not(.model) { display: block; overflow-x: auto; }
  .swagger-ui .opblock .opblock-summary-path { max-width: 100%; }
  .swagger-ui .opblock-summary-description { display: none; }
  .swagger-ui textarea, .swagger-ui input, .swagger-ui select { max-width: 100%; min-width: 0; }
}
@media (prefers-color-scheme: dark) {
  html, body { background: #0e1216; }
  .swagger-ui { filter: invert(0.92) hue-rotate(180deg); }
  .swagger-ui .highlight-code, .swagger-ui .microlight { filter: invert(1) hue-rotate(180deg); }
}
"""
"""The dark theme turns Swagger UI's own colours over, so that it needs no list of its classes; code is dark in both."""

START = f"window.ui = SwaggerUIBundle({json.dumps(OPTIONS)});\n"


def register(app: Flask, settings: Settings, tasks: Sequence[Task], *, open_to_all: bool) -> None:
    """Add the document, the page and its files to `app`; the document is made at the first request for it.

    `open_to_all`: no API keys are configured, so what needs one is open.
    """
    folder = _packaged_files()

    @lru_cache(maxsize=1)
    def document() -> bytes:
        from mtllm.pages import openapi  # a sixth of the time to start, for what few processes are ever asked

        return openapi.render_document(settings, tasks, open_to_all=open_to_all)

    def page() -> Response:
        return _guard(Response(PAGE, mimetype="text/html"))

    def start() -> Response:
        return _guard(Response(START, mimetype="text/javascript"))

    def theme() -> Response:
        return _guard(Response(THEME, mimetype="text/css"))

    def file(name: str) -> Response:
        response = send_from_directory(folder, name)
        del response.headers["Cache-Control"]  # the edge adds its own
        return _guard(response)

    app.add_url_rule(DOCUMENT_PATH, "openapi", lambda: Response(document(), mimetype="application/json"))
    app.add_url_rule(f"{PREFIX}/", "swagger", page)
    app.add_url_rule(f"{PREFIX}/start.js", "swagger_start", start)
    app.add_url_rule(f"{PREFIX}/theme.css", "swagger_theme", theme)
    app.add_url_rule(f"{PREFIX}/<path:name>", "swagger_file", file)


def _packaged_files() -> Path:
    return Path(str(files(PACKAGE) / "dist"))


def _guard(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
