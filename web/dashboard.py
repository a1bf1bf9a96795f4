"""The dashboard at /dashboard: a page, a style sheet and scripts of ours, served as they lie in `web/static`.

The page holds no figure and no key. It asks /api/v1/stats and /api/v1/usage of its own server, with the credentials
that the browser was asked for by HTTP Basic. Like every answer it is `no-store`: after an upgrade nobody sees an old
page, and nothing that a key opened stays on a disk.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, send_from_directory

PATH = "/dashboard"
FOLDER = Path(__file__).parent / "static"

MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""Said here and not guessed: the guess depends on the machine's registry, and `nosniff` forbids browsers their own."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def register(app: Flask) -> None:
    """Add the page and its files to `app`."""

    def page() -> Response:
        return _sent("dashboard.html")

    def file(name: str) -> Response:
        return _sent(name)

    app.add_url_rule(PATH, "dashboard", page)
    app.add_url_rule(f"{PATH}/<name>", "dashboard_file", file)


def challenge(path: str) -> str:
    """How a 401 at `path` asks for the key (RFC 9110, section 11.6.1).

    The page asks by Basic, for which browsers have a dialog. The API asks by Bearer, so that no request which a page
    makes on its own opens one.
    """
    return 'Basic realm="dashboard", charset="UTF-8"' if path == PATH else 'Bearer realm="api"'


def _sent(name: str) -> Response:
    response = send_from_directory(FOLDER, name, mimetype=MEDIA_TYPES.get(Path(name).suffix), conditional=False)
    del response.headers["Cache-Control"]  # the edge adds its own
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
