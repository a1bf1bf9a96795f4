"""Admission: who gets a slot, who waits in line, who is refused, and what the refused are told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mtllm.domain.errors import Overloaded
from mtllm.resilience.admission import Admission
from tests.support.fakes import FakeClock
from tests.support.serving import eventually

FOREVER = 1e9
PATIENCE = 20.0


def test_slots_are_taken_and_given_back() -> None:
    """As many as there are, without a wait."""
    admission = Admission(2, threads=8)
    assert [admission.enter(FOREVER), admission.enter(FOREVER)] == [0.0, 0.0]
    with pytest.raises(Overloaded):
        admission.enter(FOREVER)
    admission.leave()
    assert admission.enter(FOREVER) == 0.0
    state = admission.state()
    assert (state.in_use, state.slots, state.shed) == (2, 2, 1)


def test_first_come_first_served() -> None:
    """Slots go to those in line in the order in which they came, whoever comes meanwhile."""
    admission = Admission(1, threads=8, queue_seconds=PATIENCE)
    admission.enter(FOREVER)
    served: list[int] = []

    def wait(number: int) -> None:
        assert admission.enter(FOREVER) > 0
        served.append(number)

    with ThreadPoolExecutor(4) as callers:
        for number in range(4):
            callers.submit(wait, number)
            assert eventually(lambda number=number: admission.state().queued == number + 1)
        for number in range(4):
            admission.leave()
            assert eventually(lambda number=number: len(served) == number + 1)
    assert served == [0, 1, 2, 3]
    state = admission.state()
    assert (state.in_use, state.queued, state.waited, state.shed) == (1, 0, 4, 0)


def test_the_wait_is_bounded() -> None:
    """By the line's own time, and by the caller's deadline."""
    clock = FakeClock()
    for queue_seconds, deadline in ((0.01, FOREVER), (PATIENCE, clock() + 0.01)):
        admission = Admission(1, threads=8, queue_seconds=queue_seconds, monotonic=clock)
        admission.enter(FOREVER)
        with pytest.raises(Overloaded):
            admission.enter(deadline)
        assert admission.state().queued == 0
    with pytest.raises(Overloaded):
        admission.enter(clock())


def test_one_thread_stays_free() -> None:
    """Slots, those in line and those who follow another's call: together one less than there are threads."""
    admission = Admission(1, threads=4, queue_seconds=PATIENCE)
    admission.enter(FOREVER)
    with ThreadPoolExecutor(1) as callers, admission.follow():
        waiting = callers.submit(admission.enter, FOREVER)
        assert eventually(lambda: admission.state().queued == 1)
        with pytest.raises(Overloaded):
            admission.enter(FOREVER)
        with pytest.raises(Overloaded), admission.follow():
            pass
        admission.leave()
        assert waiting.result(PATIENCE) > 0
    assert admission.state().following == 0


def test_a_refusal_tells_when_a_slot_comes_free() -> None:
    """From the rate at which they came free lately; a second where nothing is known yet, a minute at most."""
    clock = FakeClock()
    admission = Admission(1, threads=8, monotonic=clock)

    def told() -> float | None:
        with pytest.raises(Overloaded) as refused:
            admission.enter(FOREVER)
        return refused.value.retry_after

    admission.enter(FOREVER)
    assert told() == 1.0
    for _ in range(4):
        clock.advance(3.0)
        admission.leave()
        admission.enter(FOREVER)
    assert told() == pytest.approx(9 / 4)
    clock.advance(3600.0)
    assert told() == 60.0


def test_no_slot_is_lost_or_made_under_many_hands() -> None:
    """Whoever gives up at the moment when a slot is handed over either has it or leaves it to the next."""
    admission = Admission(3, threads=40, queue_seconds=0.001)
    running, most = [0], [0]
    lock = threading.Lock()

    def work(change: Callable[[int], None]) -> None:
        for _ in range(200):
            try:
                admission.enter(FOREVER)
            except Overloaded:
                continue
            change(1)
            change(-1)
            admission.leave()

    def change(by: int) -> None:
        with lock:
            running[0] += by
            most[0] = max(most[0], running[0])

    with ThreadPoolExecutor(16) as callers:
        list(callers.map(work, [change] * 16))
    state = admission.state()
    assert (state.in_use, state.queued) == (0, 0)
    assert most[0] <= 3
