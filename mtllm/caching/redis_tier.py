"""The response cache in two tiers: this process's own, and behind it the one in Redis that all processes share.

An answer that was found in Redis is kept in the own tier for the rest of its time, so that asking for it again costs
no round trip. What another process deletes is forgotten here within a beat of the link (`BEAT_SECONDS`, plus what the
beat takes): every deletion changes a token in Redis, and at each beat the own tier is emptied if the token is not the
one it knows. An answer that another process bought anew meanwhile (`no-cache`) may be told by its predecessor until
that expires.

Redis holds answers and figures under the digest of the request, never a prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from threading import Lock
from typing import Any
from uuid import uuid4

from lru_cache import CacheStats, ResponseCache
from mtllm.domain.completion import CacheHit, StoredAnswer
from mtllm.domain.money import TokenUsage
from mtllm.redis_link import LONGEST_EXPIRY_MS, Line, RedisLink, RedisUnavailable

MARK = b"mtllm answer 1\n"
_DIGEST_BYTES = 16
_FACTS = ("cost", "model", "finish_reason", "stored_at")
_PAGE = 1000


class TieredCache:
    """Answers by the digest of the request: `own` before Redis. While Redis is away, `own` alone.

    `ttl` and `stale_seconds` are those of `own`. Redis drops an answer when both are over; how much memory it gives
    them is its own `maxmemory`.
    """

    def __init__(
        self,
        link: RedisLink,
        own: ResponseCache,
        *,
        ttl: float,
        stale_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._own = own
        self._ttl = ttl
        self._clock = clock
        self._expiry_ms = int(min((ttl + stale_seconds) * 1000, LONGEST_EXPIRY_MS))
        self._prefix = f"{link.prefix}answer:".encode()
        self._token_key = f"{link.prefix}deleted"
        self._token: bytes | None = None
        self._deletion_owed = False
        self._clearing = Lock()  # one sweep at a time; no request but a deletion waits for it

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None:
        """The fresh answer under `key`, at most `max_age` seconds old when that is given. Counts a hit or a miss."""
        found = self._own.look_up(key, max_age=max_age)
        if found is None:
            found = self._fetched(key)
            if found is None or found.ttl <= 0 or (max_age is not None and found.age > max_age):
                return None
            self._own.count_shared_hit()
        return found

    def look_up_stale(self, key: bytes) -> CacheHit | None:
        """The answer under `key` even when it expired, at most `stale_seconds` ago. Counts neither hit nor miss."""
        found = self._own.look_up_stale(key)
        if found is not None and found.ttl > 0:
            return found
        return self._fetched(key) or found

    def store(self, key: bytes, answer: StoredAnswer) -> bool:
        """Keep `answer` under `key`, in both tiers."""
        kept = self._own.store(key, answer)
        if self._ttl <= 0:
            return kept
        value = encoded(key, answer, self._clock() + self._ttl)
        with suppress(RedisUnavailable):  # the own tier has it, and the link counts and tells
            self._link.ask("SET", self._prefix + key, value, "PX", self._expiry_ms)
        return kept

    def count_shared_hit(self, *, missed: bool = True) -> None:
        """An answer was shared with an identical request in flight: a hit, instead of the miss already counted."""
        self._own.count_shared_hit(missed=missed)

    def clear(self) -> int:
        """Forget every answer in all tiers of all processes; how many the tier with the most of them had.

        While Redis is away its tier is emptied as soon as it is back, before it is used again.
        """
        own = self._own.clear()
        try:
            shared = self._empty(self._link)
        except RedisUnavailable:
            self._deletion_owed = True
            return own
        return max(own, shared)

    def get_stats(self) -> CacheStats:
        """Size and evictions of this process's tier; its hits include those from Redis."""
        return self._own.get_stats()

    def sync(self, line: Line) -> None:
        """Make good a deletion that is owed, and follow those of other processes."""
        if self._deletion_owed:
            self._deletion_owed = False
            try:
                self._empty(line)
            except BaseException:
                self._deletion_owed = True
                raise
        token = line.ask("GET", self._token_key)
        if token != self._token:
            self._token = token
            self._own.clear()

    def _empty(self, line: Line) -> int:
        """Delete the answers in Redis, then change the token: the order in which nobody can bring one back."""
        with self._clearing:
            deleted, cursor = 0, b"0"
            while True:
                cursor, keys = line.ask("SCAN", cursor, "MATCH", self._prefix + b"*", "COUNT", _PAGE)
                if keys:
                    deleted += line.ask("UNLINK", *keys)
                if int(cursor) == 0:
                    break
            line.ask("SET", self._token_key, uuid4().hex)
            return deleted

    def _fetched(self, key: bytes) -> CacheHit | None:
        """The answer that Redis holds, from now on in the own tier too."""
        token = self._token
        try:
            value = self._link.ask("GET", self._prefix + key)
        except RedisUnavailable:
            return None
        read = decoded(key, value) if isinstance(value, bytes) else None
        if read is None:
            return None
        now = self._clock()
        answer, fresh_until = replace(read[0], stored_at=min(read[0].stored_at, now)), read[1]  # clocks differ a little
        self._own.restore([(key, answer, fresh_until)])
        if token != self._token:  # deleted between the look into Redis and here
            self._own.store(key, answer, ttl=0)
        return CacheHit(answer, now - answer.stored_at, fresh_until - now)


def encoded(key: bytes, answer: StoredAnswer, fresh_until: float) -> bytes:
    """What Redis keeps: a mark, a digest of key and rest, a line of JSON, and the body."""
    facts: dict[str, Any] = {name: getattr(answer, name) for name in _FACTS}
    facts |= {"input_tokens": answer.usage.input, "output_tokens": answer.usage.output}
    rest = json.dumps({**facts, "fresh_until": fresh_until}).encode() + b"\n" + answer.body
    return MARK + _digest(key, rest) + rest


def decoded(key: bytes, value: bytes) -> tuple[StoredAnswer, float] | None:
    """Answer and end of its freshness (epoch seconds); None for what `encoded` did not write under this key."""
    start = len(MARK) + _DIGEST_BYTES
    digest, rest = value[len(MARK) : start], value[start:]
    if not value.startswith(MARK) or digest != _digest(key, rest):
        return None
    line, _, body = rest.partition(b"\n")
    facts = json.loads(line)
    fresh_until: float = facts.pop("fresh_until")
    usage = TokenUsage(facts.pop("input_tokens"), facts.pop("output_tokens"))
    return StoredAnswer(body=body, usage=usage, **facts), fresh_until


def _digest(key: bytes, rest: bytes) -> bytes:
    digest = blake2b(key, digest_size=_DIGEST_BYTES)
    digest.update(rest)
    return digest.digest()
