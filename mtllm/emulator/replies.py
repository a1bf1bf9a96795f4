"""What goes back to a client: Google's JSON documents, and the bytes that carry them.

    EmulatedReply      the bytes of one HTTP response, with pauses and resets between them
    Usage              token counts, as Gemini reports them
    candidate, blocked_prompt, failure    documents
    answered, failed, json_reply          documents -> EmulatedReply

The shapes follow https://ai.google.dev/api/generate-content and https://google.aip.dev/193.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.wire import LAST_CHUNK, chunk, http_response, stream_head

JSON_TYPE = "application/json; charset=UTF-8"

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Google's word for each HTTP status (https://google.aip.dev/193, google.rpc.Code)."""

PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"

# In the order of their numbers in Google's protocol buffers, where 0 is "unspecified".
_FINISH_REASONS = (
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
    "MALFORMED_FUNCTION_CALL", "IMAGE_SAFETY",
)  # fmt: skip
_BLOCK_REASONS = ("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY")


@dataclass(frozen=True, slots=True)
class Pause:
    """So many seconds of silence; the server's close ends them and the connection."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection ends at once, by a TCP reset."""


Piece = bytes | Pause | Reset


@dataclass(frozen=True, slots=True)
class EmulatedReply:
    """One HTTP response, head included; each piece of bytes is sent by one write when the iterable yields it.

    An OSError out of the iterable ends the connection there; `closes` ends it after the last piece.
    """

    pieces: Iterable[Piece]
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as Gemini reports them: `prompt` includes `cached`, `candidates` excludes `thoughts`."""

    prompt: int = 0
    candidates: int = 0
    thoughts: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        """Return what Gemini bills for: input, output and thinking."""
        return self.prompt + self.candidates + self.thoughts

    def metadata(self) -> dict[str, int]:
        """Return `usageMetadata`; Gemini leaves zeros out."""
        counts = {
            "promptTokenCount": self.prompt,
            "candidatesTokenCount": self.candidates,
            "thoughtsTokenCount": self.thoughts,
            "cachedContentTokenCount": self.cached,
            "totalTokenCount": self.total,
        }
        return {name: count for name, count in counts.items() if count}


def json_bytes(value: Any) -> bytes:
    """Return compact UTF-8 JSON; what UTF-8 cannot say is replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_reply(payload: Any, status: int = 200, **headers: str) -> EmulatedReply:
    """Return one JSON document, in one write."""
    return EmulatedReply((http_response(status, JSON_TYPE, json_bytes(payload), **headers),))


def answered(call: GeminiCall, payloads: Iterable[Any]) -> EmulatedReply:
    """Return the payloads as the call asks for them: all as a stream, or the first one as a document."""
    if not call.streams:
        return json_reply(next(iter(payloads)))
    events = _event_stream(payloads) if call.sse else _array_stream(payloads)
    content_type = "text/event-stream" if call.sse else JSON_TYPE
    if call.takes_chunks:
        return EmulatedReply(_chunked(content_type, events))
    return EmulatedReply(_unframed(content_type, events), closes=True)


def _chunked(content_type: str, events: Iterable[bytes]) -> Iterator[bytes]:
    yield stream_head(content_type, chunked=True)
    yield from map(chunk, events)
    yield LAST_CHUNK


def _unframed(content_type: str, events: Iterable[bytes]) -> Iterator[bytes]:
    yield stream_head(content_type, chunked=False)
    yield from events


def _event_stream(payloads: Iterable[Any]) -> Iterator[bytes]:
    for payload in payloads:
        yield b"data: %s\r\n\r\n" % json_bytes(payload)


def _array_stream(payloads: Iterable[Any]) -> Iterator[bytes]:
    before = b"["
    for payload in payloads:
        yield before + json_bytes(payload)
        before = b"\n,\r\n"
    yield b"[]" if before == b"[" else b"\n]"


def candidate(
    call: GeminiCall,
    text: str,
    *,
    finish_reason: str | None = None,
    usage: Usage | None = None,
    more_parts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return a response with one candidate; without `finish_reason` it is a piece of a stream that goes on."""
    parts = [*more_parts, *([{"text": text}] if text else [])]
    one: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish_reason is not None:
        one["finishReason"] = _encode_enum(call, finish_reason, _FINISH_REASONS)
    return _respond(call, usage, candidates=[one])


def blocked_prompt(call: GeminiCall, reason: str, *, usage: Usage | None = None) -> dict[str, Any]:
    """Return the response to a prompt that Gemini refuses: no candidates, and the prompt's tokens are reported."""
    return _respond(call, usage, promptFeedback={"blockReason": _encode_enum(call, reason, _BLOCK_REASONS)})


def _respond(call: GeminiCall, usage: Usage | None, **content: Any) -> dict[str, Any]:
    if usage is not None:
        content["usageMetadata"] = usage.metadata()
    return {**content, "modelVersion": call.model, "responseId": blake2b(call.raw, digest_size=12).hexdigest()}


def _encode_enum(call: GeminiCall, name: str, names: Sequence[str]) -> str | int:
    return names.index(name) + 1 if call.numeric_enums and name in names else name


def failure(code: int, status: str, message: str, *details: Mapping[str, Any]) -> dict[str, Any]:
    """Return Google's error document; `details` are typed messages such as `retry_info`."""
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": {**error, "details": list(details)} if details else error}


def failed(call: GeminiCall, error: Mapping[str, Any], **headers: str) -> EmulatedReply:
    """Return an error document with its status; Google wraps it in an array where an array was asked for."""
    return json_reply([error] if call.streams and not call.sse else error, error["error"]["code"], **headers)


def retry_info(delay: str) -> dict[str, Any]:
    """Return how long to wait, such as "45.837906927s"."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota_failure(quota_id: str, model: str) -> dict[str, Any]:
    """Return which quota is used up, such as GenerateRequestsPerDayPerProjectPerModel-FreeTier."""
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
    }
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def error_info(reason: str, **metadata: str) -> dict[str, Any]:
    """Return the machine-readable reason, such as API_KEY_INVALID."""
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com", **metadata},
    }


def bad_request(description: str) -> dict[str, Any]:
    """Return what is wrong with a request's fields."""
    return {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"description": description}]}


def token_count(text: str) -> int:
    """Return the emulator's measure of text: a token for every four characters begun, at least one."""
    return max(1, -(-len(text) // 4))


def prompt_tokens(call: GeminiCall) -> int:
    """Return what the call's input counts; the schema's labels count too."""
    return token_count("\n".join((call.system, call.prompt, *call.labels)).strip()) + call.media_tokens
