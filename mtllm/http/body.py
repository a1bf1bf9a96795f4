"""The body of a task's request: JSON in UTF-8, plain or compressed, within MAX_REQUEST_BYTES."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from typing import Any

from mtllm.domain import errors
from mtllm.domain.errors import ApiError
from mtllm.http.exchange import Exchange

JSON = "application/json"
BODY_LIMITS = 4
"""A body too long is read up to so many times the limit and dropped: a client, or a proxy, that still sends when we
answer and close meets a reset connection instead of the answer."""

_BOM = b"\xef\xbb\xbf"
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_GZIP = frozenset({"gzip", "x-gzip"})
_PIECE = 64 * 1024


def read_body(exchange: Exchange, limit: int) -> bytes:
    """Return the request's JSON as UTF-8 bytes, decompressed and without a byte order mark (RFC 8259, section 8.1).

    Raises UnsupportedMediaType or UnsupportedEncoding, PayloadTooLarge when it has more than `limit` bytes, InvalidJson
    when it cannot be decompressed.
    """
    environ = exchange.environ
    media_type = environ.get("CONTENT_TYPE", "")
    if media_type != JSON and not _is_utf8_json(media_type):
        raise errors.UnsupportedMediaType
    coding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding not in ("", "identity", "deflate") and coding not in _GZIP:
        raise errors.UnsupportedEncoding
    body = _receive(environ, limit)
    exchange.request_bytes = len(body)
    if coding not in ("", "identity"):
        body = decompress(body, coding, limit)
    return body[len(_BOM) :] if body.startswith(_BOM) else body


def _receive(environ: dict[str, Any], limit: int) -> bytes:
    declared = environ.get("CONTENT_LENGTH")
    stream = environ["wsgi.input"]
    if not declared:  # a server that passes a chunked body on says that the input ends by itself
        body: bytes = stream.read(limit + 1) if environ.get("wsgi.input_terminated") else b""
        if len(body) > limit:
            _drop(stream, (BODY_LIMITS - 1) * limit)
            raise _too_large(limit)
        return body
    if not declared.isdecimal():
        raise errors.InvalidRequest("Content-Length is not a number.")
    if int(declared) > limit:
        _drop(stream, min(int(declared), BODY_LIMITS * limit))
        raise _too_large(limit)
    return bytes(stream.read(int(declared)))


def _drop(stream: Any, size: int) -> None:
    while size > 0 and (piece := stream.read(min(size, _PIECE))):
        size -= len(piece)


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Return what `body` holds in the coding gzip or deflate; no more than `limit` bytes and one are ever unpacked.

    Raises PayloadTooLarge, InvalidJson.
    """
    try:
        unpacked = _gunzip(body, limit + 1) if coding in _GZIP else _inflate(body, limit + 1)
    except (zlib.error, EOFError, gzip.BadGzipFile):
        raise errors.InvalidJson(details=(errors.FieldError("body", f"is not a whole {coding} body"),)) from None
    if len(unpacked) > limit:
        raise _too_large(limit)
    return unpacked


def _gunzip(body: bytes, most: int) -> bytes:
    """Unpack the members of a gzip file, which may be several (RFC 1952, section 2.2)."""
    if not body:
        raise EOFError
    return gzip.GzipFile(fileobj=io.BytesIO(body)).read(most)


def _inflate(body: bytes, most: int) -> bytes:
    """Unpack deflate, also without the zlib header that it should have (RFC 9110, section 8.4.1.2).

    The low bits of that header are 8 (RFC 1950, section 2.2), which no client's compressor begins a bare stream with.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS if body[:1] and body[0] & 15 == 8 else -zlib.MAX_WBITS)
    unpacked = unpacker.decompress(body, most)
    if len(unpacked) < most and (not unpacker.eof or unpacker.unused_data):
        raise EOFError
    return unpacked


def _too_large(limit: int) -> ApiError:
    return errors.PayloadTooLarge(f"The request body is longer than {limit} bytes.")


def _is_utf8_json(media_type: str) -> bool:
    """Return whether `media_type` is JSON, and its charset, where one is named, UTF-8 or a part of it."""
    essence = media_type.partition(";")[0].strip().lower()
    if essence != JSON and not (essence.startswith("application/") and essence.endswith("+json")):
        return False
    charset = _CHARSET.search(media_type)
    return charset is None or charset[1].lower() in _UTF8
