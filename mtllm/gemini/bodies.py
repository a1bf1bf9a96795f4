"""Bodies of Gemini's responses as they arrive: plain ones, and streams in either of Google's two forms.

A stream is an array of objects, or server-sent events (WHATWG HTML, section 9.2) with an object in each. A document
that is an error means what it says, whatever the status before it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mtllm.gemini.documents import as_object
from mtllm.gemini.failures import failure_of_error

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

READ_BYTES = 65_536
MAX_BODY_BYTES = 16 * 1024 * 1024
"""No answer of the API comes near; it bounds what a misbehaving peer can make us hold."""
EVENT_STREAM = "text/event-stream"

_STRUCTURE = re.compile(r'\\.|["{}]', re.DOTALL)
_LINE_END = re.compile(r"\r\n|\r|\n")
_END_OF_EVENTS = "[DONE]"  # some gateways end a stream so, as OpenAI does


def read_document(response: BaseHTTPResponse) -> tuple[bytes, Mapping[str, Any]]:
    """Return a plain body as it is and as an object. Raises UpstreamFailure for an error, ValueError for no object."""
    body = b"".join(read_pieces(response))
    return body, _checked(json.loads(body))


def read_documents(response: BaseHTTPResponse) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each object of a stream as text and as an object, as soon as it is there.

    Raises UpstreamFailure for one that is an error; ValueError when the body is neither form, or ends before its end.
    """
    media_type = response.headers.get("Content-Type", "")
    split = split_events if media_type.lower().startswith(EVENT_STREAM) else split_array
    for text in split(read_pieces(response)):
        yield text, _checked(json.loads(text))


def _checked(document: object) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - bad JSON is a ValueError whatever is bad in it
    if not isinstance(document.get("candidates", []), list):
        raise ValueError("the candidates are no array")  # noqa: TRY004 - as above
    if "error" in document and "candidates" not in document:
        error = as_object(document["error"])
        raise failure_of_error(error.get("code"), error, {})
    return document


def read_pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives, decompressed. Raises ValueError past MAX_BODY_BYTES."""
    size = 0
    while piece := response.read1(READ_BYTES, decode_content=True):
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise ValueError("the body is too long")
        yield piece


def split_events(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each server-sent event. Raises ValueError when the body ends within one, or is not UTF-8."""
    data: list[str] = []
    for line in _split_lines(pieces):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            event, data = "\n".join(data), []
            if event != _END_OF_EVENTS:
                yield event
    if data:
        raise ValueError("the last event has no end")


def _split_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield each line as soon as it is there; the last one even without an end."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    held = ""
    for piece in pieces:
        held += decode(piece)
        whole = held.removesuffix("\r")  # the other half of this line end may be in the next piece
        *lines, rest = _LINE_END.split(whole)
        held = rest + held[len(whole) :]
        yield from lines
    if held:
        yield held.removesuffix("\r")


def split_array(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the objects of a JSON array, each as soon as its last brace is there.

    Linear in the length of the body. Raises ValueError when the body is no array of objects, is not UTF-8, or ends
    before the array does.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    held: list[str] = []  # what was read of the current object, or since the last one
    cut_escape, depth, quoted, begun = "", 0, False, False
    for piece in pieces:
        text = cut_escape + decode(piece)
        begun = begun or _opens_array(text)
        start = end = 0
        for token in _STRUCTURE.finditer(text):
            end, mark = token.end(), token[0]
            if mark == '"':
                quoted = not quoted
            elif quoted or mark[0] == "\\":
                continue
            elif mark == "{":
                if depth == 0:
                    start, held = token.start(), []
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    yield "".join((*held, text[start:end]))
                    start, held = end, []
        cut_escape = "\\" if end < len(text) and text.endswith("\\") else ""
        held.append(text[start : len(text) - len(cut_escape)])
    if depth or not "".join(held).rstrip().endswith("]"):
        raise ValueError("the array has no end")


def _opens_array(text: str) -> bool:
    stripped = text.lstrip()
    if stripped and stripped[0] != "[":
        raise ValueError("not an array")
    return bool(stripped)
