"""Holds clients to their rate limits by exact sliding windows.

For a client in the table, never more than N calls are admitted in *any* window of W seconds: the state is the times of
the client's last admitted calls (`lru_cache.CallTimes`), not a count per clock minute. With several limits a call is
counted in all of them or, rejected, in none. A check is O(1) whatever N. A limit that takes the place of a shorter one
begins with the calls that the shorter one still had to remember.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from mtllm.domain.limits import Limit, Verdict
from mtllm.ratelimit.clients import ClientTable

_verdict: Callable[[tuple[bool, Limit, int, float, float, tuple[Limit, ...]]], Verdict] = partial(
    tuple.__new__, Verdict
)
"""Makes a Verdict from its fields (benchmarks: parts_cache, rate limiters; every check makes one)."""


class RateLimiter:
    """Admits or rejects calls by the clients' calls in `table`."""

    def __init__(self, table: ClientTable, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._monotonic = monotonic

    def hit(self, client: str, limits: tuple[Limit, ...]) -> Verdict | None:
        """Count a call of `client` if every one of `limits` admits it; return None when there are no limits.

        A client that a window has no room for is rejected until there is some, without a lock.
        """
        if not limits:
            return None
        found = self._table.find(client)
        full = found.full
        if full is not None and full[0] == limits and (now := self._monotonic()) < full[2]:
            return _rejected(limits, full[1], full[2], now)
        with self._table.locked(client, found) as calls:
            now = self._monotonic()
            tightest, remaining, grows = calls.find_tightest(limits, now)
            admitted = remaining > 0
            if admitted:
                calls.full = None
                calls.record(now)
                remaining -= 1
            if remaining == 0:
                calls.full = (limits, tightest, grows)
        if remaining == 0 and calls.protected_until < grows:
            self._table.protect(client, calls, now + limits[tightest].window_seconds)
        if admitted:
            return _verdict((True, limits[tightest], remaining, grows - now, 0.0, limits))
        return _rejected(limits, tightest, grows, now)

    def remaining(self, client: str, limits: tuple[Limit, ...]) -> list[int | None]:
        """Return how many calls each of `limits` would still admit now; count nothing."""
        if not limits:
            return []
        with self._table.locked(client) as calls:
            now = self._monotonic()
            return [calls.find_tightest((limit,), now)[1] for limit in limits]


def _rejected(limits: tuple[Limit, ...], tightest: int, frees: float, now: float) -> Verdict:
    wait = _seconds_until(frees, now)
    return _verdict((False, limits[tightest], 0, wait, wait, limits))


def _seconds_until(moment: float, now: float) -> float:
    """Return the wait after which `now + wait >= moment` in floating point too, so that a promise to admit holds."""
    wait = moment - now
    while now + wait < moment:
        wait += math.ulp(moment)
    return wait
