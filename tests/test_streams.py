"""Streamed answers, from Gemini's wire to the caller's: what passes on when, how each end looks, and what it costs."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pytest

from app import Api
from mtllm.gemini.client import Gemini
from mtllm.http import sse
from mtllm.ledger.ledger import ExportRow
from tests.support.scripted_gemini import (
    CUT,
    IDLE,
    Fault,
    ScriptedGemini,
    Step,
    after,
    blocked_prompt,
    finished,
    hang,
    status,
    stream,
    text,
)
from tests.support.serving import EventStream, eventually, get, post, serving

TEXT = "/api/v1/generate/text"
CODE = "/api/v1/generate/code"
CLASSIFY = "/api/v1/classify/text"
ASK = {"prompt": "Tell me."}
SHORT, SLACK = 0.4, 0.3
"""Seconds until a silent Gemini is given up, and how much later its caller may learn of it."""
PRICES = (100, 400)
"""Nano-dollars per input and output token of the default model."""

MakeApp = Callable[..., Api]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The SDK's import takes longer than the deadlines of these tests."""
    with Gemini(api_key="key", model="model") as client:
        client.warm_up()


class Service:
    """Starts the service in real time, as often as it is called, and tells the port; `app` is the latest one."""

    app: Api

    def __init__(self, make_app: MakeApp, running: ExitStack) -> None:
        self._make_app = make_app
        self._running = running

    def __call__(self, *, threads: int = 8, look_ahead: int = 1, **settings: str) -> int:
        self.app = self._make_app(real_time=True, threads=threads, **settings)
        return self._running.enter_context(serving(self.app, threads=threads, look_ahead=look_ahead))


@pytest.fixture
def service(make_app: MakeApp) -> Iterator[Service]:
    with ExitStack() as running:
        yield Service(make_app, running)


def rows(app: Api) -> list[ExportRow]:
    app.service.ledger.flush()
    return list(app.service.ledger.export(0, time.time() + 60))


def lines(app: Api, log: str) -> list[dict[str, Any]]:
    app.service.logger.flush()
    path: Path = app.settings.log_dir / log
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def settled(app: Api) -> ExportRow:
    """The one attempt of the ledger, once it has ended and its place is free again."""
    assert eventually(lambda: app.service.admission.state().in_use == 0 and rows(app))
    (row,) = rows(app)
    return row


def served_in_full(port: int, body: dict[str, Any] = ASK, path: str = TEXT) -> list[tuple[str, Any]]:
    with EventStream(port, path, body) as answer:
        assert answer.response.status == 200
        return answer.rest()


# Answers


def test_deltas_pass_on_as_gemini_sends_them(service: Service, gemini: ScriptedGemini) -> None:
    """Each is with the caller while Gemini still holds the next, under either way of starting."""
    for look_ahead in (0, 1):
        port, go_on = service(look_ahead=look_ahead, response_cache_ttl_seconds="0"), Semaphore(0)
        gemini.answers(stream("one ", go_on, "two ", go_on, "three"))
        with EventStream(port, TEXT, ASK) as answer:
            assert answer.next() == ("delta", "one ")
            go_on.release()
            assert answer.next() == ("delta", "two ")
            go_on.release()
            assert answer.next() == ("delta", "three")
            assert answer.next()[0] == "done"
            assert answer.next() == ("end", None)


def test_the_cost_of_a_miss_comes_with_its_end(service: Service, gemini: ScriptedGemini) -> None:
    """Headers have zeros and X-Cost-Pending; `done` has the whole answer, its usage and its cost."""
    port = service()
    gemini.answers(stream("Hello ", "to you", thoughts=20))
    with EventStream(port, TEXT, ASK) as answer:
        headers = answer.response.headers
        events = answer.rest()
    assert headers["Content-Type"].startswith("text/event-stream")
    assert {headers[f"X-Cost-{part}"] for part in ("Input", "Output", "Total")} == {"0.000000"}
    pending = [headers[name] for name in ("X-Cost-Pending", "X-Cost-Nanodollars", "X-Tokens-Output", "X-Cached")]
    assert pending == ["true", "0", "0", "false"]
    used = gemini.delivered
    nanodollars = used.prompt * PRICES[0] + (used.candidates + used.thoughts) * PRICES[1]
    assert events[:-1] == [("delta", "Hello "), ("delta", "to you")]
    assert events[-1] == (
        "done",
        {
            "generated_text": "Hello to you",
            "model": "gemini-2.5-flash-lite",
            "finish_reason": "stop",
            "usage": {
                "input_tokens": used.prompt,
                "output_tokens": used.total - used.prompt,
                "source": "gemini",
                "thinking_tokens": 20,
            },
            "cost": {
                "input": f"{used.prompt * PRICES[0] / 1e9:.6f}",
                "output": f"{(used.total - used.prompt) * PRICES[1] / 1e9:.6f}",
                "total": f"{nanodollars / 1e9:.6f}",
                "nanodollars": nanodollars,
            },
            "cached": False,
            "request_id": headers["X-Request-ID"],
        },
    )


def test_a_finished_stream_is_kept_and_a_hit_streams(service: Service, gemini: ScriptedGemini) -> None:
    """To streams and plain requests alike, with the headers of a hit; Gemini is asked once."""
    port = service()
    gemini.answers(stream("kept ", "words"))
    done = served_in_full(port)[-1][1]
    with EventStream(port, TEXT, ASK) as again:
        headers, events = again.response.headers, again.rest()
    plain = post(port, TEXT, ASK)
    assert headers["X-Cached"] == plain.headers["X-Cached"] == "true"
    assert headers["X-Cost-Total"] == "0.000000"
    assert headers["X-Cost-Pending"] is None
    assert headers["X-Tokens-Output"] == str(done["usage"]["output_tokens"])
    assert headers["Cache-Status"].startswith("mtllm; hit; ttl=")
    assert "".join(told for kind, told in events if kind == "delta") == plain.json["generated_text"] == "kept words"
    assert events[-1] == (
        "done",
        done
        | {"cost": dict.fromkeys(("input", "output", "total"), "0.000000") | {"nanodollars": 0}}
        | {"cached": True, "request_id": headers["X-Request-ID"]},
    )
    assert gemini.count == 1


def test_an_answer_kept_by_a_plain_request_streams(service: Service, gemini: ScriptedGemini) -> None:
    """`stream` is no part of the key."""
    port = service()
    assert post(port, TEXT, ASK).headers["X-Cached"] == "false"
    with EventStream(port, TEXT, ASK, Cache_Control="only-if-cached") as answer:
        assert answer.response.headers["X-Cached"] == "true"
    assert gemini.count == 1


def test_code_streams_without_its_fence_first_and_on_a_hit(service: Service, gemini: ScriptedGemini) -> None:
    """Whoever shows deltas shows the code alone."""
    gemini.answers(stream("```py", "thon\nx = 1\n", "```"))
    port = service()
    for _ in ("paid", "hit"):
        events = served_in_full(port, path=CODE)
        assert [told for kind, told in events if kind == "delta"] == ["x = 1"]
        assert events[-1][1]["generated_code"] == "x = 1"


def test_any_text_survives(service: Service, gemini: ScriptedGemini) -> None:
    """Line ends, events' own syntax and characters of several bytes are text; so is talk of errors."""
    deltas = ["data: x\n\nevent: done\n\n", "\r\n", "🎈\u2028ü", '429 rate limit "error"']
    gemini.answers(stream(*deltas))
    events = served_in_full(service())
    assert [told for kind, told in events if kind == "delta"] == deltas
    assert events[-1][1]["generated_text"] == "".join(deltas)


def test_classification_does_not_stream(service: Service) -> None:
    """400 that names the field."""
    refused = post(service(), CLASSIFY, {"text": "x", "categories": ["a", "b"], "stream": True})
    assert (refused.status, refused.json["details"][0]["field"]) == (400, "stream")


def test_only_if_cached_asks_nobody(service: Service, gemini: ScriptedGemini) -> None:
    """504 `not_cached`."""
    assert post(service(), TEXT, ASK | {"stream": True}, Cache_Control="only-if-cached").code == "not_cached"
    assert gemini.count == 0


def test_what_the_ends_told_adds_up_to_the_ledger(service: Service, gemini: ScriptedGemini) -> None:
    """Reported, thought, estimated and retried ones, streamed or plain."""
    port = service()
    gemini.answers(
        stream("a", "b"),
        stream("c", thoughts=300),
        stream("d ", "e ", "f", usage="never"),
        status(503, retry_delay="0.01s"),
        stream("g", usage="last", cached=40),
        text("h"),
    )
    told = [served_in_full(port, {"prompt": prompt})[-1][1] for prompt in "wxyz"]
    plain = int(post(port, TEXT, {"prompt": "plain"}).headers["X-Cost-Nanodollars"])
    booked = rows(service.app)
    assert [row.status for row in booked] == ["ok", "ok", "ok", "upstream_unavailable", "ok", "ok"]
    assert sum(done["cost"]["nanodollars"] for done in told) + plain == sum(row.total_cost for row in booked)
    assert [bool(done.get("estimated")) for done in told] == [False, False, True, False]
    assert float(get(port, "/health").headers["X-Cost-Overall"]) == pytest.approx(
        sum(row.total_cost for row in booked) / 1e9, abs=1e-6
    )


# Ends before the first byte


@pytest.mark.parametrize(
    ("step", "expected", "billed"),
    [
        (status(429, retry_delay="3600s"), (503, "upstream_unavailable"), False),
        (status(404), (502, "model_unavailable"), False),
        (blocked_prompt(), (422, "content_blocked"), True),
        (finished("MAX_TOKENS", thoughts=9), (422, "max_output_tokens_too_small"), True),
        (finished("SAFETY"), (422, "content_blocked"), True),
        (finished("A_NEW_ONE"), (502, "upstream_invalid_answer"), True),
    ],
)
def test_an_error_before_the_first_byte_is_an_ordinary_one(
    service: Service, gemini: ScriptedGemini, step: Step, expected: tuple[int, str], billed: bool
) -> None:
    """With status, JSON and true costs in the headers; nothing pends, nothing is kept."""
    gemini.answers(step)
    port = service()
    answer = post(port, TEXT, ASK | {"stream": True})
    assert (answer.status, answer.code) == expected
    assert answer.headers["X-Cost-Pending"] is None
    row = settled(service.app)
    assert (row.status, row.total_cost) == (expected[1], int(answer.headers["X-Cost-Nanodollars"]))
    assert bool(row.total_cost) is billed
    assert post(port, TEXT, ASK).headers["X-Cached"] == "false"


@pytest.mark.parametrize(
    ("script", "seconds"),
    [([hang()], SHORT), ([stream(IDLE)], SHORT), ([after(0.5, status(503, retry_delay="0.05s")), hang()], 1.0)],
    ids=["hang", "headers only", "hang after a retry"],
)
def test_the_first_byte_has_its_time_however_often_it_is_tried(
    service: Service, gemini: ScriptedGemini, script: list[Step], seconds: float
) -> None:
    """GEMINI_TIMEOUT_SECONDS for all attempts together; the last of them is counted as abandoned."""
    gemini.answers(*script)
    port = service(gemini_timeout_seconds=f"{seconds}")
    answer = post(port, TEXT, ASK | {"stream": True})
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert answer.seconds < seconds + SLACK
    assert service.app.service.admission.state().abandoned == 1


def test_a_stream_is_retried_until_its_first_byte(service: Service, gemini: ScriptedGemini) -> None:
    """The caller sees nothing of it but the wait."""
    gemini.answers(status(503, retry_delay="0.01s"), stream("at ", "last"))
    assert served_in_full(service())[-1][1]["generated_text"] == "at last"
    assert [line["attempts"] for line in lines(service.app, "performance.log")] == [2]


def test_an_expired_answer_streams_while_gemini_fails(service: Service, gemini: ScriptedGemini) -> None:
    """With RESPONSE_CACHE_STALE_SECONDS."""
    port = service(response_cache_ttl_seconds="0.05", response_cache_stale_seconds="60")
    post(port, TEXT, ASK)
    assert eventually(lambda: post(port, TEXT, ASK, Cache_Control="only-if-cached").status == 504)
    gemini.answers(status(400))
    with EventStream(port, TEXT, ASK) as answer:
        assert answer.response.headers["Cache-Status"] == "mtllm; hit; ttl=-1"
        assert answer.rest()[-1][0] == "done"


# Ends in mid-stream


@pytest.mark.parametrize(
    ("end", "code", "seconds"),
    [
        (Fault(503), "upstream_unavailable", 0.0),
        (Fault(500), "upstream_error", 0.0),
        (CUT, "upstream_error", 0.0),
        (IDLE, "upstream_timeout", 1.0),
    ],
    ids=["503", "500", "cut", "idle"],
)
@pytest.mark.parametrize("usage", ["each", "never"])
def test_an_error_in_mid_stream_is_an_event(
    service: Service, gemini: ScriptedGemini, end: Any, code: str, seconds: float, usage: str
) -> None:
    """The JSON of any error; what was generated is paid for, by estimate where Gemini had not said, and not kept."""
    gemini.answers(stream("some words ", "came", end, usage=usage))
    port = service(gemini_timeout_seconds="1")  # time enough for two deltas on a busy machine
    with EventStream(port, TEXT, ASK, X_Request_ID="mine") as answer:
        assert [answer.next(), answer.next()] == [("delta", "some words "), ("delta", "came")]
        silent_since = time.monotonic()
        kind, told = answer.next()
        assert time.monotonic() - silent_since < seconds + SLACK
        assert answer.next() == ("end", None)
    assert (kind, told["code"], told["request_id"]) == ("error", code, "mine")
    row = settled(service.app)
    assert (row.status, row.estimated) == (code, usage == "never")
    assert row.total_cost == row.input_tokens * PRICES[0] + row.output_tokens * PRICES[1] > 0
    assert row.output_tokens >= 3
    (error,) = lines(service.app, "api_errors.log")
    assert (error["code"], error["status"]) == (code, 200)
    assert post(port, TEXT, ASK, Cache_Control="only-if-cached").code == "not_cached"


def test_an_answer_refused_in_mid_stream(service: Service, gemini: ScriptedGemini) -> None:
    """Words came, then Gemini stopped for RECITATION: `content_blocked`, billed, not kept."""
    gemini.answers(stream("To be or ", "not to be", finish="RECITATION"))
    port = service()
    events = served_in_full(port)
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "content_blocked")
    assert settled(service.app).total_cost > 0
    assert post(port, TEXT, ASK, Cache_Control="only-if-cached").code == "not_cached"


def test_no_stream_lives_longer_than_it_may(service: Service, gemini: ScriptedGemini) -> None:
    """STREAM_MAX_SECONDS, though Gemini never pauses for long."""
    gemini.answers(stream(*[beat for number in range(100) for beat in (f"{number} ", 0.05)]))
    port, begun = service(stream_max_seconds=f"{2 * SHORT}"), time.monotonic()
    events = served_in_full(port)
    assert (events[-1][0], events[-1][1]["code"]) == ("error", "upstream_timeout")
    assert time.monotonic() - begun < 2 * SHORT + SLACK
    assert settled(service.app).total_cost > 0


def test_a_ledger_that_is_held_up_holds_up_no_caller(service: Service, gemini: ScriptedGemini) -> None:
    """What is not settled in time is no answer: the stream ends as timed out, and is settled once that can be."""
    go_on = Event()
    gemini.answers(stream("all ", go_on, "there"))
    port = service(stream_max_seconds=f"{2 * SHORT}")
    with EventStream(port, TEXT, ASK) as answer:
        assert answer.next() == ("delta", "all ")
        with closing(sqlite3.connect(service.app.settings.ledger_location, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            go_on.set()
            assert answer.next() == ("delta", "there")
            kind, told = answer.next()
            other.execute("ROLLBACK")
    assert (kind, told["code"]) == ("error", "upstream_timeout")
    assert settled(service.app).status == "ok"


def test_silence_is_broken_by_comments(
    service: Service, gemini: ScriptedGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them brings the headers; from then on an error is an event."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    fail = Event()
    gemini.answers(after(fail, status(400)))
    with EventStream(service(), TEXT, ASK) as answer:
        assert answer.response.headers["X-Cost-Pending"] == "true"
        assert [answer.next() for _ in range(3)] == [("comment", "keep-alive")] * 3
        fail.set()
        ((kind, told),) = answer.rest()
    assert (kind, told["code"]) == ("error", "upstream_rejected")


# Clients that go away


@pytest.mark.parametrize("usage", ["each", "never"])
@pytest.mark.parametrize("look_ahead", [0, 1])
def test_a_client_that_leaves_ends_geminis_side(
    service: Service, gemini: ScriptedGemini, look_ahead: int, usage: str
) -> None:
    """At the next chunks at the latest: the call is ended, what came is paid for, the place is free, the log knows."""
    gemini.answers(
        stream("Once upon a time ", *[beat for _ in range(400) for beat in ("and then ", 0.05)], usage=usage)
    )
    port = service(look_ahead=look_ahead)
    with EventStream(port, TEXT, ASK) as answer:
        assert answer.next()[0] == "delta"
    assert gemini.wait_for_departures(1)
    row = settled(service.app)
    assert (row.status, row.estimated) == ("abandoned", usage == "never")
    assert row.total_cost == row.input_tokens * PRICES[0] + row.output_tokens * PRICES[1] > 0
    app = service.app
    assert eventually(lambda: lines(app, "api_errors.log"))
    (logged,) = lines(app, "cost_tracking.log")
    assert (logged["total_cost"] * 1e9, lines(app, "api_errors.log")[0]["code"]) == (row.total_cost, "abandoned")
    assert app.service.admission.state().abandoned == 1
    assert post(port, TEXT, ASK, Cache_Control="only-if-cached").code == "not_cached"


def test_a_silent_stream_sees_its_client_leave(service: Service, gemini: ScriptedGemini) -> None:
    """Under `python app.py`, while Gemini says nothing at all: before the first byte, and after it."""
    gemini.answers(hang(), stream("first ", IDLE))
    port = service()
    app = service.app
    with EventStream(port, TEXT, ASK):
        assert gemini.wait_for_calls(1)
    with EventStream(port, TEXT, ASK) as answer:
        assert answer.next() == ("delta", "first ")
    assert eventually(lambda: app.service.admission.state().in_use == 0, seconds=5)
    before, after_it = rows(app)
    assert (before.status, before.total_cost, before.reserved > 0) == ("abandoned", 0, True)
    assert (after_it.status, after_it.total_cost > 0) == ("abandoned", True)


def test_under_waitress_serve_a_client_that_left_early_costs_one_time_out(
    service: Service, gemini: ScriptedGemini
) -> None:
    """Nothing tells that it left, so a silent Gemini is waited for; then the place is free again."""
    gemini.answers(hang())
    port = service(look_ahead=0, gemini_timeout_seconds=f"{SHORT}")
    with EventStream(port, TEXT, ASK):
        assert gemini.wait_for_calls(1)
    assert settled(service.app).status == "upstream_timeout"


def test_a_client_that_leaves_while_a_retry_waits(service: Service, gemini: ScriptedGemini) -> None:
    """Ends the waiting; Gemini is not asked again."""
    gemini.answers(status(503, retry_delay="20s"))
    port = service()
    app = service.app
    with EventStream(port, TEXT, ASK):
        assert gemini.wait_for_calls(1)
        assert eventually(lambda: rows(app)[0].status == "upstream_unavailable")
    assert eventually(lambda: app.service.admission.state().in_use == 0, seconds=5)
    assert (gemini.count, [row.status for row in rows(app)]) == (1, ["upstream_unavailable"])


def test_a_response_that_is_closed_unread_ends_its_call(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """A server may close what it never began to send."""
    gemini.answers(stream("first ", IDLE))
    app = make_app(real_time=True)
    environ = app.test_request_context(TEXT, method="POST", json=ASK | {"stream": True}).request.environ
    body: Any = app.wsgi_app(environ, lambda *_: None)
    body.close()
    assert settled(app).status == "abandoned"
    assert app.lifecycle.in_flight == 0
    assert [line["code"] for line in lines(app, "api_requests.log")] == ["abandoned"]


# Places, logs, shutdown


def test_open_streams_take_places_and_hits_do_not_starve(service: Service, gemini: ScriptedGemini) -> None:
    """With three slots three streams may be open; the next miss is shed at once, hits and health are served."""
    bounds = {"gemini_max_concurrency": "3", "gemini_queue_seconds": "0"}
    port, finish = service(threads=4, look_ahead=0, **bounds), Event()
    post(port, TEXT, {"prompt": "known"})
    gemini.answers(*[stream("open ", finish, "end")] * 3)
    with ExitStack() as open_streams:
        answers = [open_streams.enter_context(EventStream(port, TEXT, {"prompt": f"{n}"})) for n in range(3)]
        assert [answer.next() for answer in answers] == [("delta", "open ")] * 3
        for body in ({"prompt": "more"}, {"prompt": "more", "stream": True}):
            refused = post(port, TEXT, body)
            assert (refused.status, refused.code, refused.headers["Retry-After"]) == (503, "overloaded", "1")
        assert post(port, TEXT, {"prompt": "known"}).headers["X-Cached"] == "true"
        assert served_in_full(port, {"prompt": "known"})[-1][0] == "done"
        assert get(port, "/health").status == 200
        finish.set()
        assert [answer.rest()[-1][0] for answer in answers] == ["done"] * 3
    assert post(port, TEXT, {"prompt": "more"}).status == 200


def test_the_log_waits_for_the_end(service: Service, gemini: ScriptedGemini) -> None:
    """One line, written when the response closes, with the bytes that left and the cost that came out."""
    port, finish = service(), Event()
    app = service.app
    gemini.answers(stream("begun ", finish, "ended"))
    with EventStream(port, TEXT, ASK) as answer:
        answer.next()
        assert lines(app, "api_requests.log") == []
        finish.set()
        done = answer.rest()[-1][1]
    assert eventually(lambda: lines(app, "cost_tracking.log"))
    (cost,), (request,) = lines(app, "cost_tracking.log"), lines(app, "api_requests.log")
    assert cost["total_cost"] * 1e9 == pytest.approx(done["cost"]["nanodollars"])
    assert (request["status"], request["code"]) == (200, None)
    assert request["response_bytes"] > len(json.dumps(done))


@pytest.mark.parametrize("script", [[stream("first ", IDLE)], [hang()], [status(503, retry_delay="20s")]])
def test_closing_ends_the_streams_that_are_open(make_app: MakeApp, gemini: ScriptedGemini, script: list[Step]) -> None:
    """What came of them is on the books before the ledger closes; nothing waits for Gemini's time-out."""
    gemini.answers(*script)
    app = make_app(real_time=True)
    with serving(app) as port, EventStream(port, TEXT, ASK):
        assert gemini.wait_for_calls(1)
        assert eventually(lambda: rows(app))
        begun = time.monotonic()
        app.service.close()
        assert time.monotonic() - begun < 5
    assert app.service.admission.state().in_use == 0
