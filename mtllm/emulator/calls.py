"""What one request asks of Gemini: its path, its headers and its body as one value.

GeminiCall     a request to Gemini's API
parse_call     HttpRequest -> GeminiCall
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mtllm.emulator.bodies import BodyReader, DeclaredFunction, ThinkingWish
from mtllm.emulator.wire import HttpRequest

GENERATING = ("generateContent", "streamGenerateContent")
SERVED = (*GENERATING, "countTokens")
"""The methods of a model that the emulator serves."""

_PATH = re.compile(r"(?:/.*)?/(?P<version>v1(?:alpha|beta)?)/models(?:/(?P<model>[^/:]+)(?::(?P<action>\w+))?)?")


@dataclass(frozen=True, slots=True)
class GeminiCall:
    """One request to Gemini's API."""

    method: str
    """generateContent, streamGenerateContent, countTokens, listModels, getModel, or empty for anything else."""
    model: str
    key: str | None
    """From the header `x-goog-api-key`, a bearer token or the query; None when none is there."""
    prompt: str = ""
    """The texts of all turns, a line each."""
    last_turn: str = ""
    """The texts of the last turn."""
    system: str = ""
    parts: int = 0
    """How many parts the turns have, of any kind."""
    media_tokens: int = 0
    """What the parts count that are no text."""
    labels: tuple[str, ...] = ()
    """The values of an enum schema; the answer must be one of them."""
    schema: Any = None
    """The JSON schema, in Gemini's dialect or the standard one, that the answer must fit; None for free text."""
    mime_type: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    stop_sequences: tuple[str, ...] = ()
    thinking: ThinkingWish = field(default_factory=ThinkingWish)
    forced_functions: tuple[DeclaredFunction, ...] = ()
    """The answer must call one of these; empty when it may be text."""
    problem: str = ""
    """Why the request is invalid, in Google's words; empty when it is not."""
    version: str = "v1beta"
    action: str = ""
    """The word behind the colon of the path."""
    sse: bool = False
    """A stream is wanted as server-sent events, not as a JSON array."""
    numeric_enums: bool = False
    """Enum values are wanted as their numbers (`$alt=json;enum-encoding=int`, as Google's own SDK asks)."""
    takes_chunks: bool = True
    """The client speaks HTTP/1.1."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    raw: bytes = b""
    """The body as it came."""

    @property
    def streams(self) -> bool:
        """Return whether the answer is wanted in pieces."""
        return self.method == "streamGenerateContent"

    @property
    def generates(self) -> bool:
        """Return whether an answer is wanted, and not a count or a list."""
        return self.method in GENERATING


def parse_call(request: HttpRequest) -> GeminiCall:
    """Return what a request asks; a bad one is told in `problem`, never raised."""
    target = _read_target(request.verb, request.target)
    body = BodyReader(request.body)
    return GeminiCall(
        method=target.method,
        model=target.model,
        key=request.headers.get("x-goog-api-key") or target.key or _find_bearer(request.headers),
        prompt="\n".join(text for turn in body.turns for text in turn.texts),
        last_turn="\n".join(body.turns[-1].texts) if body.turns else "",
        system=body.system,
        parts=sum(turn.parts for turn in body.turns),
        media_tokens=sum(turn.media_tokens for turn in body.turns),
        labels=body.labels,
        schema=body.schema,
        mime_type=body.mime_type,
        max_output_tokens=body.max_output_tokens,
        temperature=body.temperature,
        stop_sequences=body.stop_sequences,
        thinking=body.thinking,
        forced_functions=body.forced_functions,
        problem=body.problem,
        version=target.version,
        action=target.action,
        sse=target.alt == "sse",
        numeric_enums="enum-encoding=int" in target.alt,
        takes_chunks=request.takes_chunks,
        headers=request.headers,
        raw=request.body,
    )


@dataclass(frozen=True, slots=True)
class _Target:
    """What a verb and a target say by themselves."""

    method: str = ""
    model: str = ""
    version: str = ""
    action: str = ""
    alt: str = ""
    key: str = ""


@lru_cache(maxsize=1024)
def _read_target(verb: str, target: str) -> _Target:
    url = urlsplit(target)
    query = parse_qs(url.query)
    alt = query.get("alt", query.get("$alt", [""]))[0]
    key = "".join(query.get("key", ()))
    place = _PATH.fullmatch(unquote(url.path))
    if place is None:
        return _Target(alt=alt, key=key)
    action, model = place["action"] or "", place["model"] or ""
    return _Target(_name_method(verb, model, action), model, place["version"], action, alt, key)


def _name_method(verb: str, model: str, action: str) -> str:
    if verb == "POST":
        return action if action in SERVED else ""
    if verb not in ("GET", "HEAD") or action:
        return ""
    return "getModel" if model else "listModels"


def _find_bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token else None
