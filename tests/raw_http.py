"""HTTP as bytes, for what well-behaved clients cannot send."""

from __future__ import annotations

import http.client
import json
import socket
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
