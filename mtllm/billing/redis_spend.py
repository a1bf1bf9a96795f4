"""The since-start total that all processes share: each adds its own spend, and hears of the others'.

A process tells Redis not what is new but how much it has spent in all; Redis adds the difference to what it heard
before. So a push whose answer was lost can be repeated, and what gathered while Redis was away is added once.
"""

from __future__ import annotations

from typing import Protocol
from uuid import uuid4

from mtllm.redis_link import RedisCommands, RedisLink, Script

REMEMBERED_SECONDS = 86_400
"""How long Redis remembers what a silent process has told it: an outage longer than that may count its spend twice."""

PUSH = Script(
    """
    -- KEYS: the total of all, and what this process is known to have spent
    -- ARGV: what this process has spent, and for how many seconds to know that
    -- returns: the total of all
    local new = ARGV[1] - (redis.call('GET', KEYS[2]) or 0)
    redis.call('INCRBY', KEYS[1], string.format('%.0f', math.max(new, 0)))
    redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
    return redis.call('GET', KEYS[1])
    """
)


class Meter(Protocol):
    """A sum of nano-dollars that only grows."""

    def add(self, nano: int) -> int: ...
    def total(self) -> int: ...


class SharedSpend:
    """Adds the other processes' spend to `meter` at every beat of `link`.

    The meter stays what requests read: it includes their own spend at once, others' a beat later, and never falls. When
    Redis has forgotten the total, the meter goes on from its own.
    """

    def __init__(self, link: RedisLink, meter: Meter) -> None:
        self._meter = meter
        self._total_key = f"{link.prefix}spend"
        self._process_key = ""
        self._others = 0

    def sync(self, redis: RedisCommands) -> None:
        """Tell Redis this process's spend, and the meter the others'."""
        own = self._meter.total() - self._others
        if not self._process_key:
            self._process_key = f"{self._total_key}:{uuid4().hex}"  # here, not when made: processes may be forked
        total = int(redis.run(PUSH, [self._total_key, self._process_key], [own, REMEMBERED_SECONDS]))
        others = total - own
        if others > self._others:
            self._meter.add(others - self._others)
            self._others = others
