"""Retries only where they can help, no longer than the caller waits, and no more than an outage can bear."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mtllm.domain.errors import Retry, UpstreamError, UpstreamFailure, UpstreamUnavailable
from mtllm.resilience.retry import BASE_SECONDS, CAP_SECONDS, Retrier, RetryBudget
from tests.support.fakes import FakeClock


class Script:
    """An attempt that raises the given failures in turn and then answers "fine"; `calls` counts."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "fine"


class Waits:
    """Waits by moving the clock, and remembers how long; `interrupted` plays a set event."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seconds: list[float] = []
        self.interrupted = False

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        self.clock.advance(seconds)
        return self.interrupted


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def waits(clock: FakeClock) -> Waits:
    return Waits(clock)


@pytest.fixture
def retrier(clock: FakeClock, waits: Waits) -> Retrier:
    """Four attempts; the dice always show their highest number."""
    return Retrier(max_attempts=4, budget=RetryBudget(monotonic=clock), monotonic=clock, wait=waits, random=lambda: 1.0)


def overloaded(wait: float | None = None) -> UpstreamUnavailable:
    return UpstreamUnavailable(retry=Retry.YES, wait=wait, retry_after=1.0)


def failed_once() -> UpstreamError:
    return UpstreamError(retry=Retry.ONCE)


def test_a_success_is_not_repeated(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """The first answer is the answer."""
    attempt = Script()
    assert retrier.run(attempt, deadline=clock() + 30) == "fine"
    assert (attempt.calls, waits.seconds) == (1, [])


def test_a_passing_failure_is_retried_with_growing_waits(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """Each wait may be twice as long as the one before."""
    attempt = Script(overloaded(), overloaded(), overloaded())
    assert retrier.run(attempt, deadline=clock() + 30) == "fine"
    assert attempt.calls == 4
    assert waits.seconds == [BASE_SECONDS, 2 * BASE_SECONDS, 4 * BASE_SECONDS]


def test_a_wait_of_our_own_has_a_cap_and_full_jitter(clock: FakeClock, waits: Waits) -> None:
    """However many attempts there were, no wait is longer than the cap, and the dice choose from zero up."""
    dice = iter([1.0] * 8 + [0.0])
    retrier = Retrier(
        max_attempts=10, budget=RetryBudget(monotonic=clock), monotonic=clock, wait=waits, random=lambda: next(dice)
    )
    retrier.run(Script(*(overloaded() for _ in range(9))), deadline=clock() + 1000)
    assert max(waits.seconds) == CAP_SECONDS
    assert waits.seconds[-1] == 0.0


def test_attempts_run_out(retrier: Retrier, clock: FakeClock) -> None:
    """After max_attempts the last failure is raised, as it came."""
    failures = [overloaded() for _ in range(9)]
    attempt = Script(*failures)
    with pytest.raises(UpstreamUnavailable) as raised:
        retrier.run(attempt, deadline=clock() + 300)
    assert raised.value is failures[3]
    assert (attempt.calls, raised.value.retry_after) == (4, 1.0)


def test_what_cannot_help_is_not_tried(retrier: Retrier, clock: FakeClock) -> None:
    """A failure that says NEVER is raised at once."""
    attempt = Script(UpstreamError(retry=Retry.NEVER))
    with pytest.raises(UpstreamFailure):
        retrier.run(attempt, deadline=clock() + 30)
    assert attempt.calls == 1


def test_a_foreign_exception_is_not_ours_to_retry(retrier: Retrier, clock: FakeClock) -> None:
    """A defect passes through at once."""
    attempt = Script(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        retrier.run(attempt, deadline=clock() + 30)
    assert attempt.calls == 1


@pytest.mark.parametrize(
    ("failures", "calls"),
    [
        ((failed_once, failed_once), 2),
        ((failed_once, overloaded, failed_once), 3),
        ((overloaded, failed_once, overloaded), 4),
    ],
)
def test_once_means_one_retry_among_all(
    retrier: Retrier, clock: FakeClock, failures: tuple[Callable[[], UpstreamFailure], ...], calls: int
) -> None:
    """A second failure that allows one retry ends it, whatever came between; other failures have their own rule."""
    attempt = Script(*(make() for make in failures), overloaded())
    with pytest.raises(UpstreamFailure):
        retrier.run(attempt, deadline=clock() + 300)
    assert attempt.calls == calls


def test_gemini_says_how_long_to_wait(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """The wait is at least what Gemini asked and at most a tenth longer."""
    assert retrier.run(Script(overloaded(wait=2.5)), deadline=clock() + 30) == "fine"
    assert waits.seconds == [pytest.approx(2.75)]


def test_a_stale_connection_is_replaced_without_a_pause(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """Nobody was asked yet, so nobody is to be spared."""
    retrier.run(Script(UpstreamError(retry=Retry.AT_ONCE)), deadline=clock() + 30)
    assert waits.seconds == [0.0]


def test_a_wait_of_zero_is_no_leave_to_storm(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """Whoever asks for no pause gets our own."""
    retrier.run(Script(overloaded(wait=0.0)), deadline=clock() + 30)
    assert waits.seconds == [0.5]


def test_a_wait_past_the_deadline_is_not_begun(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """The caller is told at once, and told what Gemini asked for."""
    attempt = Script(overloaded(wait=45.8))
    with pytest.raises(UpstreamUnavailable) as raised:
        retrier.run(attempt, deadline=clock() + 30)
    assert (attempt.calls, waits.seconds) == (1, [])
    assert raised.value.headers() == {"Retry-After": "46"}


def test_our_own_backoff_respects_the_deadline(retrier: Retrier, clock: FakeClock) -> None:
    """No attempt begins at or after the deadline."""
    attempt = Script(overloaded(), overloaded())
    with pytest.raises(UpstreamUnavailable):
        retrier.run(attempt, deadline=clock() + BASE_SECONDS)
    assert attempt.calls == 1


def test_an_interrupted_wait_ends_the_retries(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """A service that shuts down does not begin another attempt."""
    waits.interrupted = True
    attempt = Script(overloaded())
    with pytest.raises(UpstreamUnavailable):
        retrier.run(attempt, deadline=clock() + 30)
    assert attempt.calls == 1


def test_a_caller_may_wait_in_a_way_of_its_own(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """Such as one that ends when the caller's client leaves."""
    left = threading.Event()
    left.set()
    attempt = Script(overloaded(wait=20))
    with pytest.raises(UpstreamUnavailable):
        retrier.run(attempt, deadline=clock() + 30, wait=left.wait)
    assert (attempt.calls, waits.seconds) == (1, [])


def test_an_outage_does_not_multiply_traffic(clock: FakeClock) -> None:
    """Of 200 calls that all fail, 10 plus a tenth of the calls are repeated, not three times all of them."""
    budget = RetryBudget(monotonic=clock)
    retrier = Retrier(max_attempts=4, budget=budget, monotonic=clock, wait=lambda _: None, random=lambda: 0.0)
    sent = 0

    def attempt() -> str:
        nonlocal sent
        sent += 1
        raise overloaded()

    for _ in range(200):
        with pytest.raises(UpstreamUnavailable):
            retrier.run(attempt, deadline=clock() + 30)
    assert sent == 200 + 10 + 20


def test_the_budget_is_that_of_the_last_minute(clock: FakeClock) -> None:
    """A minute later the retries of before are forgotten, and so are the calls."""
    budget = RetryBudget(ratio=0.5, floor=1, window=60, monotonic=clock)
    for _ in range(4):
        budget.count_call()
    assert [budget.take_retry() for _ in range(4)] == [True, True, True, False]
    clock.advance(59)
    assert not budget.take_retry()
    clock.advance(2)
    assert [budget.take_retry() for _ in range(2)] == [True, False]


def test_no_window_holds_more_retries_than_allowed(clock: FakeClock) -> None:
    """Sliding, not fixed: calls at a window's start do not pay for retries past its end."""
    budget = RetryBudget(ratio=0.1, floor=2, window=60, monotonic=clock)
    calls: list[float] = []
    retries: list[float] = []
    for step in range(1500):
        clock.advance(0.37)
        if step % 3:
            budget.count_call()
            calls.append(clock())
        elif budget.take_retry():
            retries.append(clock())
            in_window = [moment for moment in retries if moment > clock() - 60]
            assert len(in_window) <= 2 + 0.1 * sum(moment > clock() - 60 for moment in calls)
    assert len(retries) > 60


def test_a_budget_keeps_no_more_than_a_window(clock: FakeClock) -> None:
    """Memory does not grow with the number of calls, nor when no retry ever asks."""
    budget = RetryBudget(monotonic=clock)
    for _ in range(2000):
        clock.advance(0.5)
        budget.count_call()
    assert len(budget._calls.buckets) <= 2 * RetryBudget.BUCKETS + 1


def test_a_failure_that_may_not_be_repeated_is_final(retrier: Retrier, clock: FakeClock, waits: Waits) -> None:
    """A stream whose client has seen something is not begun again; nothing is waited for or taken from the budget."""
    attempt = Script(overloaded(wait=2.5))
    with pytest.raises(UpstreamUnavailable) as raised:
        retrier.run(attempt, deadline=clock() + 30, may_repeat=lambda: False)
    assert (attempt.calls, waits.seconds, raised.value.retry_after) == (1, [], 1.0)


def test_the_waits_of_one_request_add_up_over_its_runs(clock: FakeClock, waits: Waits) -> None:
    """3 s and 2 s are five; a repair of the same request may not wait any more, and its caller is told."""
    retrier = Retrier(
        max_attempts=4, budget=RetryBudget(monotonic=clock), max_wait_seconds=5, monotonic=clock, wait=waits
    )
    patience = retrier.patience()
    retrier.run(Script(overloaded(wait=3.0), overloaded(wait=2.0)), deadline=clock() + 60, patience=patience)
    again = Script(overloaded(wait=1.0))
    with pytest.raises(UpstreamUnavailable) as raised:
        retrier.run(again, deadline=clock() + 60, patience=patience)
    assert (again.calls, raised.value.retry_after) == (1, 1.0)
