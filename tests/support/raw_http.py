"""HTTP as bytes, for what well-behaved clients cannot send."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One response, read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(port: int) -> socket.socket:
    """A connection of one's own."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def send(port: int, data: bytes) -> RawAnswer:
    """Send bytes as they are, and read the response; a server that answers before it has read all is heard too."""
    with connect(port) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return receive(connection)


def receive(connection: socket.socket) -> RawAnswer:
    """The next response on a connection."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return RawAnswer(response.status, response.headers, response.read())
    finally:
        response.close()


def head(line: str, *fields: str) -> bytes:
    """A request's head of its request line and fields, each character one byte (Latin-1)."""
    return "\r\n".join((f"{line} HTTP/1.1", "Host: test", *fields, "", "")).encode("latin-1")


def posted(path: str, body: bytes, *fields: str) -> bytes:
    """A whole POST of a JSON body."""
    length = f"Content-Length: {len(body)}"
    return head(f"POST {path}", "Content-Type: application/json", length, "Connection: close", *fields) + body


def call_wsgi(application: Callable[..., Iterable[bytes]], **environ: Any) -> RawAnswer:
    """Call an application as a server would that checks nothing; `environ` over a plain GET."""
    everything = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/health",
        "QUERY_STRING": "",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: object = None, /) -> Callable[[bytes], object]:
        begun.append((status, headers))
        return lambda _data: None

    body: Any = application(everything | environ, start)
    try:
        read = b"".join(body)
    finally:
        getattr(body, "close", lambda: None)()
    status, fields = begun[-1]
    headers = http.client.HTTPMessage()
    for name, value in fields:
        headers[name] = value
    return RawAnswer(int(status[:3]), headers, read)
