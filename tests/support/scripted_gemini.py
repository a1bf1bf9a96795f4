"""Gemini at the wire, playing a script: each call takes the next step; when the script is used up, `default` answers.

    with ScriptedGemini(status(503), text("hello")) as gemini:
        ...                         # point the client at gemini.url
        assert gemini.count == 2

A step is a function of the server and the call. Steps that answer: `text`, `finished`, `played`, `blocked_prompt`,
`no_candidates`, `stream`, `offline`. Steps that fail in Gemini's way: `status`, `invalid_key`. Steps that break the
protocol: `garbage`, `wrong_content_type`, `empty_body`. Steps made of other steps: `cut`, `drip`, `slow_headers`,
`after`. And `hang`. No step outlives the server's close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Condition, Event, Semaphore
from typing import Any

from mtllm.emulator import PER_DAY as PER_DAY
from mtllm.emulator import PER_MINUTE as PER_MINUTE
from mtllm.emulator import (
    STATUS_NAMES,
    EmulatedReply,
    Emulator,
    GeminiCall,
    OfflineGemini,
    Piece,
    PlayedModel,
    Usage,
    answered,
    candidate,
    canned,
    compose,
    error_info,
    failed,
    failure,
    http_response,
    json_reply,
    prompt_tokens,
    quota_failure,
    refuse_model,
    retry_info,
    token_count,
)
from mtllm.emulator import blocked_prompt as blocked_prompt_payload

JSON = "application/json; charset=UTF-8"

Step = Callable[["ScriptedGemini", GeminiCall], EmulatedReply]
Hold = Event | Semaphore


class ScriptedGemini(Emulator):
    """An emulator that follows a script and keeps count.

    `gate` is open; `gate.clear()` holds every reply, after the call was counted, until `gate.set()`. countTokens, which
    costs nothing and may come at any time, is no part of the script or the count: see `free_looks`.
    """

    def __init__(self, *script: Step, default: Step | None = None, port: int = 0) -> None:
        super().__init__(port=port, answer=self._next)
        self.gate = Event()
        self.gate.set()
        self._script = list(script)
        self._default = default or offline()
        self._count_tokens = offline()
        self._calls: list[GeminiCall] = []
        self._free_looks: list[GeminiCall] = []
        self._delivered = Usage()
        self._departed = 0
        self._changed = Condition()

    def answers(self, *script: Step) -> None:
        """Append to the script."""
        with self._changed:
            self._script.extend(script)

    def plays(self, *models: PlayedModel) -> None:
        """Answer from now on, where the script says nothing, as these models do; countTokens too."""
        with self._changed:
            self._default = self._count_tokens = played(*models)

    @property
    def free_looks(self) -> tuple[GeminiCall, ...]:
        """Every call of countTokens so far."""
        with self._changed:
            return tuple(self._free_looks)

    @property
    def calls(self) -> tuple[GeminiCall, ...]:
        """Every call so far, in the order of arrival."""
        with self._changed:
            return tuple(self._calls)

    @property
    def count(self) -> int:
        """How many calls have arrived."""
        return len(self.calls)

    @property
    def delivered(self) -> Usage:
        """What the calls whose answer was wholly generated are billed: the sum of what they reported."""
        with self._changed:
            return self._delivered

    @property
    def departed(self) -> int:
        """How many callers went away while their stream or slow reply was being sent."""
        with self._changed:
            return self._departed

    def wait_for_calls(self, count: int, *, timeout: float = 10.0) -> bool:
        """Wait until so many calls have arrived; False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._calls) >= count, timeout)

    def wait_for_departures(self, count: int, *, timeout: float = 10.0) -> bool:
        """Wait until so many callers have gone away; False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._departed >= count, timeout)

    def hold(self, hold: Hold) -> None:
        """Wait for an event or for one release of a semaphore; ends the connection when the server closes meanwhile."""
        wait = hold.wait if isinstance(hold, Event) else lambda seconds: hold.acquire(timeout=seconds)
        while not wait(0.02):
            self.pause(0)

    def pause(self, seconds: float | None = None) -> None:
        """Let time pass, without a limit by default; ends the connection when the server closes meanwhile."""
        if self.closing.wait(seconds):
            raise ConnectionAbortedError

    def bill(self, usage: Usage | None) -> None:
        """Add to `delivered`."""
        with self._changed:
            self._delivered = added(self._delivered, usage or Usage())

    def _next(self, call: GeminiCall) -> EmulatedReply:
        if call.method == "countTokens":
            with self._changed:
                self._free_looks.append(call)
                self._changed.notify_all()
            return self._count_tokens(self, call)
        with self._changed:
            self._calls.append(call)
            step = self._script.pop(0) if self._script else self._default
            self._changed.notify_all()
        self.hold(self.gate)
        reply = step(self, call)
        return EmulatedReply(self._watched(reply.pieces), reply.closes)

    def _watched(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        try:
            yield from pieces
        except GeneratorExit:  # the server stopped asking: the piece before could not be sent
            with self._changed:
                self._departed += not self.closing.is_set()
                self._changed.notify_all()
            raise


def added(one: Usage, other: Usage) -> Usage:
    """The sum of two usages."""
    return Usage(
        prompt=one.prompt + other.prompt,
        candidates=one.candidates + other.candidates,
        thoughts=one.thoughts + other.thoughts,
        cached=one.cached + other.cached,
    )


def _used(call: GeminiCall, text: str, *, thoughts: int = 0, cached: int = 0) -> Usage:
    candidates = token_count(text) if text else 0
    return Usage(prompt=prompt_tokens(call) + cached, candidates=candidates, thoughts=thoughts, cached=cached)


# Answers


def offline() -> Step:
    """The offline model's canned answer, billed like any other."""

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        if call.key and call.generates:
            gemini.bill(Usage(prompt=prompt_tokens(call), candidates=compose(call).tokens))
        return canned(call)

    return step


def played(*models: PlayedModel) -> Step:
    """The offline model under several names, each as its table says; what is answered is billed, thoughts included."""
    table = {model.name: model for model in models}
    offline_gemini = OfflineGemini(models)

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        model = table.get(call.model, PlayedModel(call.model))
        if call.key and call.generates and refuse_model(model, call) is None:
            answer = compose(call, model)
            gemini.bill(Usage(prompt=prompt_tokens(call), candidates=answer.tokens, thoughts=answer.thoughts))
        return offline_gemini(call)

    return step


def text(said: str, *, finish: str = "STOP", thoughts: int = 0, cached: int = 0, usage: bool = True) -> Step:
    """One answer, whole; a stream gets it as one piece. `cached` tokens are added to the prompt's.

    Without `usage` Gemini reports no usage (and `delivered` does not grow).
    """

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        used = _used(call, said, thoughts=thoughts, cached=cached) if usage else None
        gemini.bill(used)
        return answered(call, [candidate(call, said, finish_reason=finish, usage=used)])

    return step


def usage(said: str = "fine", *, thoughts: int = 0, cached: int = 0) -> Step:
    """An answer that thought, or whose prompt came partly from Gemini's cache."""
    return text(said, thoughts=thoughts, cached=cached)


def no_usage(said: str = "fine") -> Step:
    """An answer without usageMetadata."""
    return text(said, usage=False)


def finished(reason: str, said: str = "", *, thoughts: int = 0) -> Step:
    """An answer that ended for `reason`: RECITATION, SAFETY, MAX_TOKENS, or one that no client has heard of."""
    return text(said, finish=reason, thoughts=thoughts)


def blocked_prompt(reason: str = "SAFETY") -> Step:
    """200 without candidates; the prompt's tokens are reported and billed."""

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        used = _used(call, "")
        gemini.bill(used)
        return answered(call, [blocked_prompt_payload(call, reason, usage=used)])

    return step


def no_candidates() -> Step:
    """200 with usage and nothing else."""

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        used = _used(call, "")
        gemini.bill(used)
        return answered(call, [{"usageMetadata": used.metadata(), "modelVersion": call.model}])

    return step


# Streams


class _End:
    """A mark in a stream's script."""


CUT = _End()
"""The connection ends here, without the end of the chunked body."""
IDLE = _End()
"""Nothing more comes, and the connection stays open until the server closes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error document in mid-stream; the stream ends after it."""

    code: int
    message: str = "The service is currently unavailable."


Beat = str | Hold | float | Fault | _End


def stream(*beats: Beat, finish: str = "STOP", thoughts: int = 0, cached: int = 0, usage: str = "each") -> Step:
    """A stream: a string is sent as one delta, an Event or Semaphore is waited for, a number is seconds of silence,
    a `Fault`, `CUT` and `IDLE` end it. The last delta carries the finish reason.

    `usage` is reported on `each` chunk (running totals, as Gemini does), on the `last` one, or `never`. `delivered`
    grows when the last delta is sent. Only for calls that ask for a stream.
    """
    assert usage in ("each", "last", "never")
    deltas = [number for number, beat in enumerate(beats) if isinstance(beat, str)]
    last = deltas[-1] if deltas and not any(isinstance(beat, Fault | _End) for beat in beats) else None

    def payloads(gemini: ScriptedGemini, call: GeminiCall) -> Iterator[Any]:
        said = ""
        for number, beat in enumerate(beats):
            if not isinstance(beat, str):
                yield from _marked(gemini, beat)
                continue
            said += beat
            used = _used(call, said, thoughts=thoughts, cached=cached)
            ends = number == last
            if ends and usage != "never":
                gemini.bill(used)
            reported = used if usage == "each" or (usage == "last" and ends) else None
            yield candidate(call, beat, finish_reason=finish if ends else None, usage=reported)

    return lambda gemini, call: answered(call, payloads(gemini, call))


def _marked(gemini: ScriptedGemini, beat: Beat) -> Iterator[Any]:
    if beat is CUT:
        raise ConnectionAbortedError
    if isinstance(beat, Fault):
        yield failure(beat.code, STATUS_NAMES[beat.code], beat.message)
    elif isinstance(beat, Event | Semaphore):
        gemini.hold(beat)
    else:
        gemini.pause(beat if isinstance(beat, int | float) else None)


# Errors in Gemini's way


def status(
    code: int,
    message: str = "Something is wrong.",
    *,
    retry_delay: str | None = None,
    quota_id: str | None = None,
    reason: str | None = None,
    **metadata: str,
) -> Step:
    """Google's error JSON. `retry_delay` as in RetryInfo ("45.837906927s"), `quota_id` as in QuotaFailure, `reason` and
    `metadata` as in ErrorInfo. On a stream without `alt=sse` it comes in an array, as Google sends it."""

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        details = [
            *([quota_failure(quota_id, call.model)] if quota_id else []),
            *([retry_info(retry_delay)] if retry_delay else []),
            *([error_info(reason, **metadata)] if reason else []),
        ]
        return failed(call, failure(code, STATUS_NAMES.get(code, "UNKNOWN"), message, *details))

    return step


def invalid_key() -> Step:
    """What Google says to a key it does not know: 400, not 401."""
    return status(400, "API key not valid. Please pass a valid API key.", reason="API_KEY_INVALID")


# Faults of the protocol and of the wire


def garbage(body: bytes = b"\x00\xff{not json", *, code: int = 200, content_type: str = JSON) -> Step:
    """Any bytes as the body."""
    return lambda _gemini, _call: EmulatedReply((http_response(code, content_type, body),))


def wrong_content_type() -> Step:
    """A page where JSON was due, as a proxy between would send it."""
    return garbage(b"<html><body>Sign in to continue</body></html>", content_type="text/html")


def empty_body() -> Step:
    """200 and no body."""
    return garbage(b"")


def empty_object() -> Step:
    """200 and `{}`."""
    return lambda _gemini, call: json_reply([{}] if call.streams else {})


def hang() -> Step:
    """No byte ever, and the connection stays open until the server closes."""

    def silence(gemini: ScriptedGemini) -> Iterator[Piece]:
        gemini.pause()
        yield b""

    return lambda gemini, _call: EmulatedReply(silence(gemini))


def cut(after_bytes: int | None = 0, step: Step | None = None) -> Step:
    """The reply of `step` (generated, hence billed), of which so many bytes arrive before the connection ends.

    With None all of them arrive: the client's pool keeps a connection that is dead at the next call.
    """
    return _reshaped(step, lambda _gemini, pieces: iter([_join(pieces)[:after_bytes]]), closes=True)


def drip(seconds_per_byte: float, step: Step | None = None) -> Step:
    """The reply of `step`: the head at once, the body byte by byte."""

    def slowly(gemini: ScriptedGemini, pieces: Iterable[Piece]) -> Iterator[Piece]:
        head, separator, body = _join(pieces).partition(b"\r\n\r\n")
        yield head + separator
        yield from _byte_by_byte(gemini, body, seconds_per_byte)

    return _reshaped(step, slowly)


def slow_headers(seconds_per_byte: float, step: Step | None = None) -> Step:
    """The reply of `step`, byte by byte from the status line on."""
    return _reshaped(step, lambda gemini, pieces: _byte_by_byte(gemini, _join(pieces), seconds_per_byte))


def after(wait: Hold | float, step: Step | None = None) -> Step:
    """The reply of `step`, once `wait` is set or released, or so many seconds have passed."""

    def late(gemini: ScriptedGemini, pieces: Iterable[Piece]) -> Iterator[Piece]:
        if isinstance(wait, int | float):
            gemini.pause(wait)
        else:
            gemini.hold(wait)
        yield from pieces

    return _reshaped(step, late)


def _join(pieces: Iterable[Piece]) -> bytes:
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def _byte_by_byte(gemini: ScriptedGemini, data: bytes, seconds: float) -> Iterator[Piece]:
    for position in range(len(data)):
        gemini.pause(seconds)
        yield data[position : position + 1]


def _reshaped(
    step: Step | None, shape: Callable[[ScriptedGemini, Iterable[Piece]], Iterator[Piece]], *, closes: bool = False
) -> Step:
    inner = step or text("An answer that is long enough to be cut or dripped.")

    def reshaped(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        reply = inner(gemini, call)
        return EmulatedReply(shape(gemini, reply.pieces), closes or reply.closes)

    return reshaped
