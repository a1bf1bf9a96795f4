"""Rate limits that all processes share: `rate_limiter.RateLimiter`'s windows, kept in Redis.

One script judges and counts a call as one step, by Redis' own clock, so neither the number of processes nor their
clocks matter. For each client and window Redis holds a list of the times (µs) of the admitted calls that are still in
it, never more than its amount, which expires with its last call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

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


class SharedRateLimiter:
    """Admits or rejects calls by what all processes have admitted; by `own`, this process's, while Redis is away.

    Whom Redis rejected is rejected here until the time it was told, without asking again: nothing can let it in before,
    and a flood costs no round trips. `own` hears of the calls that Redis admits here. So a client does not begin anew
    when Redis goes.
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
        self._rejected: LRUCache[tuple[str, tuple[Limit, ...]], tuple[Limit, float]] = LRUCache(
            max_size, None, monotonic=monotonic
        )
        self._monotonic = monotonic

    def hit(self, client: str, limits: tuple[Limit, ...]) -> Verdict | None:
        """Count a call of `client` if every one of `limits` admits it; None when there are no limits."""
        if not limits:
            return None
        rejected = self._rejected.get((client, limits))
        wait = rejected[1] - self._monotonic() if rejected is not None else 0.0
        if rejected is not None and wait > 0:
            return Verdict(False, rejected[0], 0, wait, wait, limits)
        prefix = f"{self._link.prefix}calls:{client}:"
        try:
            answer = self._link.run(CHECK, [f"{prefix}{limit.window_seconds}" for limit in limits], _facts(limits))
        except RedisUnavailable:
            return self._own.hit(client, limits)
        admitted, tightest, remaining, micro = map(int, answer.split())
        limit, wait = limits[tightest], micro / MICRO
        if admitted:
            self._own.hit(client, limits)
            return Verdict(True, limit, remaining, wait, 0.0, limits)
        self._rejected.put((client, limits), (limit, self._monotonic() + wait), wait)
        return Verdict(False, limit, 0, wait, wait, limits)


@lru_cache(maxsize=256)
def _facts(limits: tuple[Limit, ...]) -> tuple[int, ...]:
    return tuple(
        fact
        for limit in limits
        for fact in (
            limit.amount,
            limit.window_seconds * MICRO,
            min((limit.window_seconds + 1) * 1000, LONGEST_EXPIRY_MS),
        )
    )
