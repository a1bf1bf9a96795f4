"""Bodies of Gemini's responses as they arrive: plain ones, and arrays whose elements are passed on one by one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mtllm.gemini.failures import failure_of_element, as_object, as_objects

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

READ_BYTES = 65_536
MAX_BODY_BYTES = 16 * 1024 * 1024
"""No answer of the API comes near; it bounds what a misbehaving peer can make us hold."""


_THOUGHT = '"thought"'
_STRUCTURE = re.compile(r'\\.|["{}]', re.DOTALL)


def read_pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives, decompressed. Raises ValueError past MAX_BODY_BYTES."""
    size = 0
    while piece := response.read1(READ_BYTES, decode_content=True):
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise ValueError("the body is too long")
        yield piece


def json_objects(pieces: Iterable[bytes]) -> Iterator[str]:
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


def read_body(pieces: Iterable[bytes]) -> bytes:
    """Return a plain body without its thoughts. Raises ValueError when it has some and is no JSON."""
    body = b"".join(pieces)
    return _without_thoughts(body.decode()).encode() if _THOUGHT.encode() in body else body


def read_elements(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the body of a stream, a JSON array, in parts of which each ends with one element.

    Raises UpstreamFailure for an element that is an error, ValueError as `json_objects` does.
    """
    separator = "["
    for text in json_objects(pieces):
        if failure := failure_of_element(text):
            raise failure
        yield separator + (_without_thoughts(text) if _THOUGHT in text else text)
        separator = ","
    yield "[]" if separator == "[" else "]"


def _without_thoughts(text: str) -> str:
    message = json.loads(text)
    for candidate in as_objects(as_object(message).get("candidates")):
        content = candidate.get("content")
        if isinstance(content, dict):
            content["parts"] = [part for part in as_objects(content.get("parts")) if part.get("thought") is not True]
    return json.dumps(message)
