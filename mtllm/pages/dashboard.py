"""The dashboard at /dashboard: a page, a style sheet and scripts of ours, served as they lie in `static`.

The page holds no figure and no key. It asks /api/v1/stats and /api/v1/usage of its own server, with the credentials
that the browser was asked for by HTTP Basic. Like every answer it is `no-store`: after an upgrade nobody sees an old
page, and nothing that a key opened stays on a disk.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flask import Flask, Response, request

from mtllm.domain.errors import Forbidden, NotFound, Unauthorized
from mtllm.security.access import Access, KeyRing, authorize, presented_key

PATH = "/dashboard"
SIGN_IN = "/dashboard-sign-in"
FOLDER = Path(__file__).parent / "static"

FILES = frozenset(
    {
        "dashboard.html",
        "dashboard.css",
        "dashboard.js",
        "views.js",
        "models.js",
        "requests.js",
        "times.js",
        "charts.js",
        "dom.js",
        "format.js",
        "icon.svg",
    }
)

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


def register(app: Flask, keys: KeyRing) -> None:
    """Add the page, its files and the administrator's way in to `app`."""

    @cache
    def content(name: str) -> bytes:
        return (FOLDER / name).read_bytes()

    def file(name: str = "dashboard.html") -> Response:
        if name not in FILES:
            raise NotFound()
        response = Response(content(name), mimetype=MEDIA_TYPES[Path(name).suffix])
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def sign_in() -> Response:
        """Ask the browser for the admin key, where the page is open or was opened with another one."""
        try:
            authorize(keys, Access.ADMIN, presented_key(request.headers.get("Authorization"), None))
        except Forbidden:
            if keys.has_admin:
                raise Unauthorized from None
            raise
        return Response(status=303, headers={"Location": PATH})

    for path in (PATH, f"{PATH}/"):
        app.add_url_rule(path, f"dashboard:{path}", file)
    app.add_url_rule(SIGN_IN, "dashboard_sign_in", sign_in)
    app.add_url_rule(f"{PATH}/<name>", "dashboard_file", file)
