"""HTTP/1.1 for the emulator: requests read from a stream, responses written as bytes.

    read_request     the next request of a connection, chunked bodies and `Expect: 100-continue` included
    http_response    a whole response of known length
    stream_head, chunk, LAST_CHUNK    a response that is sent piece by piece

The rules are those of RFC 9112.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import BinaryIO

LARGEST_BODY_BYTES = 20 * 1024 * 1024
"""Gemini takes requests of 20 MB, files excluded (https://ai.google.dev/gemini-api/docs/files)."""

LAST_CHUNK = b"0\r\n\r\n"

_MAX_LINE_BYTES = 65_536
_MAX_HEADER_LINES = 200
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class MalformedRequestError(ValueError):
    """The bytes are no HTTP request; nothing behind them on this connection can be read."""


class BodyTooLargeError(ValueError):
    """The body is longer than `LARGEST_BODY_BYTES`; the rest of it stays unread."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request, whole."""

    verb: str
    target: str
    """Path and query, as sent."""
    headers: Mapping[str, str]
    """Names in lower case; the last of a repeated name."""
    body: bytes = b""
    keeps_alive: bool = True
    """The client expects another answer on this connection."""
    takes_chunks: bool = True
    """The client understands `Transfer-Encoding: chunked`: it speaks HTTP/1.1."""


def read_request(stream: BinaryIO, send: Callable[[bytes], object]) -> HttpRequest | None:
    """Return the next request of a connection, or None when the client has left.

    `send` writes the interim answer that `Expect: 100-continue` waits for.
    Raises MalformedRequestError and BodyTooLargeError; the connection is of no use after either.
    """
    line = stream.readline(_MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3:
        raise MalformedRequestError
    verb, target, version = words
    headers = dict(_read_headers(stream))
    if "100-continue" in headers.get("expect", "").lower():
        send(_CONTINUE)
    body = _read_body(stream, headers)
    if body is None:
        return None
    new = version != "HTTP/1.0"
    keeps_alive = headers.get("connection", "").lower() != "close" and new
    return HttpRequest(verb, target, headers, body, keeps_alive=keeps_alive, takes_chunks=new)


def _read_headers(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    for _ in range(_MAX_HEADER_LINES):
        line = stream.readline(_MAX_LINE_BYTES).strip()
        if not line:
            return
        name, _, value = line.decode("latin-1").partition(":")
        yield name.lower(), value.strip()
    raise MalformedRequestError


def _read_body(stream: BinaryIO, headers: Mapping[str, str]) -> bytes | None:
    """The body; None when the client left in the middle of it."""
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
            raise MalformedRequestError  # two lengths: whoever reads the other one is smuggled a request
        return _read_chunks(stream)
    told = headers.get("content-length", "0")
    if not (told.isascii() and told.isdigit()):
        raise MalformedRequestError
    length = int(told)
    if length > LARGEST_BODY_BYTES:
        raise BodyTooLargeError
    body = stream.read(length)
    return body if len(body) == length else None


def _read_chunks(stream: BinaryIO) -> bytes | None:
    body = bytearray()
    while size := _read_chunk_size(stream):
        if len(body) + size > LARGEST_BODY_BYTES:
            raise BodyTooLargeError
        piece = stream.read(size)
        if len(piece) < size or not stream.readline(_MAX_LINE_BYTES):
            return None
        body += piece
    for _ in _read_headers(stream):  # trailers
        pass
    return bytes(body)


def _read_chunk_size(stream: BinaryIO) -> int:
    digits = stream.readline(_MAX_LINE_BYTES).partition(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise MalformedRequestError
    return int(digits, 16)


def http_response(status: int, content_type: str, body: bytes, **headers: str) -> bytes:
    """Return a whole response of known length; `Retry_After="3"` adds a header."""
    extra = "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in headers.items()).encode("latin-1")
    return b"%s%s\r\nContent-Length: %d\r\n\r\n%s" % (_head(status, content_type), extra, len(body), body)


def refuse_http() -> bytes:
    """Return the answer to what is no HTTP; the connection ends with it."""
    return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def stream_head(content_type: str, *, chunked: bool) -> bytes:
    """Return the head of a 200 whose body comes in pieces, in chunks or until the connection ends."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
    return b"%s\r\n%s\r\n\r\n" % (_head(200, content_type), framing)


@cache
def _head(status: int, content_type: str) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}".encode()


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)
