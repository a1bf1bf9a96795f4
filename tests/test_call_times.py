"""The ring of call times: the numbered rules of `lru_cache.CallTimes`, over random calls."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from lru_cache import CallTimes
from mtllm.domain.limits import Limit


def used(seed: int) -> Iterator[CallTimes]:
    """Yield one client's calls after each of many random steps: calls, pauses, other windows."""
    chance, calls, now = random.Random(seed), CallTimes(), 0.0
    for _ in range(1500):
        windows = tuple(
            Limit(chance.randint(1, 300), chance.randint(1, 40)) for _ in range(chance.choice((1, 1, 1, 2, 3)))
        )
        for _ in range(chance.randint(1, 30)):
            now += chance.choice((0, 0, 0.125, 1, 30))
            if calls.find_tightest(windows, now)[1] > 0:
                calls.record(now)
            yield calls


@pytest.fixture(params=range(3))
def steps(request: pytest.FixtureRequest) -> Iterator[CallTimes]:
    return used(request.param)


def test_1_numbers_only_grow(steps: Iterator[CallTimes]) -> None:
    """The number of the next call never falls, nor does a window's oldest while the same windows are watched."""
    end, oldest, watched = 0, list[int](), None
    for calls in steps:
        assert calls._end >= end
        if calls._watched == watched:
            assert all(now >= before for now, before in zip(calls._oldest, oldest, strict=True))
        end, oldest, watched = calls._end, list(calls._oldest), calls._watched


def test_2_a_window_is_a_stretch_of_the_calls(steps: Iterator[CallTimes]) -> None:
    """A window's oldest call is one of the calls, or the next one when the window is empty."""
    assert all(0 <= first <= calls._end for calls in steps for first in calls._oldest)


def test_3_no_call_is_overwritten_that_a_window_still_needs(steps: Iterator[CallTimes]) -> None:
    """The ring has room for all calls from the oldest that any window needs, and its length is a power of two."""
    for calls in steps:
        assert calls._end - min(calls._oldest) <= len(calls._ring)
        assert len(calls._ring) & (len(calls._ring) - 1) == 0
