"""The service's answers in memory: an LRU cache with ages, staleness, a journal and counters of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import Lock
from typing import NamedTuple, Protocol

from lru_cache import CacheStats, LRUCache, hit_ratio
from mtllm.domain.completion import CacheHit, StoredAnswer


class Journal(Protocol):
    """Notes the answers that should outlive the process. No method but `clear` may block on a disk."""

    def append(self, key: bytes, answer: StoredAnswer, expires_at: float) -> None:
        """Note that `answer` is stored under `key`, fresh until `expires_at` (epoch seconds)."""

    def touch(self, key: bytes) -> None:
        """Note that the answer under `key` was used."""

    def clear(self) -> None:
        """Forget everything."""


class _Entry(NamedTuple):
    answer: StoredAnswer
    stored: float  # monotonic
    fresh_until: float  # monotonic


def _weigh(entry: _Entry) -> int:
    return len(entry.answer.body)  # the few hundred bytes around each body are bounded by the number of entries


class AnswerStore:
    """Answers by the digest of their request; `max_bytes` bounds the sum of their bodies.

    An answer is fresh for its ttl and, expired, stays `stale_seconds` longer for `look_up_stale`.
    """

    def __init__(
        self,
        max_size: int = 500,
        default_ttl: float = 1800,
        *,
        max_bytes: int | None = None,
        stale_seconds: float = 0.0,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default_ttl = default_ttl
        self._stale_seconds = stale_seconds
        self._journal = journal
        self._clock = clock
        self._monotonic = monotonic
        self._entries: LRUCache[bytes, _Entry] = LRUCache(
            max_size, None, max_bytes=max_bytes, weigh=_weigh, monotonic=monotonic
        )
        # Look-ups that the map above counts as a hit or a miss, and this store counts otherwise. Both are rare, so the
        # ordinary hit takes no lock.
        self._corrections = Lock()
        self._unusable = 0
        self._shared = 0
        self._unasked = 0

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None:
        """Return the fresh answer under `key`, at most `max_age` seconds old when given; count a hit or a miss."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        answer, stored, fresh_until = entry
        now = self._monotonic()
        age = now - stored
        if now >= fresh_until or (max_age is not None and age > max_age):
            with self._corrections:
                self._unusable += 1
            return None
        if self._journal is not None:
            self._journal.touch(key)
        return CacheHit(answer, age, fresh_until - now)

    def look_up_stale(self, key: bytes) -> CacheHit | None:
        """Return the answer under `key` even when it expired, at most `stale_seconds` ago; count nothing."""
        entry = self._entries.peek(key)
        if entry is None:
            return None
        now = self._monotonic()
        return CacheHit(entry.answer, now - entry.stored, entry.fresh_until - now)

    def store(self, key: bytes, answer: StoredAnswer, ttl: float | None = None) -> bool:
        """Store `answer`, fresh for `ttl` seconds (None = the default; 0 = do not); return True if it was stored."""
        lifetime = self._default_ttl if ttl is None else ttl
        now = self._monotonic()
        stored = self._put(key, _Entry(answer, now, now + lifetime), lifetime)
        if stored and self._journal is not None:
            self._journal.append(key, answer, self._clock() + lifetime)
        return stored

    def count_shared_hit(self, *, missed: bool = True) -> None:
        """Count a hit for an answer shared with an identical request in flight, instead of the miss counted before.

        `missed` is False for a request that was not looked up, so that there is no miss to take back.
        """
        with self._corrections:
            if missed:
                self._shared += 1
            else:
                self._unasked += 1

    def restore(self, entries: Iterable[tuple[bytes, StoredAnswer, float]]) -> int:
        """Store answers of before: (key, answer, fresh until, in epoch seconds), used least recently first.

        Each goes on ageing where it was, and lives no longer than the present ttl, whatever it was stored for. An
        answer that has expired meanwhile, or comes from the future because the clock was set back, is left out; a ttl
        of 0 leaves out all. Returns the number of answers stored at first; the bounds hold as ever.
        """
        restored = 0
        for key, answer, expires_at in entries if self._default_ttl > 0 else ():
            wall, now = self._clock(), self._monotonic()
            age = wall - answer.stored_at
            freshness = min(expires_at - wall, self._default_ttl - age)
            if age >= 0 and freshness + self._stale_seconds > 0:
                self._put(key, _Entry(answer, now - age, now + freshness), freshness)
                restored += 1
        return restored

    def clear(self) -> int:
        """Forget every answer, in the journal too; return the number of answers forgotten here."""
        size = self._entries.clear()
        if self._journal is not None:
            self._journal.clear()
        return size

    def get_stats(self) -> CacheStats:
        """Return the figures of this moment; hits are answers that were served from here or shared in flight."""
        with self._corrections:  # read first: what is corrected has been counted before
            shift, unasked = self._shared - self._unusable, self._unasked
        stats = self._entries.get_stats()
        stats["hits"] += shift + unasked
        stats["misses"] -= shift
        stats["hit_ratio"] = hit_ratio(stats["hits"], stats["misses"])
        return stats

    def _put(self, key: bytes, entry: _Entry, freshness: float) -> bool:
        born_stale = entry.fresh_until <= entry.stored
        return self._entries.put(key, entry, 0 if born_stale else freshness + self._stale_seconds)
