"""CORS: flask-cors decides and renders, once for each kind of request instead of once a request."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from flask import Flask
from flask_cors.core import get_cors_headers, get_cors_options
from werkzeug.datastructures import Headers

from mtllm.settings import Settings

KINDS_REMEMBERED = 1024
LONGEST_HEADER = 1024

_ASKED = {
    "HTTP_ORIGIN": "Origin",
    "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "Access-Control-Request-Method",
    "HTTP_ACCESS_CONTROL_REQUEST_HEADERS": "Access-Control-Request-Headers",
}


class Cors:
    """The CORS headers of a response, by what its request's Origin and Access-Control-Request-* headers say."""

    def __init__(self, app: Flask, settings: Settings, exposed: tuple[str, ...]) -> None:
        options = get_cors_options(
            app,
            {
                "origins": list(settings.cors_origins),
                "methods": list(settings.cors_methods),
                "allow_headers": list(settings.cors_headers),
                "expose_headers": list(exposed),
                "max_age": 600,
            },
        )

        @lru_cache(maxsize=KINDS_REMEMBERED)
        def decide(method: str, asked: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
            headers = get_cors_headers(options, Headers(list(asked)), method)
            return tuple((name, str(value)) for name, value in headers.items(multi=True))

        self._without_origin = tuple(header for header in decide("GET", ()) if header[0] == "Vary")
        self._decide = decide
        self._decide_anew = decide.__wrapped__

    def headers(self, environ: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return what flask-cors answers to the request of `environ`; without an Origin nobody reads more than Vary."""
        if "HTTP_ORIGIN" not in environ:
            return self._without_origin
        asked = tuple((name, environ[key]) for key, name in _ASKED.items() if _is_plain(environ.get(key)))
        method = "OPTIONS" if environ["REQUEST_METHOD"] == "OPTIONS" else "GET"
        remembered = all(len(value) <= LONGEST_HEADER for _, value in asked)
        return (self._decide if remembered else self._decide_anew)(method, asked)


def _is_plain(value: str | None) -> bool:
    """Return whether a value is printable ASCII, as origins, methods and header names are; no other is echoed."""
    return value is not None and value.isascii() and value.isprintable()
