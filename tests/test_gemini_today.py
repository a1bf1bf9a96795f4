"""Gemini as it answers today, through the SDK and without it: finish reasons, thoughts, errors, waits, both streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from mtllm.domain.completion import Answer, FinishReason, Instruction
from mtllm.domain.errors import (
    ApiError,
    ContentBlocked,
    MaxOutputTokensTooSmall,
    QuotaExhausted,
    Retry,
    UpstreamAuthFailed,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.domain.money import TokenUsage
from mtllm.emulator import EmulatedReply, http_response
from mtllm.gemini.client import Gemini
from mtllm.gemini.waits import parse_retry_after
from mtllm.project import PROJECT
from tests.support.scripted_gemini import ScriptedGemini, Step, status, text

MODEL = "gemini-3.1-flash-lite"
ASK = Instruction("Say hello.", 0.7, 2048)
JSON = "application/json; charset=UTF-8"
EVENTS = "text/event-stream"


@pytest.fixture(params=["sdk", "rest"])
def gemini(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Gemini]]:
    """Makes a client of a URL, through the SDK and without it."""
    made: list[Gemini] = []

    def make(url: str) -> Gemini:
        made.append(Gemini(api_key="key", model=MODEL, endpoint=url, kind=request.param))
        made[-1].warm_up()
        return made[-1]

    yield make
    for client in made:
        client.close()


Make = Callable[[str], Gemini]


def sent(body: str | bytes, content_type: str = JSON, code: int = 200, **headers: str) -> Step:
    """A response with exactly this body."""
    raw = body.encode() if isinstance(body, str) else body
    return lambda _server, _call: EmulatedReply((http_response(code, content_type, raw, **headers),))


def document(
    said: str = "Hello", finish: str | int | None = "STOP", usage: dict[str, int] | None = None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": said}]}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    answered: dict[str, Any] = {"candidates": [candidate], "modelVersion": MODEL}
    return answered | ({"usageMetadata": usage} if usage else {})


def error(code: int, name: str, *details: dict[str, Any], message: str = "x") -> dict[str, Any]:
    return {"error": {"code": code, "status": name, "message": message, "details": list(details)}}


def ask(make: Make, step: Step) -> Answer:
    with ScriptedGemini(step) as server:
        return make(server.url).generate(ASK, deadline=time.monotonic() + 20)


def failure_of(make: Make, step: Step) -> UpstreamFailure:
    with ScriptedGemini(step) as server, pytest.raises(UpstreamFailure) as raised:
        make(server.url).generate(ASK, deadline=time.monotonic() + 20)
    return raised.value


def read_stream(make: Make, step: Step) -> tuple[list[str], Answer]:
    with ScriptedGemini(step) as server:
        answer = make(server.url).stream(ASK, gap_seconds=10, deadline=time.monotonic() + 20)
        return list(answer), answer.answer


# Finish reasons and refusals


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        ("STOP", None),
        ("CONTINUATION", None),
        ("ESCALATION", ContentBlocked),
        ("MODEL_ARMOR", ContentBlocked),
        ("PUP_LIMITED_DISABLED", UpstreamAuthFailed),
        ("MALFORMED_RESPONSE", UpstreamInvalidAnswer),
        ("MISSING_THOUGHT_SIGNATURE", UpstreamInvalidAnswer),
        ("UNEXPECTED_TOOL_CALL", UpstreamInvalidAnswer),
        ("TOO_MANY_TOOL_CALLS", UpstreamInvalidAnswer),
        ("A_REASON_OF_NEXT_YEAR", UpstreamInvalidAnswer),
    ],
)
def test_what_a_finish_reason_means(gemini: Make, reason: str, failure: type[ApiError] | None) -> None:
    """By Google's word for it, newer ones included; one that is unknown is named for the log."""
    answer = ask(gemini, sent(json.dumps(document(finish=reason))))
    assert (None if answer.failure is None else type(answer.failure)) is failure
    if isinstance(answer.failure, UpstreamFailure):
        assert answer.failure.cause_words == (reason,)


def test_a_continued_answer_is_cut(gemini: Make) -> None:
    """CONTINUATION says that the segment is full."""
    assert ask(gemini, sent(json.dumps(document(finish="CONTINUATION")))).finish_reason is FinishReason.MAX_TOKENS


def test_thoughts_are_counted_and_never_shown(gemini: Make) -> None:
    """They are output that is paid for; their text is no answer."""
    said = document(
        usage={"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 40, "totalTokenCount": 47}
    )
    said["candidates"][0]["content"]["parts"].insert(0, {"text": "Let me think.", "thought": True})
    answer = ask(gemini, sent(json.dumps(said)))
    assert (answer.text, answer.usage) == ("Hello", TokenUsage(5, 42, thinking=40))


def test_thoughts_that_ate_the_limit_are_told(gemini: Make) -> None:
    """The caller learns how many tokens went where."""
    eaten = document("", "MAX_TOKENS", {"promptTokenCount": 5, "thoughtsTokenCount": 64, "totalTokenCount": 69})
    failure = ask(gemini, sent(json.dumps(eaten))).failure
    assert isinstance(failure, MaxOutputTokensTooSmall)
    assert "64 tokens on thoughts" in failure.message


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 9}, TokenUsage(5, 11, thinking=9)),
        ({"promptTokenCount": 5, "toolUsePromptTokenCount": 3, "totalTokenCount": 10}, TokenUsage(8, 2)),
        ({"candidatesTokenCount": 2, "totalTokenCount": 7}, TokenUsage(5, 2)),
        ({"candidatesTokenCount": 2}, TokenUsage(0, 2)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 40, "totalTokenCount": 6}, TokenUsage(5, 40)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 5}, TokenUsage(5, 2)),
        ({"promptTokenCount": 5, "candidatesTokenCount": -2, "totalTokenCount": 9}, TokenUsage(5, 4)),
        ({"promptTokenCount": -5, "candidatesTokenCount": 2, "totalTokenCount": 9}, TokenUsage(7, 2)),
        ({"promptTokenCount": 5, "cachedContentTokenCount": 4, "totalTokenCount": 7}, TokenUsage(5, 2, 4)),
    ],
)
def test_every_token_is_counted_once(gemini: Make, usage: dict[str, int], expected: TokenUsage) -> None:
    """What is missing, negative or less than its parts comes from the other counts; what tools gave in is input."""
    assert ask(gemini, sent(json.dumps(document(usage=usage)))).usage == expected


# Errors inside a 200


def test_an_error_inside_a_200_means_what_it_says(gemini: Make) -> None:
    """Overloaded is overloaded: tried again, nothing billed, and the wait is Gemini's."""
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"}
    failure = failure_of(gemini, sent(json.dumps(error(503, "UNAVAILABLE", wait))))
    assert type(failure) is UpstreamUnavailable
    assert (failure.retry, failure.wait, failure.maybe_billed) == (Retry.YES, 3.0, False)


@pytest.mark.parametrize("kind", ["array", "events"])
def test_an_error_that_begins_a_stream_means_what_it_says(gemini: Make, kind: str) -> None:
    """In both forms of a stream."""
    raw = json.dumps(error(503, "UNAVAILABLE"))
    step = sent(f"[{raw}]") if kind == "array" else sent(f"data: {raw}\n\n", EVENTS)
    with ScriptedGemini(step) as server, pytest.raises(UpstreamUnavailable) as raised:
        list(gemini(server.url).stream(ASK, gap_seconds=10, deadline=time.monotonic() + 20))
    assert (raised.value.retry, raised.value.maybe_billed) == (Retry.YES, False)


# Streams in both forms


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_a_stream_of_events_is_read(gemini: Make, end: str) -> None:
    """Whichever line ends the server uses; comments and other fields are passed over, and OpenAI's end is none."""
    chunks = [document("one ", None), document("two"), "[DONE]"]
    data = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    body = f": hello{end}" + "".join(f"event: message{end[: len(end) // 2]}data: {each}{end}" for each in data)
    deltas, answer = read_stream(gemini, sent(body, EVENTS))
    assert (deltas, answer.text, answer.failure) == (["one ", "two"], "one two", None)


def test_a_stream_of_events_that_breaks_off_is_not_whole(gemini: Make) -> None:
    """The last event has no end, though it says STOP."""
    with ScriptedGemini(sent(f"data: {json.dumps(document())}", EVENTS)) as server:
        answer = gemini(server.url).stream(ASK, gap_seconds=10, deadline=time.monotonic() + 20)
        with pytest.raises(UpstreamInvalidAnswer):
            list(answer)


def test_text_after_a_stop_belongs_to_the_answer(gemini: Make) -> None:
    """Older models and gateways say STOP in each chunk, or in an empty first one."""
    chunks = [document("", "STOP"), document("one "), document("two")]
    deltas, answer = read_stream(gemini, sent(json.dumps(chunks)))
    assert (deltas, answer.failure) == (["one ", "two"], None)


# The endpoint


@pytest.mark.parametrize("path", ["/gemini", "/gemini/", "/a/b"])
def test_an_endpoint_may_have_a_path(gemini: Make, path: str) -> None:
    """It comes before the API's own path, plain and streamed."""
    with ScriptedGemini(text("one"), text("two")) as server:
        client = gemini(server.url + path)
        assert client.generate(ASK, deadline=time.monotonic() + 20).text == "one"
        assert list(client.stream(ASK, gap_seconds=10, deadline=time.monotonic() + 20)) == ["two"]


# Waits and causes

QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@pytest.mark.parametrize(
    ("details", "header", "wait"),
    [
        ([], "45", 45.0),
        ([], " 45 ", 45.0),
        ([{"@type": INFO, "metadata": {"quotaResetDelay": "2h57m16.9s"}}], None, 3600.0),
        ([{"@type": INFO, "metadata": {"quotaResetDelay": "1m30s"}}], None, 90.0),
        ([], "0", 0.5),
        ([], "soon", None),
    ],
)
def test_every_form_of_a_wait_is_understood(
    gemini: Make, details: list[dict[str, Any]], header: str | None, wait: float | None
) -> None:
    """Seconds with blanks around them, Go's durations; nothing counts as half a second."""
    headers = {} if header is None else {"Retry_After": header}
    failure = failure_of(gemini, sent(json.dumps(error(429, "X", *details)), code=429, **headers))
    assert failure.wait == wait


def test_a_wait_may_be_a_date() -> None:
    """RFC 9110, section 10.2.3; one that has passed asks for nothing."""
    assert parse_retry_after(formatdate(1045, usegmt=True), lambda: 1000.0) == 45.0
    assert parse_retry_after(formatdate(900, usegmt=True), lambda: 1000.0) == 0.0
    assert parse_retry_after("Fri, 99 Nov 2026 99:99:99 GMT", lambda: 1000.0) is None


@pytest.mark.parametrize(
    "detail",
    [
        {"@type": QUOTA, "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]},
        {"@type": INFO, "metadata": {"quota_limit": "GenerateRequestsPerDay"}},
        {"@type": INFO, "reason": "PerDayLimit"},
    ],
)
def test_a_days_quota_is_known_wherever_it_stands(gemini: Make, detail: dict[str, Any]) -> None:
    """It is not tried again, and its callers are sent away for an hour."""
    failure = failure_of(gemini, sent(json.dumps(error(429, "RESOURCE_EXHAUSTED", detail)), code=429))
    assert (failure.retry, failure.retry_after) == (Retry.NEVER, 3600.0)


@pytest.mark.parametrize(
    "body",
    [
        error(429, "X", message="Quota exceeded for metric: requests, limit: 0, model: gemini"),
        error(429, "X", message="Your prepayment credits are depleted."),
        error(429, "X", {"@type": QUOTA, "violations": [{"quotaId": "PerMinute", "quotaValue": "0"}]}),
    ],
)
def test_what_waiting_cannot_help_is_asked_once(gemini: Make, body: dict[str, Any]) -> None:
    """And promises no time."""
    failure = failure_of(gemini, sent(json.dumps(body), code=429))
    assert (type(failure), failure.retry, failure.wait) == (QuotaExhausted, Retry.NEVER, None)
    assert failure.retry_after is None or failure.retry_after >= 60


def test_a_request_time_out_may_be_sent_again(gemini: Make) -> None:
    """408 (RFC 9110, section 15.5.9)."""
    failure = failure_of(gemini, status(408))
    assert (type(failure), failure.retry) == (UpstreamTimeout, Retry.YES)


def test_a_region_that_is_not_served_has_its_own_sentence(gemini: Make) -> None:
    """Nothing is wrong with the request, and the log names Google's word."""
    body = error(400, "FAILED_PRECONDITION", message="User location is not supported for the API use.")
    failure = failure_of(gemini, sent(json.dumps(body), code=400))
    assert type(failure) is UpstreamRejected
    assert "region" in failure.message
    assert failure.cause_words == ("400", "FAILED_PRECONDITION")


def test_the_causes_words_quote_nobody(gemini: Make) -> None:
    """Fixed words pass, sentences do not."""
    details: list[dict[str, Any]] = [
        {"@type": INFO, "reason": "RATE_LIMIT_EXCEEDED"},
        {"@type": INFO, "reason": "tell me about my secret prompt"},
        {"@type": QUOTA, "violations": [{"quotaId": "GenerateRequestsPerMinute"}]},
    ]
    body = error(429, "RESOURCE_EXHAUSTED", *details, message="secret prompt")
    failure = failure_of(gemini, sent(json.dumps(body), code=429))
    assert failure.cause_words == ("429", "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED", "GenerateRequestsPerMinute")


def test_a_lost_connection_names_its_kind(gemini: Make) -> None:
    """The kinds of the errors, which quote nothing."""
    with pytest.raises(UpstreamFailure) as raised:
        gemini("http://127.0.0.1:9").generate(ASK, deadline=time.monotonic() + 20)
    assert "NewConnectionError" in raised.value.cause_words


# Without the SDK


def test_without_the_sdk_nothing_of_it_is_loaded() -> None:
    """A call over plain JSON needs neither protobuf nor grpc nor Google's packages."""
    script = (
        "import sys, time\n"
        "from mtllm.gemini.client import Gemini\n"
        "from mtllm.domain.completion import Instruction\n"
        "with Gemini(api_key='k', model='m', endpoint=sys.argv[1], kind='rest') as gemini:\n"
        "    print(gemini.generate(Instruction('x', 0.5, 10), deadline=time.monotonic() + 20).text)\n"
        "print([name for name in sys.modules if name.startswith(('google.', 'grpc', 'proto'))])\n"
    )
    with ScriptedGemini(text("Hello")) as server:
        run = subprocess.run(
            [sys.executable, "-c", script, server.url],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.stdout.splitlines() == ["Hello", "[]"], run.stderr
