"""Rate limits as values, and the exact sliding windows that hold clients to them.

For a client in the table, never more than N calls are admitted in *any* window of W seconds: the state is the times of
the client's last admitted calls (`lru_cache.CallTimes`), not a count per clock minute. With several limits a call is
counted in all of them or, rejected, in none. A check is O(1) whatever N. A limit that takes the place of a shorter one
begins with what that one still had to remember.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from lru_cache import UNBOUNDED, CallTimes, RateLimitCache
from mtllm.domain.limits import Limit, Verdict


class RateLimiter:
    """Admits or rejects calls; what it knows of the clients lives in `table`."""

    def __init__(self, table: RateLimitCache, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._monotonic = monotonic

    def hit(self, client: str, limits: tuple[Limit, ...]) -> Verdict | None:
        """Count a call of `client` if every one of `limits` admits it; None when there are no limits.

        Whom a window has no room for is rejected until that has some, without a lock: a flood holds up nobody.
        """
        if not limits:
            return None
        calls = self._table.recall(client)
        if (full := calls.full) is not None and full[0] == limits and (now := self._monotonic()) < full[2]:
            return _rejected(limits, full[1], full[2], now)
        if not calls.hold():
            calls = self._table.held(client)
        try:
            now = self._monotonic()
            tightest, least, grows = _tightest(calls, limits, now)
            admitted = least > 0
            if admitted:
                calls.record(now)
                least -= 1
            if least == 0:
                calls.full = (limits, tightest, grows)
        finally:
            calls.lock.release()
        if least == 0 and calls.protected_until < grows:
            self._table.protect(client, calls, now + limits[tightest].window_seconds)
        if admitted:
            return Verdict(True, limits[tightest], least, grows - now, 0.0, limits)
        return _rejected(limits, tightest, grows, now)


def _tightest(calls: CallTimes, limits: tuple[Limit, ...], now: float) -> tuple[int, int, float]:
    """Which limit has least room, how many calls that is, and when it grows; of equals the one that grows last."""
    calls.watch(limits)
    tightest, least, grows = 0, UNBOUNDED, 0.0
    for window, limit in enumerate(limits):
        room, grows_at = calls.room(window, limit.amount, limit.window_seconds, now)
        if room < least or (room == least and grows_at > grows):
            tightest, least, grows = window, room, grows_at
    return tightest, least, grows


def _rejected(limits: tuple[Limit, ...], tightest: int, frees: float, now: float) -> Verdict:
    wait = _seconds_until(frees, now)
    return Verdict(False, limits[tightest], 0, wait, wait, limits)


def _seconds_until(moment: float, now: float) -> float:
    """The wait after which `now + wait >= moment` holds in floating point too, so that a promise to admit is kept."""
    wait = moment - now
    while now + wait < moment:
        wait += math.ulp(moment)
    return wait
