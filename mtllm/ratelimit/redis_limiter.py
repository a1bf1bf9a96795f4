"""Rate limits that all processes share: the windows of `limiter.RateLimiter`, stored in Redis.

One script judges and counts a call as one step, by Redis' own clock, so neither the number of processes nor their
clocks matter. For each client and window Redis holds a list of the times (µs) of the admitted calls that are still in
it, never more than its amount, which expires with its last call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from lru_cache import LRUCache
from mtllm.domain.limits import Limit, Verdict
from mtllm.ratelimit.limiter import RateLimiter
from mtllm.redis_link import LONGEST_EXPIRY_MS, RedisLink, RedisUnavailable, Script

MICRO = 1_000_000

CHECK = Script(
    """
    -- KEYS: for each limit the list of its calls' times, oldest first (limits over the same window share one)
    -- ARGV: for each limit its amount, its window (us), and when an untouched list may go (ms)
    -- returns: admitted (0 or 1), number of the tightest limit, its remaining calls, us until it has one more
    local clock = redis.call('TIME')
    local now = clock[1] * 1000000 + clock[2]
    local tightest, least, grows
    for number, key in ipairs(KEYS) do
        local amount, window = tonumber(ARGV[3 * number - 2]), tonumber(ARGV[3 * number - 1])
        local oldest = redis.call('LINDEX', key, 0)
        local calls = redis.call('LLEN', key)
        if oldest and oldest + window <= now then  -- find the first call that is still in the window
            local first, beyond = 1, calls
            while first < beyond do
                local middle = math.floor((first + beyond) / 2)
                if redis.call('LINDEX', key, middle) + window <= now then
                    first = middle + 1
                else
                    beyond = middle
                end
            end
            redis.call('LTRIM', key, first, -1)
            oldest, calls = redis.call('LINDEX', key, 0), calls - first
        end
        if calls > amount then  -- the limit was lowered
            oldest = redis.call('LINDEX', key, calls - amount)
            calls = amount
        end
        local room, frees = amount - calls, (oldest or now) + window
        if not least or room < least or (room == least and frees > grows) then
            tightest, least, grows = number, room, frees
        end
    end
    local admitted = 0
    if least > 0 then
        admitted, least = 1, least - 1
        local counted = {}
        for number, key in ipairs(KEYS) do
            if not counted[key] then
                counted[key] = true
                redis.call('RPUSH', key, string.format('%.0f', now))
                redis.call('PEXPIRE', key, ARGV[3 * number])
            end
        end
    end
    return string.format('%d %d %d %.0f', admitted, tightest - 1, least, grows - now)
    """
)


class _LastWord(NamedTuple):
    """Redis' last answer about a client."""

    rejected: bool
    limit: Limit
    """The tightest one."""
    remaining: int
    """Calls that it had left, less those admitted here without Redis since."""
    until: float
    """When there is one more (monotonic)."""


class SharedRateLimiter:
    """Admits or rejects calls by the calls that all processes have admitted; without Redis, by this process's `own`.

    Whom Redis rejected is rejected here until the time it was told, without asking again: nothing can let it in before,
    and a flood costs no round trips. When Redis does not answer in time, its last word about the client still holds:
    no more calls are admitted than it had left, until it would have had one more. `own` hears of the calls that Redis
    admits here, so that a client does not begin anew when Redis goes.
    """

    def __init__(
        self,
        link: RedisLink,
        own: RateLimiter,
        *,
        max_size: int = 10_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._own = own
        self._last_words: LRUCache[tuple[str, tuple[Limit, ...]], _LastWord] = LRUCache(
            max_size, None, monotonic=monotonic
        )
        self._monotonic = monotonic
        self._without_redis = Lock()  # so that two calls do not take the same last one

    def hit(self, client: str, limits: tuple[Limit, ...]) -> Verdict | None:
        """Count a call of `client` if every one of `limits` admits it; return None when there are no limits."""
        if not limits:
            return None
        last = self._last_words.get((client, limits))
        if last is not None and last.rejected and (wait := last.until - self._monotonic()) > 0:
            return Verdict(False, last.limit, 0, wait, wait, limits)
        prefix = f"{self._link.prefix}calls:{client}:"
        try:
            answer = self._link.run(
                CHECK, [f"{prefix}{limit.window_seconds}" for limit in limits], _script_arguments(limits)
            )
        except RedisUnavailable:
            with self._without_redis:
                return self._hit_own(client, limits)
        admitted, tightest, remaining, micro = map(int, answer.split())
        limit, wait = limits[tightest], micro / MICRO
        self._note(client, limits, _LastWord(not admitted, limit, remaining, self._monotonic() + wait))
        if admitted:
            self._own.hit(client, limits)
            return Verdict(True, limit, remaining, wait, 0.0, limits)
        return Verdict(False, limit, 0, wait, wait, limits)

    def remaining(self, client: str, limits: tuple[Limit, ...]) -> list[int | None]:  # noqa: ARG002  # as RateLimiter
        """Return nothing known of each limit: the counts are in Redis, where only a call is worth a question."""
        return [None] * len(limits)

    def _hit_own(self, client: str, limits: tuple[Limit, ...]) -> Verdict | None:
        last = self._last_words.get((client, limits))
        wait = last.until - self._monotonic() if last is not None else 0.0
        if last is None or wait <= 0:
            return self._own.hit(client, limits)
        if last.remaining < 1:
            return Verdict(False, last.limit, 0, wait, wait, limits)
        verdict = self._own.hit(client, limits)
        if verdict is None or not verdict.admitted:
            return verdict
        left = last.remaining - 1
        self._note(client, limits, last._replace(remaining=left))
        return verdict if verdict.remaining <= left else verdict._replace(limit=last.limit, remaining=left, reset=wait)

    def _note(self, client: str, limits: tuple[Limit, ...], last: _LastWord) -> None:
        self._last_words.put((client, limits), last, last.until - self._monotonic())


@lru_cache(maxsize=256)
def _script_arguments(limits: tuple[Limit, ...]) -> tuple[int, ...]:
    return tuple(
        fact
        for limit in limits
        for fact in (
            limit.amount,
            limit.window_seconds * MICRO,
            min((limit.window_seconds + 1) * 1000, LONGEST_EXPIRY_MS),
        )
    )
