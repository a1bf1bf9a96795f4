"""The service as the user starts it, in processes of its own: under load, told to stop, and left by its clients."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from mtllm.ledger.ledger import ExportRow, open_ledger
from tests.support.scripted_gemini import IDLE, ScriptedGemini, after, hang, status, stream, text
from tests.support.serving import APP_PY, PATIENCE, WAITRESS_SERVE, EventStream, Process, eventually, get, listens, post

TEXT = "/api/v1/generate/text"
BOTH_WAYS = pytest.mark.parametrize("how", [APP_PY, WAITRESS_SERVE])

Start = Callable[..., Process]


@pytest.fixture
def start(environment: dict[str, str]) -> Start:
    """Prepares a process with settings by name; a test enters it."""

    def prepare(how: str, *, threads: int = 4, **settings: str) -> Process:
        given = {name.upper(): value for name, value in settings.items()}
        return Process(how, environment | {"RATE_LIMITS": ""} | given, threads=threads)

    return prepare


@pytest.fixture
def booked(environment: dict[str, str]) -> Callable[[], list[ExportRow]]:
    """What the ledger's file holds."""

    def rows() -> list[ExportRow]:
        ledger = open_ledger(Path(environment["DATA_DIR"]) / "ledger.sqlite3")
        try:
            return list(ledger.export(0, time.time() + 60))
        finally:
            ledger.close()

    return rows


@pytest.fixture
def logged(environment: dict[str, str]) -> Callable[[str], list[dict[str, Any]]]:
    """What a log file holds."""

    def lines(log: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(environment["LOG_DIR"]) / log).read_text().splitlines()]

    return lines


def refuses_tasks(port: int) -> bool:
    """Whether it drains by now."""
    return post(port, TEXT, {"prompt": "too late"}).status == 503


# Admission


@pytest.mark.parametrize(("how", "threads"), [(APP_PY, 32), (WAITRESS_SERVE, 4)])
def test_slow_calls_slow_down_nobody_else(start: Start, gemini: ScriptedGemini, how: str, threads: int) -> None:
    """With more than there are slots, and no line, the rest are shed at once; others see nothing of it."""
    bounds = {"gemini_max_concurrency": str(threads - 1), "gemini_queue_seconds": "0"}
    with start(how, threads=threads, **bounds) as service, ThreadPoolExecutor(2 * threads) as callers:
        post(service.port, TEXT, {"prompt": "known"})
        idle = _seconds_to_answer(service.port)
        gemini.gate.clear()
        slow = [callers.submit(post, service.port, TEXT, {"prompt": f"{n}"}) for n in range(2 * threads)]
        assert gemini.wait_for_calls(1 + threads - 1)
        shed = _done(slow, threads + 1)
        assert {(answer.status, answer.code, answer.headers["Retry-After"]) for answer in shed} == {
            (503, "overloaded", "1")
        }
        busy = _seconds_to_answer(service.port)
        assert get(service.port, "/stats").json["admission"]["in_use"] == threads - 1
        gemini.gate.set()
        served = [call.result() for call in slow if call.result() not in shed]
    assert [answer.status for answer in served] == [200] * (threads - 1)
    for path, seconds in busy.items():
        assert seconds < 2 * idle[path] + 0.02, path


def _seconds_to_answer(port: int) -> dict[str, float]:
    """The median of a hit, of health, and of the statistics."""

    def hit() -> float:
        answer = post(port, TEXT, {"prompt": "known"})
        assert answer.headers["X-Cached"] == "true"
        return answer.seconds

    asked: dict[str, Callable[[], float]] = {
        "hit": hit,
        "health": lambda: get(port, "/health").seconds,
        "stats": lambda: get(port, "/stats").seconds,
    }
    return {name: median(ask() for _ in range(15)) for name, ask in asked.items()}


def _done(calls: list[Future[Any]], count: int) -> list[Any]:
    """The answers of the first `count` to be answered."""
    enough = threading.Semaphore(0)
    for call in calls:
        call.add_done_callback(lambda _: enough.release())
    for _ in range(count):
        assert enough.acquire(timeout=PATIENCE)
    return [call.result() for call in calls if call.done()]


# Draining


@BOTH_WAYS
def test_what_is_in_flight_finishes_and_new_tasks_are_refused(
    start: Start, gemini: ScriptedGemini, booked: Any, logged: Any, how: str
) -> None:
    """Also a stream; then ledger and logs are whole, and the status is 0, however often it was told.

    A stream whose client had left before has been ended and paid for, and holds nothing up.
    """
    go_on, finish = threading.Event(), threading.Event()
    gemini.answers(stream(*[beat for _ in range(400) for beat in ("and then ", 0.05)], usage="never"))
    gemini.answers(after(go_on, text("plain")))
    with start(how) as service, ThreadPoolExecutor(1) as caller:
        with EventStream(service.port, TEXT, {"prompt": "left"}) as left:
            assert left.next() == ("delta", "and then ")
        assert gemini.wait_for_departures(1)
        plain = caller.submit(post, service.port, TEXT, {"prompt": "plain"})
        assert gemini.wait_for_calls(2)
        gemini.answers(stream("begun ", finish, "ended"))
        with EventStream(service.port, TEXT, {"prompt": "streamed"}) as answer:
            assert answer.next() == ("delta", "begun ")
            service.signal()
            assert eventually(lambda: refuses_tasks(service.port))
            service.signal()
            refused = post(service.port, TEXT, {"prompt": "new"})
            assert (refused.status, refused.code) == (503, "draining")
            assert int(refused.headers["Retry-After"]) >= 1
            assert get(service.port, "/health").status == 200
            assert get(service.port, "/api/v1/health/ready").json["checks"]["draining"]["status"] == "fail"
            go_on.set()
            assert plain.result().json["generated_text"] == "plain"
            finish.set()
            assert answer.rest()[-1][1]["generated_text"] == "begun ended"
        assert service.wait() == 0
        assert not listens(service.port)
        assert "Traceback" not in service.errors()
    assert [(row.status, row.total_cost > 0) for row in booked()] == [("abandoned", True), ("ok", True), ("ok", True)]
    assert [line["path"] for line in logged("cost_tracking.log")] == [TEXT] * 3
    assert {line["code"] for line in logged("api_errors.log")} >= {"draining"}


@pytest.mark.long
@BOTH_WAYS
def test_bytes_that_have_not_left_are_waited_for(start: Start, gemini: ScriptedGemini, how: str) -> None:
    """A slow reader gets all of an answer that was made before the signal."""
    said = "x" * 5_000_000
    gemini.answers(text(said))
    with start(how, response_cache_max_bytes="100") as service, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(PATIENCE)
        reader.connect(("127.0.0.1", service.port))
        body = b'{"prompt": "long"}'
        head = f"POST {TEXT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader.sendall(head.encode() + body)
        got = reader.recv(1000)
        service.signal()
        assert eventually(lambda: refuses_tasks(service.port))
        while piece := reader.recv(1_000_000):
            got += piece
        assert json.loads(got.partition(b"\r\n\r\n")[2])["generated_text"] == said
        assert service.wait() == 0


@BOTH_WAYS
def test_a_service_that_nobody_asked_anything_stops(start: Start, how: str) -> None:
    """At once, with status 0."""
    with start(how) as service:
        service.signal()
        assert service.wait() == 0
        assert "Traceback" not in service.errors()


@BOTH_WAYS
def test_a_hung_gemini_holds_the_end_up_no_longer_than_it_may(
    start: Start, gemini: ScriptedGemini, booked: Any, how: str
) -> None:
    """DRAIN_SECONDS after the signal the calls are cut, a retry's wait ends, and what is known of them is booked."""
    gemini.answers(hang(), stream("words ", IDLE), status(503, retry_delay="25s"))
    with start(how, threads=8, drain_seconds="0.5") as service, ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(_given_up, service.port, {"prompt": "hang"})]
        assert gemini.wait_for_calls(1)
        with EventStream(service.port, TEXT, {"prompt": "stream"}) as answer:
            assert answer.next() == ("delta", "words ")
            calls.append(callers.submit(_given_up, service.port, {"prompt": "retry"}))
            assert gemini.wait_for_calls(3)
            begun = time.monotonic()
            service.signal()
            assert service.wait() == 0
            assert 0.5 <= time.monotonic() - begun < 5
        wait(calls)
    assert [(row.status, row.reserved > 0) for row in booked()] == [
        ("draining", True),
        ("draining", True),
        ("upstream_unavailable", False),
    ]


def _given_up(port: int, body: dict[str, str]) -> None:
    """Ask, and do not mind when the service goes away meanwhile."""
    with suppress(OSError):
        post(port, TEXT, body)


def test_ctrl_c_is_a_way_to_stop(start: Start) -> None:
    """`python app.py` leaves with status 0 and without a traceback."""
    with start(APP_PY) as service:
        assert get(service.port, "/health").status == 200
        service.signal(signal.SIGINT)
        assert service.wait() == 0
        assert "Traceback" not in service.errors()


@pytest.fixture
def as_documented(environment: dict[str, str]) -> Process:
    """The user's own production command, with its four threads, and otherwise the defaults."""
    return Process(WAITRESS_SERVE, environment | {"RATE_LIMITS": "", "THREADS": "128"}, threads=4)


@pytest.mark.parametrize("callers", [8, 16, 30, 64])
def test_nobody_is_refused_who_could_have_waited_a_moment(
    as_documented: Process, gemini: ScriptedGemini, callers: int
) -> None:
    """All callers are at Gemini at once, a hit and health are served beside them, and all get their answer."""
    with as_documented as service, ThreadPoolExecutor(callers) as asking:
        post(service.port, TEXT, {"prompt": "known"})
        gemini.gate.clear()
        calls = [asking.submit(post, service.port, TEXT, {"prompt": f"{n}"}) for n in range(callers)]
        assert gemini.wait_for_calls(1 + callers)
        assert post(service.port, TEXT, {"prompt": "known"}).headers["X-Cached"] == "true"
        assert get(service.port, "/health").status == 200
        gemini.gate.set()
        assert {call.result().status for call in calls} == {200}


def test_more_callers_than_slots_wait_in_line(as_documented: Process, gemini: ScriptedGemini) -> None:
    """The sixteen that find all 64 slots taken wait, say so in Server-Timing, and are answered."""
    with as_documented as service, ThreadPoolExecutor(80) as asking:
        post(service.port, TEXT, {"prompt": "known"})
        gemini.gate.clear()
        calls = [asking.submit(post, service.port, TEXT, {"prompt": f"{n}"}) for n in range(80)]
        assert gemini.wait_for_calls(1 + 64)
        assert eventually(lambda: get(service.port, "/stats").json["admission"]["queued"] == 16)
        gemini.gate.set()
        answers = [call.result() for call in calls]
        admission = get(service.port, "/stats").json["admission"]
    assert {answer.status for answer in answers} == {200}
    assert sum("queue;dur=0.0" not in answer.headers["Server-Timing"] for answer in answers) == 16
    assert (admission["waited"], admission["shed"], admission["queued"], admission["in_use"]) == (16, 0, 0, 0)


def test_open_streams_keep_nobody_from_working(as_documented: Process, gemini: ScriptedGemini) -> None:
    """Twenty streams that are silent between two deltas lend their threads: hits and health are served beside them."""
    finish = threading.Event()
    gemini.answers(*[stream("open ", finish, "end")] * 20)
    with as_documented as service, ExitStack() as streams:
        answers = [streams.enter_context(EventStream(service.port, TEXT, {"prompt": f"{n}"})) for n in range(20)]
        assert [answer.next() for answer in answers] == [("delta", "open ")] * 20
        assert get(service.port, "/health").status == 200
        finish.set()
        assert [answer.rest()[-1][0] for answer in answers] == ["done"] * 20
