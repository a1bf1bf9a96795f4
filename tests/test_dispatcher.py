"""The dispatcher: who works at once, who waits, and what becomes of the threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from mtllm.http.dispatcher import Dispatcher, waiting

PATIENCE = 20.0


class Job:
    """A task that says when it has begun, and goes on when it is let."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.cancelled = False
        self.thread: threading.Thread | None = None
        self._work = work

    def service(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        try:
            self._work()
        finally:
            self.ended.set()

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds jobs back until it is set; the end of the test sets it."""
    held = threading.Event()
    yield held
    held.set()


def holding(gate: threading.Event) -> Callable[[], None]:
    """Work that goes on when the gate opens."""

    def hold() -> None:
        assert gate.wait(PATIENCE)

    return hold


def wait_in_turn(gate: threading.Event) -> Callable[[], None]:
    """Work that lends its turn while it waits at the gate."""

    def hold() -> None:
        with waiting():
            assert gate.wait(PATIENCE)

    return hold


def test_few_work_at_once(gate: threading.Event) -> None:
    """The third job waits for one of two turns, though there are threads enough."""
    dispatcher = Dispatcher(10, active=2)
    jobs = [Job(holding(gate)), Job(holding(gate)), Job()]
    for job in jobs:
        dispatcher.add_task(job)
    assert all(job.begun.wait(PATIENCE) for job in jobs[:2])
    assert (dispatcher.queued, jobs[2].begun.is_set()) == (1, False)
    gate.set()
    assert jobs[2].ended.wait(PATIENCE)


def test_who_waits_lends_its_turn(gate: threading.Event) -> None:
    """Twenty jobs that wait for something else keep nobody from working."""
    dispatcher = Dispatcher(40, active=2)
    slow = [Job(wait_in_turn(gate)) for _ in range(20)]
    for job in slow:
        dispatcher.add_task(job)
    quick = Job()
    dispatcher.add_task(quick)
    assert quick.ended.wait(PATIENCE)
    assert all(job.begun.wait(PATIENCE) for job in slow)
    assert not any(job.ended.is_set() for job in slow)


def test_there_are_never_more_threads_than_allowed(gate: threading.Event) -> None:
    """A job that finds no thread is done when one has finished."""
    dispatcher = Dispatcher(3, active=3)
    slow = [Job(wait_in_turn(gate)) for _ in range(3)]
    late = Job()
    for job in (*slow, late):
        dispatcher.add_task(job)
    assert all(job.begun.wait(PATIENCE) for job in slow)
    assert (dispatcher.queued, late.begun.is_set()) == (1, False)
    gate.set()
    assert late.ended.wait(PATIENCE)
    assert len({job.thread for job in (*slow, late)}) == 3


def test_a_rested_thread_is_used_before_a_new_one_is_started() -> None:
    """Jobs one after the other are all done by one thread."""
    dispatcher = Dispatcher(10, active=4)
    done = []
    for _ in range(5):
        job = Job()
        dispatcher.add_task(job)
        assert job.ended.wait(PATIENCE)
        while dispatcher.working:
            pass
        done.append(job.thread)
    assert len(set(done)) == 1


def test_first_come_first_served(gate: threading.Event) -> None:
    """What waits is done in its order."""
    dispatcher = Dispatcher(1)
    order: list[int] = []
    dispatcher.add_task(Job(holding(gate)))
    jobs = [Job(lambda number=number: order.append(number)) for number in range(5)]  # type: ignore[misc]
    for job in jobs:
        dispatcher.add_task(job)
    gate.set()
    assert jobs[-1].ended.wait(PATIENCE)
    assert order == [0, 1, 2, 3, 4]


def test_a_job_that_fails_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged, and the next job is done."""

    def fail() -> None:
        raise RuntimeError("broken")

    dispatcher = Dispatcher(1)
    dispatcher.add_task(Job(fail))
    after = Job()
    dispatcher.add_task(after)
    assert after.ended.wait(PATIENCE)
    assert "broken" in caplog.text


def test_the_end_gives_up_what_waits(gate: threading.Event) -> None:
    """What is under way ends by itself, what waits is cancelled, and nothing new is begun."""
    dispatcher = Dispatcher(1)
    running, queued = Job(holding(gate)), Job()
    dispatcher.add_task(running)
    dispatcher.add_task(queued)
    assert running.begun.wait(PATIENCE)
    assert dispatcher.shutdown(timeout=0)
    gate.set()
    assert running.ended.wait(PATIENCE)
    assert (queued.cancelled, queued.begun.is_set()) == (True, False)


def test_other_threads_may_wait_too() -> None:
    """In a thread that no dispatcher started, waiting lends nothing."""
    with waiting():
        pass


def test_no_job_is_lost_under_many_hands() -> None:
    """Jobs that lend their turn, added from several threads, are all done, and no turn is lost."""
    dispatcher = Dispatcher(8, active=2)

    def lend() -> None:
        with waiting():
            pass

    jobs = [Job(lend) for _ in range(2000)]
    adders = [
        threading.Thread(target=lambda part=jobs[start::4]: deque(map(dispatcher.add_task, part), 0))
        for start in range(4)
    ]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert all(job.ended.wait(PATIENCE) for job in jobs)
    while dispatcher.working:
        pass
    assert dispatcher.queued == 0
