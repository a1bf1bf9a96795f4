"""The list of parts: what starts, ends and is asked in which order, and that one part's trouble stays its own."""

from __future__ import annotations

import threading

import pytest

from mtllm.logs.writer import RequestLogger
from mtllm.parts import OK, CheckResult, Parts, judge
from mtllm.wiring import Notices, Workers


@pytest.fixture
def told() -> list[str]:
    """What the parts did, in order."""
    return []


def add(parts: Parts, name: str, told: list[str]) -> str:
    """A part that tells what is done to it."""
    return parts.add(
        name,
        start=lambda part, threads: told.append(f"{part} starts with {threads}"),
        close=lambda part: told.append(f"{part} ends"),
    )


def test_parts_start_in_order_and_end_in_the_opposite_one(told: list[str]) -> None:
    """So that each may rely to its end on those that were made before it."""
    parts = Parts()
    add(parts, "first", told)
    add(parts, "second", told)
    assert not told
    parts.open(8)
    parts.close()
    assert told == ["first starts with 8", "second starts with 8", "second ends", "first ends"]


def test_a_part_comes_back_as_it_was_added() -> None:
    """An entry is an expression: the part goes on to those that need it."""
    part = object()
    assert Parts().add(part) is part


def test_parts_that_never_started_end_too(told: list[str]) -> None:
    """What was made but not opened may hold something."""
    parts = Parts()
    add(parts, "only", told)
    parts.close()
    assert told == ["only ends"]


def test_a_part_that_cannot_end_keeps_no_other_open(told: list[str]) -> None:
    """The trouble is raised once every other part has ended."""

    def fail(_part: str) -> None:
        raise OSError("the disk is gone")

    parts = Parts()
    add(parts, "first", told)
    parts.add("broken", close=fail)
    add(parts, "last", told)
    with pytest.raises(OSError, match="the disk is gone"):
        parts.close()
    assert told == ["last ends", "first ends"]


def test_only_one_of_many_first_requests_opens(told: list[str]) -> None:
    """The others wait until every part has started."""
    parts, start = Parts(), threading.Barrier(8)
    add(parts, "only", told)

    def ask() -> None:
        start.wait()
        parts.open(4)
        assert parts.is_open

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts.close()
    assert told == ["only starts with 4", "only ends"]


def test_a_start_that_fails_is_tried_again() -> None:
    """A list that has not started whole is not open."""
    problems = iter([OSError("not yet")])

    def start(_part: str, _threads: int) -> None:
        for problem in problems:
            raise problem

    parts = Parts()
    parts.add("late", start=start)
    with pytest.raises(OSError, match="not yet"):
        parts.open(4)
    assert not parts.is_open
    parts.open(4)
    assert parts.is_open
    parts.close()


def test_checks_are_asked_by_name_and_see_what_holds_now() -> None:
    """A check is given its part, each time that it is asked."""
    parts = Parts()
    full: list[int] = []
    parts.add(full, checks={"disk": lambda part: judge(not part, "it is full", otherwise="degraded")})
    assert {name: check() for name, check in parts.checks.items()} == {"disk": OK}
    full.append(1)
    assert parts.checks["disk"]() == CheckResult("degraded", "it is full")


def test_workers_take_nothing_before_they_are_open_and_after_they_are_shut() -> None:
    """A call that comes too early or too late is refused, not forgotten."""
    workers = Workers()
    workers.shutdown()
    with pytest.raises(RuntimeError):
        workers.submit(int)
    workers.open(1)
    assert workers.submit(int, "7").result(timeout=10) == 7
    workers.shutdown()
    with pytest.raises(RuntimeError):
        workers.submit(int)


class RememberingLogger(RequestLogger):
    """Keeps the events that it is told of, and writes nothing."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def operational(self, event: str, message: str, **_facts: object) -> None:
        """Remember the event."""
        self.events.append((event, message))


@pytest.fixture
def logger() -> RememberingLogger:
    """A log without files."""
    return RememberingLogger()


def test_what_is_noted_early_is_logged_when_the_service_opens(logger: RememberingLogger) -> None:
    """In order, once, and what comes later at once."""
    notices = Notices(logger)
    report = notices.reporter("redis")
    report("early")
    assert (notices.early, logger.events) == ([("redis", "early")], [])
    notices.open(4)
    report("late")
    assert (notices.early, logger.events) == ([], [("redis", "early"), ("redis", "late")])
