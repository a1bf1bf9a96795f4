"""Retries: the rules by which a failed call to Gemini is sent again, and the wait before it.

A retry helps one caller and burdens everyone else, so it must pass four tests: the failure says that the same call may
succeed (`UpstreamFailure.retry`), attempts are left, the wait fits the caller's deadline, and the retry budget of the
whole process has room. Waits grow exponentially with full jitter, so that callers who failed together do not return
together; a wait that Gemini asks for comes before our own guess.
"""

from __future__ import annotations

import random as _random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from mtllm.domain.errors import MaxOutputTokensTooSmall, Retry, UpstreamFailure, UpstreamInvalidAnswer

BASE_SECONDS = 0.5
"""The longest wait before the first retry; it doubles with each further one."""
CAP_SECONDS = 8.0
"""No wait of our own choosing is longer than this."""
SPREAD = 0.1
"""A wait that Gemini asked for is lengthened by up to this share of it, so that those who wait do not return as one."""

T = TypeVar("T")


class RetryBudget:
    """Keeps an outage from multiplying traffic: retries <= `ratio` x the calls of the last `window` seconds + `floor`.

    Time is counted in sixtieths of the window. A partly elapsed one at the far end counts for the retries and not for
    the calls, so the bound holds for every window. Thread-safe, O(1).
    """

    BUCKETS = 60

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        floor: int = 10,
        window: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ratio = ratio
        self._floor = floor
        self._bucket_seconds = window / self.BUCKETS
        self._monotonic = monotonic
        self._calls = _Recent()
        self._retries = _Recent()
        self._lock = threading.Lock()

    def count_call(self) -> None:
        """Count a call that is made for the first time."""
        with self._lock:
            self._calls.add(self._bucket())

    def take_retry(self) -> bool:
        """Count one more retry and return True, or return False when none may be made now."""
        with self._lock:
            now = self._bucket()
            calls = self._calls.since(now - self.BUCKETS + 1)
            if self._retries.since(now - self.BUCKETS) + 1 > self._floor + self._ratio * calls:
                return False
            self._retries.add(now)
            return True

    def _bucket(self) -> int:
        return int(self._monotonic() / self._bucket_seconds)


@dataclass(slots=True)
class _Recent:
    """Events by bucket, oldest first, with their sum."""

    buckets: deque[list[int]] = field(default_factory=deque)
    total: int = 0

    def add(self, bucket: int) -> None:
        if not self.buckets or self.buckets[-1][0] != bucket:
            self.since(bucket - 2 * RetryBudget.BUCKETS)
            self.buckets.append([bucket, 0])
        self.buckets[-1][1] += 1
        self.total += 1

    def since(self, first: int) -> int:
        while self.buckets and self.buckets[0][0] < first:
            self.total -= self.buckets.popleft()[1]
        return self.total


@dataclass(slots=True)
class Patience:
    """The seconds that one request may still wait because Gemini asks for it. For one thread at a time."""

    left: float


class Retrier:
    """Repeats an attempt for as long as that can help.

    `max_attempts` counts the first one too. `wait` sleeps; when it returns true (as `Event.wait` does once the event
    is set), no further attempt is made. `max_wait_seconds` bounds what all the waits that Gemini asks of one request
    add up to: a longer one is for its caller to wait, and holds no slot. `random` gives the jitter, from 0 to 1.
    Thread-safe.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        budget: RetryBudget,
        max_wait_seconds: float = inf,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool | None] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._max_attempts = max_attempts
        self._max_wait_seconds = max_wait_seconds
        self._budget = budget
        self._monotonic = monotonic
        self._wait = wait
        self._random = random

    def run(
        self,
        attempt: Callable[[], T],
        *,
        deadline: float,
        wait: Callable[[float], bool | None] | None = None,
        may_repeat: Callable[[], bool] | None = None,
        made: int = 0,
        patience: Patience | None = None,
    ) -> T:
        """Return what the first successful `attempt()` returns; `deadline` is in monotonic seconds.

        `wait` takes the place of the constructor's for a caller who may lose interest in the meantime. When
        `may_repeat` says no, a failure is final. `made` are the attempts that the request has made before, which count
        towards the most it may make. `patience` is what those have left of it; without one the request begins here.
        Raises the last UpstreamFailure when no retry can help, its `retry_after` being what Gemini asked for, and
        whatever else `attempt` raises at once.
        """
        self._budget.count_call()
        wait = wait or self._wait
        patience = patience or self.patience()
        number, once_used = made + 1, False
        while True:
            try:
                return attempt()
            except UpstreamFailure as failure:
                if may_repeat is not None and not may_repeat():
                    raise
                pause = self._pause(failure, number)
                patience.left -= failure.wait or 0.0
                useless = failure.retry is Retry.NEVER or (failure.retry is Retry.ONCE and once_used)
                useless = useless or patience.left < 0
                if useless or not self._may_retry(number, pause, deadline) or wait(pause):
                    if failure.wait is not None:
                        failure.retry_after = failure.wait
                    raise
                once_used = once_used or failure.retry is Retry.ONCE
                number += 1

    def patience(self) -> Patience:
        """Return what a request has at its beginning."""
        return Patience(self._max_wait_seconds)

    def allows_more_than(self, made: int) -> bool:
        """Return whether a request that has made so many attempts may make another."""
        return made < self._max_attempts

    def _pause(self, failure: UpstreamFailure, number: int) -> float:
        """Return the seconds until the next attempt: what Gemini asks for, but no less than our own pause.

        A connection that was closed while idle is replaced at once.
        """
        if failure.retry is Retry.AT_ONCE:
            return 0.0
        own = self._random() * min(CAP_SECONDS, BASE_SECONDS * 2.0 ** (number - 1))
        return own if failure.wait is None else max(own, failure.wait * (1 + SPREAD * self._random()))

    def _may_retry(self, number: int, pause: float, deadline: float) -> bool:
        """Return whether a retry helps; the budget is asked last, so that only a retry which is made is counted."""
        return number < self._max_attempts and self._monotonic() + pause < deadline and self._budget.take_retry()


def run_with_repairs(ask: Callable[[], T], repairs: int, *, may_repair: Callable[[], bool] = lambda: True) -> T:
    """Return what `ask()` returns, asking again up to `repairs` times for an answer invalid or cut.

    Raises the last UpstreamInvalidAnswer or MaxOutputTokensTooSmall, or the first that `may_repair()` gives up, and
    whatever else `ask` raises.
    """
    for _ in range(repairs):
        try:
            return ask()
        except (MaxOutputTokensTooSmall, UpstreamInvalidAnswer):
            if not may_repair():
                raise
    return ask()
