"""One streamed call to Gemini, at the wire: deltas as they are sent, and each way a stream can end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Semaphore

import pytest

from mtllm.domain.completion import Answer, FinishReason, Instruction
from mtllm.domain.errors import (
    ContentBlocked,
    Draining,
    MaxOutputTokensTooSmall,
    Retry,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.domain.money import TokenUsage
from mtllm.emulator import EmulatedReply, GeminiCall, http_response
from mtllm.gemini.client import Gemini, GeminiStream
from tests.support.scripted_gemini import (
    CUT,
    IDLE,
    JSON,
    Fault,
    ScriptedGemini,
    Step,
    blocked_prompt,
    cut,
    drip,
    empty_object,
    finished,
    garbage,
    hang,
    slow_headers,
    status,
    stream,
    text,
    wrong_content_type,
)

MODEL = "gemini-2.5-flash-lite"
ASK = Instruction("Say hello.", 0.7, 2048)
SHORT, SLACK = 0.3, 0.3
"""Seconds until a silent stream is ended, and how much later than that its reader may be told."""


@pytest.fixture
def server() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as scripted:
        yield scripted


@pytest.fixture(params=["sdk", "rest"])
def gemini(request: pytest.FixtureRequest, server: ScriptedGemini) -> Iterator[Gemini]:
    with Gemini(api_key="key", model=MODEL, endpoint=server.url, kind=request.param, max_connections=2) as client:
        client.warm_up()
        yield client


def begin(gemini: Gemini, *, gap: float = 10.0, seconds: float = 20.0) -> GeminiStream:
    return gemini.stream(ASK, gap_seconds=gap, deadline=time.monotonic() + seconds)


def read(gemini: Gemini) -> tuple[list[str], Answer]:
    answer = begin(gemini)
    return list(answer), answer.answer


def failure_of(answer: GeminiStream) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as raised:
        list(answer)
    return raised.value


def connections_made(gemini: Gemini) -> int:
    assert gemini._built is not None
    return int(gemini._built.session.pool.num_connections)


def array(*messages: object, end: str = "]") -> Step:
    """Any messages as the body of a stream, sent whole."""
    body = ("[" + ",\r\n".join(map(json.dumps, messages)) + end).encode()
    return lambda _server, _call: EmulatedReply((http_response(200, JSON, body),))


def said(*parts: object, finish: int = 0) -> dict[str, object]:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": finish}]}


# Streams that end well


def test_deltas_come_as_they_are_sent(server: ScriptedGemini, gemini: Gemini) -> None:
    """Each one is there before Gemini writes the next."""
    next_beat = Semaphore(0)
    server.answers(stream("one ", next_beat, "two ", next_beat, "three"))
    answer = begin(gemini)
    assert next(answer) == "one "
    next_beat.release()
    assert next(answer) == "two "
    assert answer.text_so_far == "one two "
    next_beat.release()
    assert list(answer) == ["three"]
    assert (answer.answer.text, answer.answer.failure) == ("one two three", None)


def test_a_finished_stream_is_an_answer(server: ScriptedGemini, gemini: Gemini) -> None:
    """Whole text, the last usage, thinking included, and the model that wrote it."""
    server.answers(stream("Hello ", "to you", thoughts=20, cached=4))
    deltas, answer = read(gemini)
    assert deltas == ["Hello ", "to you"]
    assert answer.usage is not None
    assert (answer.text, answer.model, answer.finish_reason) == ("Hello to you", MODEL, FinishReason.STOP)
    assert answer.usage.cached_input == 4
    assert answer.usage.output == server.delivered.candidates + 20


def test_any_text_survives(server: ScriptedGemini, gemini: Gemini) -> None:
    """Quotes, brackets, backslashes, line ends and characters of several bytes are text, not structure."""
    beats = ['{"a": [1, "}"]}', "\\", '\\"', "]\n,\r\n[", "🎈ü", " ", "429 rate limit", '"thought": true, "error"']
    server.answers(stream(*beats), drip(0.0, stream(*beats)))
    assert read(gemini)[0] == beats
    assert "".join(read(gemini)[0]) == "".join(beats)


def test_nothing_is_sent_before_the_first_next(server: ScriptedGemini, gemini: Gemini) -> None:
    """A stream that nobody reads costs nothing."""
    begin(gemini).close()
    assert server.count == 0


def test_the_connection_is_kept(server: ScriptedGemini, gemini: Gemini) -> None:
    """A stream that was read to its end leaves its connection to the next call."""
    server.answers(stream("a", "b"), text("c"), status(429))
    read(gemini)
    gemini.generate(ASK, deadline=time.monotonic() + 10)
    assert isinstance(failure_of(begin(gemini)), UpstreamUnavailable)
    assert connections_made(gemini) == 1


def test_usage_may_come_last_or_never(server: ScriptedGemini, gemini: Gemini) -> None:
    """Gemini's own count when there is one, None when the caller has to estimate."""
    server.answers(stream("a", "b", usage="last"), stream("a", "b", usage="never"))
    assert read(gemini)[1].usage is not None
    assert read(gemini)[1].usage is None


def test_thoughts_are_left_out(server: ScriptedGemini, gemini: Gemini) -> None:
    """A chunk of thoughts alone gives no delta."""
    thought = {"text": "hmm", "thought": True}
    server.answers(array(said(thought), said(thought, {"text": "An "}), said({"text": "answer"}, finish=1)))
    assert read(gemini)[0] == ["An ", "answer"]


def test_white_space_around_the_array_does_no_harm(server: ScriptedGemini, gemini: Gemini) -> None:
    """As it comes before the array's end, or behind it."""
    server.answers(array(said({"text": "a"}, finish=1), end="\n]\r\n"))
    assert read(gemini)[1].failure is None


def test_an_array_without_its_end_is_no_whole_answer(server: ScriptedGemini, gemini: Gemini) -> None:
    """Whatever its last element said: what broke off must not be kept or served as whole."""
    server.answers(array(said({"text": "a"}, finish=1), end=""))
    failure = failure_of(begin(gemini))
    assert (type(failure), failure.maybe_billed) == (UpstreamInvalidAnswer, True)


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        (blocked_prompt(), ContentBlocked),
        (finished("SAFETY", "Begun but"), ContentBlocked),
        (finished("MAX_TOKENS", "", thoughts=9), MaxOutputTokensTooSmall),
        (finished("OTHER", "Begun but"), UpstreamInvalidAnswer),
        (stream("", finish="STOP"), UpstreamInvalidAnswer),
        (array(), UpstreamInvalidAnswer),
        (array(said({"text": "never finished"})), UpstreamInvalidAnswer),
        (empty_object(), UpstreamInvalidAnswer),
    ],
)
def test_a_complete_stream_may_hold_no_usable_answer(
    server: ScriptedGemini, gemini: Gemini, step: Step, failure: type[Exception]
) -> None:
    """The iteration ends in peace; the answer says what is wrong with it."""
    server.answers(step)
    assert isinstance(read(gemini)[1].failure, failure)


def test_a_truncated_stream_says_so(server: ScriptedGemini, gemini: Gemini) -> None:
    """MAX_TOKENS with text is an answer."""
    server.answers(stream("Half", " of", finish="MAX_TOKENS"))
    answer = read(gemini)[1]
    assert (answer.text, answer.finish_reason, answer.failure) == ("Half of", FinishReason.MAX_TOKENS, None)


# Streams that never begin


@pytest.mark.parametrize(
    ("step", "error", "retry", "maybe_billed"),
    [
        (status(429, retry_delay="3s"), UpstreamUnavailable, Retry.YES, False),
        (status(500), UpstreamError, Retry.ONCE, False),
        (status(401), UpstreamAuthFailed, Retry.NEVER, False),
        (cut(0), UpstreamError, Retry.YES, True),
        (garbage(), UpstreamInvalidAnswer, Retry.NEVER, True),
        (garbage(b"", code=200), UpstreamInvalidAnswer, Retry.NEVER, True),
        (garbage(b"{}"), UpstreamInvalidAnswer, Retry.NEVER, True),
        (garbage(b"[{]}"), UpstreamInvalidAnswer, Retry.NEVER, True),
        (garbage(b"[}"), UpstreamInvalidAnswer, Retry.NEVER, True),
        (wrong_content_type(), UpstreamInvalidAnswer, Retry.NEVER, True),
    ],
)
def test_an_error_before_the_first_delta(
    server: ScriptedGemini, gemini: Gemini, step: Step, error: type[UpstreamFailure], retry: Retry, maybe_billed: bool
) -> None:
    """It means what it means for a plain call, though Google sends errors of streams in an array."""
    server.answers(step)
    answer = begin(gemini)
    failure = failure_of(answer)
    assert type(failure) is error
    assert (failure.retry, failure.maybe_billed) == (retry, maybe_billed)
    assert (answer.text_so_far, answer.usage_so_far, answer.model) == ("", None, MODEL)


@pytest.mark.parametrize("step", [hang(), slow_headers(0.01), drip(0.01), stream(IDLE)])
def test_the_first_chunk_is_due(server: ScriptedGemini, gemini: Gemini, step: Step) -> None:
    """Silence and drips before the first whole chunk end when the gap does."""
    server.answers(step)
    answer = begin(gemini, gap=SHORT)
    begun = time.monotonic()
    failure = failure_of(answer)
    assert time.monotonic() - begun <= SHORT + SLACK
    assert isinstance(failure, UpstreamTimeout)
    assert (failure.breaks, failure.maybe_billed) == (True, True)


# Streams that end in the middle


@pytest.mark.parametrize(
    ("end", "error", "maybe_billed"),
    [(CUT, UpstreamError, True), (IDLE, UpstreamTimeout, True), (Fault(503), UpstreamUnavailable, False)],
)
def test_what_came_before_the_failure_can_be_billed(
    server: ScriptedGemini, gemini: Gemini, end: object, error: type[UpstreamFailure], maybe_billed: bool
) -> None:
    """A cut, an idle Gemini, an error document in mid-stream: text, usage and model so far stay readable."""
    server.answers(stream("one ", "two ", end))  # type: ignore[arg-type]
    answer = begin(gemini, gap=SHORT)
    assert list(islice(answer, 2)) == ["one ", "two "]
    failure = failure_of(answer)
    assert type(failure) is error
    assert (failure.breaks, failure.maybe_billed) == (True, maybe_billed)
    assert answer.usage_so_far is not None
    assert answer.partial_answer() == Answer("one two ", MODEL, answer.usage_so_far)
    assert list(answer) == []


def test_each_gap_has_its_own_time(server: ScriptedGemini, gemini: Gemini) -> None:
    """A stream may take longer than the gap as a whole."""
    server.answers(stream("a", 0.2, "b", 0.2, "c", 0.2, "d", 0.2, "e"))
    assert list(begin(gemini, gap=0.6)) == ["a", "b", "c", "d", "e"]


def test_the_readers_own_pace_is_no_gap(server: ScriptedGemini, gemini: Gemini) -> None:
    """A slow reader is not Gemini's fault: time between two `next` does not count."""
    server.answers(stream("a", "b", "c"))
    answer = begin(gemini, gap=0.3)
    first = next(answer)
    threading.Event().wait(0.4)
    assert [first, *answer] == ["a", "b", "c"]


def test_the_whole_is_bounded(server: ScriptedGemini, gemini: Gemini) -> None:
    """However lively the stream, it ends by its deadline."""
    server.answers(stream(*[beat for _ in range(100) for beat in ("x", 0.02)]))
    begun = time.monotonic()
    failure = failure_of(begin(gemini, seconds=SHORT))
    assert time.monotonic() - begun <= SHORT + SLACK
    assert isinstance(failure, UpstreamTimeout)


def test_a_cancel_wakes_the_reader(server: ScriptedGemini, gemini: Gemini) -> None:
    """From another thread, while Gemini is silent: Gemini sees its caller go, and what came is known."""
    server.answers(stream("one ", IDLE))
    answer = begin(gemini)
    assert next(answer) == "one "
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(next, answer)
        answer.cancel()
        failure = reading.exception()
    assert isinstance(failure, Draining)
    assert failure.maybe_billed
    assert answer.partial_answer().text == "one "


def test_a_cancel_before_the_first_next_sends_nothing(server: ScriptedGemini, gemini: Gemini) -> None:
    """The reader is told, and Gemini never asked."""
    answer = begin(gemini)
    answer.cancel()
    with pytest.raises(Draining) as raised:
        next(answer)
    assert not raised.value.maybe_billed
    assert server.delivered.total == 0


def test_a_cancel_between_deltas_is_seen_by_the_next_one(server: ScriptedGemini, gemini: Gemini) -> None:
    """The socket is gone at once, whether somebody reads or not."""
    more = Semaphore(0)
    server.answers(stream("one ", more, *["x" * 1000] * 2000))
    answer = begin(gemini)
    next(answer)
    answer.cancel()
    more.release()
    assert server.wait_for_departures(1)
    with pytest.raises(Draining) as raised:
        list(answer)
    assert raised.value.maybe_billed


def test_a_close_in_the_middle_lets_go_of_the_connection(server: ScriptedGemini, gemini: Gemini) -> None:
    """Gemini sees its caller go; closing again does nothing; the next call works."""
    more = Semaphore(0)
    server.answers(stream("one ", more, *["x" * 1000] * 2000), text("fine"))
    answer = begin(gemini)
    next(answer)
    answer.close()
    answer.close()
    more.release()
    assert server.wait_for_departures(1)
    assert list(answer) == []
    assert gemini.generate(ASK, deadline=time.monotonic() + 10).text == "fine"


def test_streams_at_once_do_not_mix(server: ScriptedGemini, gemini: Gemini) -> None:
    """16 threads stream at the same time over one client; each reads its own words."""

    def echo(scripted: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        return stream(*(f"{call.prompt}-{part} " for part in range(5)))(scripted, call)

    server.answers(*[echo] * 16)
    barrier = threading.Barrier(16)

    def talk(number: int) -> str:
        barrier.wait()
        instruction = Instruction(str(number), 0, 10)
        return "".join(gemini.stream(instruction, gap_seconds=10, deadline=time.monotonic() + 20))

    with ThreadPoolExecutor(16) as threads:
        said = list(threads.map(talk, range(16)))
    assert said == ["".join(f"{number}-{part} " for part in range(5)) for number in range(16)]


def test_usage_so_far_is_a_running_total(server: ScriptedGemini, gemini: Gemini) -> None:
    """It grows with the deltas, so that a cut stream is billed for what came."""
    server.answers(stream("word " * 20, "word " * 20, CUT))
    answer = begin(gemini)
    next(answer)
    first = answer.usage_so_far
    next(answer)
    second = answer.usage_so_far
    assert isinstance(first, TokenUsage)
    assert isinstance(second, TokenUsage)
    assert first.output < second.output
    answer.close()
