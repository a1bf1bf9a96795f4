"""The limiter against plain lists of times, over random calls."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from lru_cache import RateLimitCache
from mtllm.domain.limits import Limit
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter
from tests.support.fakes import FakeClock

LIMITS = st.lists(st.builds(Limit, st.integers(1, 12), st.integers(1, 40)), min_size=1, max_size=3).map(tuple)
PAUSES = st.sampled_from([0, 0, 0, 0.125, 0.5, 1, 3, 10, 39])  # binary fractions: the model adds without rounding
CALLS = st.lists(st.tuples(PAUSES, st.sampled_from("ab")), max_size=120)


def naive_room(limit: Limit, times: list[float], now: float) -> int:
    """How many calls `limit` still admits, by counting."""
    return limit.amount - sum(time > now - limit.window_seconds for time in times)


def ask(limiter: RateLimiter, client: str, limits: tuple[Limit, ...], times: list[float], clock: FakeClock) -> None:
    """Make a call and hold the verdict against `times`, those of the client's admitted calls, which it joins."""
    expected = all(naive_room(limit, times, clock.now) > 0 for limit in limits)
    verdict = limiter.hit(client, limits)
    assert verdict is not None
    assert verdict.admitted == expected
    if expected:
        times.append(clock.now)
    assert verdict.remaining == min(max(naive_room(limit, times, clock.now), 0) for limit in limits)
    assert verdict.remaining == max(naive_room(verdict.limit, times, clock.now), 0)
    grown = naive_room(verdict.limit, times, clock.now + verdict.reset)
    assert grown > verdict.remaining >= naive_room(verdict.limit, times, clock.now + verdict.reset - 0.0625)
    later = clock.now + verdict.retry_after
    assert expected or all(naive_room(limit, times, later) > 0 for limit in limits)


@settings(max_examples=150, deadline=None)
@given(limits=LIMITS, calls=CALLS)
def test_the_limiter_does_what_counting_does(limits: tuple[Limit, ...], calls: list[tuple[float, str]]) -> None:
    """Admission, remaining, reset and retry_after are those of a list of all admitted times."""
    clock = FakeClock(0.0)
    limiter = RateLimiter(ClientTable(monotonic=clock), monotonic=clock)
    admitted: dict[str, list[float]] = {"a": [], "b": []}
    for pause, client in calls:
        clock.advance(pause)
        ask(limiter, client, limits, admitted[client], clock)
        assert all(naive_room(limit, admitted[client], clock.now) >= 0 for limit in limits)


@settings(max_examples=150, deadline=None)
@given(
    windows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    calls=st.lists(st.tuples(PAUSES, st.lists(st.integers(1, 6), min_size=3, max_size=3)), max_size=80),
)
def test_amounts_may_change_from_call_to_call(windows: list[int], calls: list[tuple[float, list[int]]]) -> None:
    """The same when each call comes with other amounts for the same windows, as a change of the keys' file brings."""
    clock = FakeClock(0.0)
    limiter = RateLimiter(ClientTable(monotonic=clock), monotonic=clock)
    times: list[float] = []
    for pause, amounts in calls:
        clock.advance(pause)
        ask(limiter, "a", tuple(map(Limit, amounts, windows)), times, clock)


@settings(max_examples=100, deadline=None)
@given(limits=LIMITS, pauses=st.lists(st.floats(0, 20), max_size=120))
def test_no_window_admits_more_than_its_amount(limits: tuple[Limit, ...], pauses: list[float]) -> None:
    """Wherever a window is laid, it holds at most its amount of admitted calls."""
    clock = FakeClock()
    limiter = RateLimiter(ClientTable(monotonic=clock), monotonic=clock)
    admitted: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        verdict = limiter.hit("a", limits)
        if verdict is not None and verdict.admitted:
            admitted.append(clock.now)
    for limit in limits:
        for first, one_too_many in zip(admitted, admitted[limit.amount :], strict=False):
            assert first + limit.window_seconds <= one_too_many


@settings(max_examples=50, deadline=None)
@given(limits=LIMITS, calls=st.lists(st.tuples(PAUSES, st.integers(0, 20)), max_size=150), size=st.integers(1, 6))
def test_a_table_that_is_too_small_stays_bounded(
    limits: tuple[Limit, ...], calls: list[tuple[float, int]], size: int
) -> None:
    """Whoever comes, the table never holds more than its size, and the one who just came is in it."""
    clock = FakeClock(0.0)
    table = ClientTable(size, monotonic=clock)
    limiter = RateLimiter(table, monotonic=clock)
    for pause, client in calls:
        clock.advance(pause)
        limiter.hit(str(client), limits)
        assert table.size() <= size
        with table.locked(str(client)) as held:
            assert held.count(1000, clock()) >= 1


@settings(max_examples=100, deadline=None)
@given(calls=CALLS, window=st.integers(1, 20))
def test_increment_count_is_an_exact_sliding_count(calls: list[tuple[float, str]], window: int) -> None:
    """The count is that of the calls less than window_size seconds ago, this one included."""
    clock = FakeClock(0.0)
    table = RateLimitCache(monotonic=clock)
    made: dict[str, list[float]] = {"a": [], "b": []}
    for pause, client in calls:
        clock.advance(pause)
        made[client].append(clock.now)
        expected = sum(time > clock.now - window for time in made[client])
        assert table.increment_count(client, window) == expected == table.get_count(client, window)
