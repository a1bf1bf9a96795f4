"""The ways in which the emulator fails: Google's errors, odd answers, broken wires.

FAULTS        every fault by its name
FaultKind     one way to fail: name, what it does, its argument, FaultCase -> EmulatedReply
FaultCase     one call that a fault meets, and what it would have been answered
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtllm.emulator.answers import CannedAnswer, compose, split_answer
from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.models import PlayedModel, closed, exhausted, limited, not_found, overloaded, unpaid
from mtllm.emulator.replies import (
    JSON_TYPE,
    STATUS_NAMES,
    EmulatedReply,
    Pause,
    Piece,
    Reset,
    Usage,
    answered,
    blocked_prompt,
    candidate,
    error_info,
    failed,
    failure,
    json_reply,
    prompt_tokens,
)
from mtllm.emulator.wire import http_response

LONGEST_SECONDS = 600.0
"""What a fault may hold a call up, at most."""

_DRIPS = 20
_WITH_TEXT = ("STOP", "MAX_TOKENS", "CONTINUATION")
"""Finish reasons that leave the text that was made before them."""
_REASONS = "SAFETY, RECITATION, MAX_TOKENS, MALFORMED_RESPONSE, ESCALATION, PUP_LIMITED_DISABLED, CONTINUATION"
_BLOCKS = "SAFETY, OTHER, BLOCKLIST, PROHIBITED_CONTENT"
_LEAKED = "Your API key was reported as leaked. Please use another API key."


@dataclass(frozen=True, slots=True)
class FaultCase:
    """One call that a fault meets, and what it would have been answered."""

    call: GeminiCall
    model: PlayedModel
    argument: str
    chunks: int

    @property
    def answer(self) -> CannedAnswer:
        """Return the answer of a good day."""
        return compose(self.call, self.model)

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """Return the documents of a good day."""
        return list(split_answer(self.call, self.model, self.answer, self.chunks))

    @property
    def prompt_only(self) -> Usage:
        """Return the usage of a call that was answered nothing."""
        return Usage(prompt=prompt_tokens(self.call))

    @property
    def seconds(self) -> float:
        """Return the argument as seconds."""
        return min(float(self.argument), LONGEST_SECONDS)

    @property
    def good_bytes(self) -> bytes:
        """Return the whole response of a good day."""
        return b"".join(piece for piece in answered(self.call, self.payloads).pieces if isinstance(piece, bytes))


MakeReply = Callable[[FaultCase], EmulatedReply]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One way to fail."""

    name: str
    does: str
    """What a client meets, in a clause."""
    reply: MakeReply
    default: str = ""
    """The argument when none is given."""
    takes: str = ""
    """A regular expression that the argument must match; empty when there is none."""


# Errors in Google's words


def _fail_with(code: int, message: str, *details: Mapping[str, Any]) -> MakeReply:
    error = failure(code, STATUS_NAMES[code], message, *details)
    return lambda case: failed(case.call, error)


def _fail_as(refuse: Callable[[PlayedModel], Mapping[str, Any]]) -> MakeReply:
    return lambda case: failed(case.call, refuse(case.model))


def _limit(case: FaultCase) -> EmulatedReply:
    return failed(case.call, limited(case.model, f"{case.argument}s"))


def _refuse_key(case: FaultCase) -> EmulatedReply:
    message = "API key not valid. Please pass a valid API key."
    return failed(case.call, failure(400, "INVALID_ARGUMENT", message, error_info("API_KEY_INVALID")))


def _refuse_region(case: FaultCase) -> EmulatedReply:
    return failed(case.call, failure(400, "FAILED_PRECONDITION", "User location is not supported for the API use."))


def _fail_within(case: FaultCase) -> EmulatedReply:
    return answered(case.call, [_make_error(case)])


def _midway(case: FaultCase) -> EmulatedReply:
    before = case.payloads[:1] if case.call.streams else []
    return answered(case.call, [*before, _make_error(case)])


def _make_error(case: FaultCase) -> dict[str, Any]:
    code = int(case.argument)
    return failure(code, STATUS_NAMES[code], "The service is currently unavailable.")


# Odd answers


def _change_answer(change: Callable[[FaultCase, list[dict[str, Any]]], Iterable[Any]]) -> MakeReply:
    return lambda case: answered(case.call, change(case, case.payloads))


def _finish(case: FaultCase) -> EmulatedReply:
    """An answer that ends early: half of its text, or none where a plain answer was filtered."""
    call, reason = case.call, case.argument
    keeps_text = reason in _WITH_TEXT
    if keeps_text or call.streams:
        half = replace(case.answer, text=case.answer.text[: len(case.answer.text) // 2], finish_reason=reason)
        payloads = list(split_answer(call, case.model, replace(half, function_call=None), case.chunks))
    else:
        payloads = [candidate(call, "", finish_reason=reason, usage=case.prompt_only)]
    last = payloads[-1]["candidates"][0]
    if not keeps_text:
        last["content"] = {"role": "model"}
    if reason == "CONTINUATION":
        last["continuationToken"] = "Y2FubmVk"
    return answered(call, payloads)


def _block(case: FaultCase) -> EmulatedReply:
    return answered(case.call, [blocked_prompt(case.call, case.argument, usage=case.prompt_only)])


def _say(case: FaultCase) -> EmulatedReply:
    said = CannedAnswer(case.argument)
    return answered(case.call, split_answer(case.call, case.model, said, case.chunks))


def _spend(*fields: str) -> MakeReply:
    """The answer with so many tokens more in these fields of its usage."""

    def change(case: FaultCase, payloads: list[dict[str, Any]]) -> Iterator[Any]:
        for payload in payloads:
            usage = payload["usageMetadata"]
            more = {name: usage.get(name, 0) + int(case.argument) for name in (*fields, "totalTokenCount")}
            yield {**payload, "usageMetadata": {**usage, **more}}

    return _change_answer(change)


_cache_prompt = _spend("promptTokenCount", "cachedContentTokenCount")


def _without(*names: str, of_candidate: bool = False) -> MakeReply:
    def change(_case: FaultCase, payloads: list[dict[str, Any]]) -> Iterator[Any]:
        for payload in payloads:
            where = payload["candidates"][0] if of_candidate else payload
            for name in names:
                where.pop(name, None)
            yield payload

    return _change_answer(change)


def _count_late(_case: FaultCase, payloads: list[dict[str, Any]]) -> Iterator[Any]:
    for payload in payloads[:-1]:
        prompt = payload["usageMetadata"]["promptTokenCount"]
        yield {**payload, "usageMetadata": {"promptTokenCount": prompt, "totalTokenCount": prompt}}
    yield payloads[-1]


def _swap(case: FaultCase, payloads: list[dict[str, Any]]) -> Iterator[Any]:
    for payload in payloads:
        yield {**payload, "modelVersion": case.argument}


def _say_nothing(case: FaultCase) -> EmulatedReply:
    return answered(case.call, [candidate(case.call, "", finish_reason="STOP", usage=case.prompt_only)])


# Broken wires


def _send(body: bytes, content_type: str = JSON_TYPE, status: int = 200) -> MakeReply:
    return lambda _case: EmulatedReply((http_response(status, content_type, body),))


_PORTAL = b"<html><body>Sign in to continue</body></html>"
_fail_by_proxy = _send(b"<html><body>The upstream server did not answer.</body></html>", "text/html", 502)


def _fail_with_header(case: FaultCase) -> EmulatedReply:
    return failed(case.call, overloaded(case.model), Retry_After=case.argument)


def _reset(_case: FaultCase) -> EmulatedReply:
    return EmulatedReply((Reset(),), closes=True)


def _hang(case: FaultCase) -> EmulatedReply:
    return EmulatedReply((Pause(case.seconds),), closes=True)


def _wait(case: FaultCase) -> EmulatedReply:
    good = answered(case.call, case.payloads)
    return EmulatedReply(_paused_first(case.seconds, good.pieces), good.closes)


def _paused_first(seconds: float, pieces: Iterable[Piece]) -> Iterator[Piece]:
    yield Pause(seconds)
    yield from pieces


def _idle(case: FaultCase) -> EmulatedReply:
    good = case.good_bytes
    return EmulatedReply((good[: len(good) // 2], Pause(case.seconds)), closes=True)


def _cut(case: FaultCase) -> EmulatedReply:
    good = case.good_bytes
    size = int(case.argument) if case.argument else len(good) // 2
    return EmulatedReply((good[:size],), closes=True)


def _drip(case: FaultCase) -> EmulatedReply:
    return EmulatedReply(_drops(case.good_bytes, case.seconds), closes=not case.call.takes_chunks)


def _drops(data: bytes, seconds: float) -> Iterator[Piece]:
    size = -(-len(data) // _DRIPS)
    for start in range(0, len(data), size):
        yield Pause(seconds / _DRIPS)
        yield data[start : start + size]


_SECONDS = r"\d{1,5}(?:\.\d+)?"
_NUMBER = r"\d{1,9}"
_WORD = r"[A-Z][A-Z0-9_]*"
_CODE = "|".join(map(str, STATUS_NAMES))

_GOOGLES_ERRORS: Sequence[FaultKind] = (
    FaultKind("400", "400 INVALID_ARGUMENT", _fail_with(400, "Request contains an invalid argument.")),
    FaultKind("401", "401 UNAUTHENTICATED", _fail_with(401, "Request had invalid authentication credentials.")),
    FaultKind("403", "403 PERMISSION_DENIED", _fail_with(403, "The caller does not have permission")),
    FaultKind("404", "404 NOT_FOUND", _fail_with(404, "Requested entity was not found.")),
    FaultKind("429", "429 with QuotaFailure PerMinute and RetryInfo; argument: seconds", _limit, "2", _SECONDS),
    FaultKind("500", "500 INTERNAL", _fail_with(500, "An internal error has occurred. Please retry.")),
    FaultKind("503", "503 UNAVAILABLE, the model is overloaded", _fail_as(overloaded)),
    FaultKind("504", "504 DEADLINE_EXCEEDED", _fail_with(504, "The request timed out. Please try again.")),
    FaultKind("quota-day", "429 with QuotaFailure PerDay", _fail_as(exhausted)),
    FaultKind("unpaid", "429, the prepaid balance is empty", _fail_as(unpaid)),
    FaultKind("closed", "404, no longer available to new users", _fail_as(closed)),
    FaultKind("retired", "404, no such model", lambda case: failed(case.call, not_found(case.model, case.call))),
    FaultKind("invalid-key", "400 with the reason API_KEY_INVALID", _refuse_key),
    FaultKind("leaked-key", "403, the key was reported as leaked", _fail_with(403, _LEAKED)),
    FaultKind("region", "400 FAILED_PRECONDITION, the region is not served", _refuse_region),
    FaultKind("error-in-200", "an error document in a 200; argument: its code", _fail_within, "503", _CODE),
    FaultKind("error-midway", "a piece of a stream, then an error document; argument: its code", _midway, "503", _CODE),
)

_ODD_ANSWERS: Sequence[FaultKind] = (
    FaultKind("finish", f"another finishReason; argument: {_REASONS} or any word", _finish, "SAFETY", _WORD),
    FaultKind("block", f"no candidates, a blockReason; argument: {_BLOCKS} or any word", _block, "SAFETY", _WORD),
    FaultKind("text", "exactly this text; argument: the text", _say, "", r"[\s\S]*"),
    FaultKind("no-text", "STOP, and a candidate without text", _say_nothing),
    FaultKind("no-content", "candidates without content", _without("content", of_candidate=True)),
    FaultKind("no-candidates", "usage and nothing else", _without("candidates")),
    FaultKind("no-finish", "no finishReason: a stream left in the middle", _without("finishReason", of_candidate=True)),
    FaultKind("no-usage", "no usageMetadata", _without("usageMetadata")),
    FaultKind("late-usage", "pieces of a stream but the last count the prompt only", _change_answer(_count_late)),
    FaultKind("thoughts", "more thoughtsTokenCount; argument: tokens", _spend("thoughtsTokenCount"), "300", _NUMBER),
    FaultKind("cached", "more tokens of prompt, all cached; argument: tokens", _cache_prompt, "4096", _NUMBER),
    FaultKind("swapped", "modelVersion is another; argument: a name", _change_answer(_swap), "other-model", r"[\w.-]+"),
)

_BROKEN_WIRES: Sequence[FaultKind] = (
    FaultKind("502", "502 with a page of HTML, as a proxy between sends it", _fail_by_proxy),
    FaultKind("retry-after", "503 with the header Retry-After; argument: seconds", _fail_with_header, "2", _NUMBER),
    FaultKind("html", "200 with a page of HTML, as a captive portal sends it", _send(_PORTAL, "text/html")),
    FaultKind("empty", "200 without a body", _send(b"")),
    FaultKind("empty-object", "200 with {}", lambda case: json_reply([{}] if case.call.streams else {})),
    FaultKind("garbage", "200 with bytes that are no JSON", _send(b"\x00\xff{not json")),
    FaultKind("reset", "a TCP reset without an answer", _reset),
    FaultKind("hang", "silence, then the end of the connection; argument: seconds", _hang, "30", _SECONDS),
    FaultKind("slow", "silence, then the answer; argument: seconds", _wait, "2", _SECONDS),
    FaultKind("drip", "the answer in twenty drops; argument: seconds in all", _drip, "2", _SECONDS),
    FaultKind("idle", "half an answer, silence, the connection ends; argument: seconds", _idle, "30", _SECONDS),
    FaultKind("cut", "the connection ends after so many bytes, or half; argument: bytes", _cut, "", r"\d{0,9}"),
)

FAULTS: Mapping[str, FaultKind] = {kind.name: kind for kind in (*_GOOGLES_ERRORS, *_ODD_ANSWERS, *_BROKEN_WIRES)}
