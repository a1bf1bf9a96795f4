"""The response cache in two tiers: this process's own, and behind it the one in Redis that all processes share.

An answer that was found in Redis is stored in the own tier for the rest of its time, so that asking for it again costs
no round trip. A deletion by another process takes effect here within a beat of the link (`BEAT_SECONDS`, plus the time
that the beat takes): every deletion changes a token in Redis, and at each beat the own tier is emptied if the token is
not the one it knows. After a `no-cache` request elsewhere, this process may serve the older answer until it expires.

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

from lru_cache import CacheStats
from mtllm.caching.responses import AnswerStore
from mtllm.domain.completion import CacheHit, StoredAnswer
from mtllm.domain.money import TokenUsage
from mtllm.redis_link import LONGEST_EXPIRY_MS, RedisCommands, RedisLink, RedisUnavailable

MARK = b"mtllm answer 1\n"
_DIGEST_BYTES = 16
_FACTS = ("cost", "model", "finish_reason", "stored_at")
_PAGE = 1000


class TieredCache:
    """Answers by the digest of the request: `own` before Redis. While Redis is away, `own` alone.

    `ttl` and `stale_seconds` are those of `own`, and hold for answers stored under other settings too. Redis drops an
    answer when both are over; its memory for answers is its own `maxmemory`.
    """

    def __init__(
        self,
        link: RedisLink,
        own: AnswerStore,
        *,
        ttl: float,
        stale_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._own = own
        self._ttl = ttl
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._expiry_ms = int(min((ttl + stale_seconds) * 1000, LONGEST_EXPIRY_MS))
        self._prefix = f"{link.prefix}answer:".encode()
        self._token_key = f"{link.prefix}deleted"
        self._token: bytes | None = None
        self._deletion_owed = False
        self._clearing = Lock()  # one sweep at a time; no request but a deletion waits for it

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None:
        """Return the fresh answer under `key`, at most `max_age` seconds old when given; count a hit or a miss."""
        found = self._own.look_up(key, max_age=max_age)
        if found is None:
            found = self._fetch(key)
            if found is None or found.ttl <= 0 or (max_age is not None and found.age > max_age):
                return None
            self._own.count_shared_hit()
        return found

    def look_up_stale(self, key: bytes) -> CacheHit | None:
        """Return the answer under `key` even when it expired, at most `stale_seconds` ago; count nothing."""
        found = self._own.look_up_stale(key)
        if found is not None and found.ttl > 0:
            return found
        return self._fetch(key) or found

    def store(self, key: bytes, answer: StoredAnswer) -> bool:
        """Store `answer` under `key`, in both tiers; return True if the own tier stored it."""
        stored = self._own.store(key, answer)
        if self._ttl <= 0:
            return stored
        value = encode(key, answer, self._clock() + self._ttl)
        with suppress(RedisUnavailable):  # the own tier has it, and the link counts and tells
            self._link.command("SET", self._prefix + key, value, "PX", self._expiry_ms)
        return stored

    def count_shared_hit(self, *, missed: bool = True) -> None:
        """Count a hit for an answer shared with an identical request in flight, instead of its miss."""
        self._own.count_shared_hit(missed=missed)

    def clear(self) -> int:
        """Forget every answer in all tiers of all processes; return how many the larger tier had.

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
        """Return the figures of this process's tier; its hits include those from Redis."""
        return self._own.get_stats()

    def sync(self, redis: RedisCommands) -> None:
        """Make good a deletion that Redis missed, and follow the deletions of other processes."""
        if self._deletion_owed:
            self._deletion_owed = False
            try:
                self._empty(redis)
            except BaseException:
                self._deletion_owed = True
                raise
        token = redis.command("GET", self._token_key)
        if token != self._token:
            self._token = token
            self._own.clear()

    def _empty(self, redis: RedisCommands) -> int:
        """Delete the answers in Redis, then change the token: the order in which nobody can bring one back."""
        with self._clearing:
            deleted, cursor = 0, b"0"
            while True:
                cursor, keys = redis.command("SCAN", cursor, "MATCH", self._prefix + b"*", "COUNT", _PAGE)
                if keys:
                    deleted += redis.command("UNLINK", *keys)
                if int(cursor) == 0:
                    break
            redis.command("SET", self._token_key, uuid4().hex)
            return deleted

    def _fetch(self, key: bytes) -> CacheHit | None:
        """Return Redis' answer under `key`, and store it in the own tier."""
        if self._ttl <= 0:
            return None
        token = self._token
        try:
            value = self._link.command("GET", self._prefix + key)
        except RedisUnavailable:
            return None
        read = decode(key, value) if isinstance(value, bytes) else None
        if read is None:
            return None
        now = self._clock()
        answer = replace(read[0], stored_at=min(read[0].stored_at, now))  # clocks differ a little
        fresh_until = min(read[1], answer.stored_at + self._ttl)
        if fresh_until + self._stale_seconds <= now:
            return None
        self._own.restore([(key, answer, fresh_until)])
        if token != self._token:  # deleted between the look into Redis and here
            self._own.store(key, answer, ttl=0)
        return CacheHit(answer, now - answer.stored_at, fresh_until - now)


def encode(key: bytes, answer: StoredAnswer, fresh_until: float) -> bytes:
    """Return the value for Redis: a mark, a digest of key and rest, a line of JSON, and the body."""
    facts: dict[str, Any] = {name: getattr(answer, name) for name in _FACTS}
    facts |= {"input_tokens": answer.usage.input, "output_tokens": answer.usage.output}
    rest = json.dumps({**facts, "fresh_until": fresh_until}).encode() + b"\n" + answer.body
    return MARK + _digest(key, rest) + rest


def decode(key: bytes, value: bytes) -> tuple[StoredAnswer, float] | None:
    """Return answer and end of its freshness (epoch seconds), or None when `encode` did not write it for this key."""
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
