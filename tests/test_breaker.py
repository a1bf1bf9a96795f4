"""While Gemini is down callers are told so at once, with a true Retry-After; one of them finds out when it is up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mtllm.domain.errors import UpstreamError, UpstreamRejected, UpstreamUnavailable
from mtllm.resilience.breaker import BreakerSnapshot, CircuitBreaker
from tests.support.fakes import FakeClock

THRESHOLD, COOL_DOWN = 5, 10.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(threshold=THRESHOLD, cool_down=COOL_DOWN, monotonic=clock)


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.admit()
        breaker.record_failure(UpstreamError(breaks=True))


def refusal(breaker: CircuitBreaker) -> float | None:
    """The seconds a refused caller is told to wait; None when it was admitted."""
    try:
        breaker.admit()
    except UpstreamUnavailable as error:
        return error.retry_after
    return None


def test_five_failures_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    """Four do not, the fifth does, and the refused caller is told how long."""
    fail(breaker, THRESHOLD - 1)
    assert refusal(breaker) is None
    fail(breaker)
    assert breaker.state == "open"
    assert refusal(breaker) == COOL_DOWN


def test_a_success_breaks_the_row(breaker: CircuitBreaker) -> None:
    """Failures count only without a success between them."""
    fail(breaker, THRESHOLD - 1)
    breaker.record_success()
    fail(breaker, THRESHOLD - 1)
    assert breaker.state == "closed"


def test_a_failure_that_is_not_geminis_shows_that_gemini_answers(breaker: CircuitBreaker) -> None:
    """A bad request never opens it, and breaks the row like a success."""
    fail(breaker, THRESHOLD - 1)
    breaker.record_failure(UpstreamRejected())
    fail(breaker, THRESHOLD - 1)
    assert breaker.state == "closed"


def test_retry_after_is_true(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """It counts down, and a caller who waits so long is admitted."""
    fail(breaker, THRESHOLD)
    clock.advance(3.5)
    wait = refusal(breaker)
    assert wait == 6.5
    clock.advance(wait)
    assert refusal(breaker) is None


def test_one_probe_passes_after_the_cool_down(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Exactly one: the others are still refused until it has reported."""
    fail(breaker, THRESHOLD)
    clock.advance(COOL_DOWN)
    assert breaker.state == "half-open"
    assert refusal(breaker) is None
    assert breaker.state == "half-open"
    assert refusal(breaker) == COOL_DOWN


def test_the_probes_success_closes_it(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """It heals at once, and the next row of failures counts from zero."""
    fail(breaker, THRESHOLD)
    clock.advance(COOL_DOWN)
    breaker.admit()
    breaker.record_success()
    assert breaker.state == "closed"
    fail(breaker, THRESHOLD - 1)
    assert refusal(breaker) is None


def test_the_probes_failure_opens_it_again(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """The cool-down begins anew when the probe failed, not when it was sent."""
    fail(breaker, THRESHOLD)
    clock.advance(COOL_DOWN)
    breaker.admit()
    clock.advance(4)
    breaker.record_failure(UpstreamError(breaks=True))
    assert breaker.state == "open"
    assert refusal(breaker) == COOL_DOWN


def test_a_probe_that_never_reports_does_not_wedge_it(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """After another cool-down the next caller is the probe."""
    fail(breaker, THRESHOLD)
    clock.advance(COOL_DOWN)
    breaker.admit()
    clock.advance(COOL_DOWN - 1)
    assert refusal(breaker) == 1
    clock.advance(1)
    assert refusal(breaker) is None


def test_late_failures_do_not_prolong_the_wait(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """Requests that were admitted before it opened fail later; what callers were told stays true."""
    for _ in range(THRESHOLD + 3):
        breaker.admit()
    for _ in range(THRESHOLD):
        breaker.record_failure(UpstreamError(breaks=True))
    clock.advance(6)
    breaker.record_failure(UpstreamError(breaks=True))
    assert refusal(breaker) == 4


def test_the_snapshot_tells_one_moment(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """State, failures, seconds left and how often it opened."""
    assert breaker.snapshot() == BreakerSnapshot("closed", 0, 0.0, 0)
    fail(breaker, THRESHOLD)
    clock.advance(2)
    assert breaker.snapshot() == BreakerSnapshot("open", THRESHOLD, COOL_DOWN - 2, 1)
    clock.advance(COOL_DOWN)
    breaker.admit()
    breaker.record_failure(UpstreamError(breaks=True))
    assert breaker.snapshot() == BreakerSnapshot("open", THRESHOLD + 1, COOL_DOWN, 1)


def test_among_many_threads_one_is_the_probe(breaker: CircuitBreaker, clock: FakeClock) -> None:
    """32 callers at the end of the cool-down: one is admitted, 31 are refused."""
    fail(breaker, THRESHOLD)
    clock.advance(COOL_DOWN)
    barrier = threading.Barrier(32)

    def arrive(_: int) -> float | None:
        barrier.wait()
        return refusal(breaker)

    with ThreadPoolExecutor(32) as threads:
        waits = list(threads.map(arrive, range(32)))
    assert waits.count(None) == 1
    assert set(waits) == {None, COOL_DOWN}


def test_failures_of_many_threads_all_count(clock: FakeClock) -> None:
    """No failure is lost: the breaker opens at exactly the sum of all threads' failures."""
    breaker = CircuitBreaker(threshold=16 * 50, cool_down=COOL_DOWN, monotonic=clock)
    barrier = threading.Barrier(16)

    def fail_often(_: int) -> None:
        barrier.wait()
        for _ in range(50):
            breaker.record_failure(UpstreamError(breaks=True))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(fail_often, range(16)))
    assert breaker.snapshot() == BreakerSnapshot("open", 16 * 50, COOL_DOWN, 1)
