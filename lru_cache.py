"""Bounded memory: an LRU cache, and on it a cache of responses and a counter of calls for Python callers.

Every operation is O(1): nothing is swept, what has expired goes when it is met or evicted. Durations are monotonic; the
wall clock is read only for `cached_at`, which people read.
"""

from __future__ import annotations

import json
import sys
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from math import inf
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

NANODOLLARS = 1_000_000_000
UNBOUNDED = 1 << 62
"""More calls than any window holds."""


def require_gil() -> None:
    """Raise RuntimeError on a free-threaded interpreter, where steps that must stay whole are none.

    Look-ups take no lock: each is done in steps of the interpreter that its global lock (GIL) keeps whole.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise RuntimeError(
            "This Python runs without its global interpreter lock, which the caches rely on."
            " Start it with PYTHON_GIL=1 or -X gil=1, or use the ordinary build."
        )


class CacheStats(TypedDict):
    """A cache's size now, and its look-ups since it was made."""

    size: int
    max_size: int
    bytes: int
    max_bytes: int | None
    hits: int
    misses: int
    evictions: int
    expirations: int
    hit_ratio: float
    """Hits / (hits + misses), 0.0 before the first look-up."""


def hit_ratio(hits: int, misses: int) -> float:
    """Return the share of look-ups that were hits, 0.0 when there were none."""
    return hits / (hits + misses) if hits + misses else 0.0


class _Counter:
    """A number that many threads count up without a lock (benchmarks: parts_cache, caches, 8 threads)."""

    def __init__(self) -> None:
        self.add = count().__next__
        self._readings = 0

    def total(self) -> int:
        """Return how often `add` was called.

        Reading also advances the counter, so readings are subtracted; call under the cache's lock.
        """
        total = self.add() - self._readings
        self._readings += 1
        return total


_Entry = tuple[V, float, int, int]
"""Value, when it expires (monotonic), weight, and its number in the order of use."""


class LRUCache(Generic[K, V]):
    """A thread-safe map that forgets the entry used least recently, and entries past their time.

    Bounded by `max_size` entries and, with `max_bytes`, by the sum of `weigh(value)`. An entry lives `ttl` seconds:
    expired at `now >= expires`. `default_ttl=None` means that entries without a ttl of their own never expire.

    A look-up takes no lock (benchmarks: parts_cache, caches, 8 threads). The order of use is kept by number and not by
    key, so that to move an entry to its end is one step of the interpreter, whatever code of its own a key is compared
    by. As in any map, a key's hash must not change, nor its comparison raise. Raises RuntimeError on a free-threaded
    interpreter.
    """

    def __init__(
        self,
        max_size: int = 1000,
        default_ttl: float | None = 3600,
        *,
        max_bytes: int | None = None,
        weigh: Callable[[V], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        require_gil()
        if max_size < 0:
            raise ValueError("max_size must not be negative")
        if max_bytes is not None and weigh is None:
            raise ValueError("max_bytes needs weigh, the function that says how many bytes a value counts for")
        self._max_size = max_size
        self._default_lifetime = inf if default_ttl is None else default_ttl
        self._max_bytes = max_bytes
        self._most_bytes = inf if max_bytes is None else max_bytes
        self._weigh = weigh
        self._monotonic = monotonic
        self._lock = Lock()
        self._entries: dict[K, _Entry[V]] = {}
        self._use: OrderedDict[int, K] = OrderedDict()  # oldest use first
        self._numbers = count()
        self._hits, self._misses = _Counter(), _Counter()
        self._bytes = self._evictions = self._expirations = 0

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """Return the value under `key`, now the one used last, or `default`; None and 0 are values like any other."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses.add()
            return default
        if self._monotonic() >= entry[1]:
            self._expire(key, entry)
            self._misses.add()
            return default
        try:  # noqa: SIM105 - on the path of every hit (benchmarks: parts_cache), where `suppress` costs more
            self._use.move_to_end(entry[3])
        except KeyError:  # it went meanwhile, and was here when it was asked for
            pass
        self._hits.add()
        return entry[0]

    def peek(self, key: K) -> V | None:
        """Return the value under `key` or None; count and move nothing."""
        entry = self._entries.get(key)
        return None if entry is None or self._monotonic() >= entry[1] else entry[0]

    def put(self, key: K, value: V, ttl: float | None = None) -> bool:
        """Store `value` for `ttl` seconds (None = the default) as the one used last; True when it was stored.

        A value that could never be read (a ttl of 0 or less, heavier than `max_bytes`) is not stored. The former value
        under `key` goes all the same, since it is not the current one any more.
        """
        weight = self._weigh(value) if self._weigh is not None else 0
        lifetime = self._default_lifetime if ttl is None else ttl
        stored = lifetime > 0 and weight <= self._most_bytes
        entry = (value, self._monotonic() + lifetime, weight, next(self._numbers))
        entries, use = self._entries, self._use
        with self._lock:
            held = self._bytes
            former = entries.get(key)
            if former is not None:
                held -= former[2]
                del use[former[3]]
            if stored:
                entries[key] = entry  # over the former: a look-up must not find nothing in between
                use[entry[3]] = key
                held += weight
                while len(entries) > self._max_size or held > self._most_bytes:
                    held -= entries.pop(use.popitem(False)[1])[2]
                    self._evictions += 1
            elif former is not None:
                del entries[key]
            self._bytes = held
        return stored

    def delete(self, key: K) -> bool:
        """Forget `key`; return True when there was an entry, expired or not."""
        with self._lock:
            return self._discard(key)

    def clear(self) -> int:
        """Forget every entry and return how many there were. The counters go on."""
        with self._lock:
            size = len(self._entries)
            self._entries.clear()
            self._use.clear()
            self._bytes = 0
            return size

    def size(self) -> int:
        """Return the number of entries, those that expired without being met included."""
        with self._lock:
            return len(self._entries)

    def get_stats(self) -> CacheStats:
        """Return the figures of this moment; every look-up that has returned is counted once."""
        with self._lock:
            hits, misses = self._hits.total(), self._misses.total()
            return {
                "size": len(self._entries),
                "max_size": self._max_size,
                "bytes": self._bytes,
                "max_bytes": self._max_bytes,
                "hits": hits,
                "misses": misses,
                "evictions": self._evictions,
                "expirations": self._expirations,
                "hit_ratio": hit_ratio(hits, misses),
            }

    def _expire(self, key: K, entry: _Entry[V]) -> None:
        with self._lock:
            if self._entries.get(key) is entry:  # else it went since it was met
                self._discard(key)
                self._expirations += 1

    def _discard(self, key: K) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        del self._use[entry[3]]
        self._bytes -= entry[2]
        return True


class CachedResponse(TypedDict):
    """One response as `ResponseCache.get_cached_response` returns it."""

    response: Any
    input_tokens: int
    output_tokens: int
    cost: float
    """Dollars."""
    cached_at: float
    """Epoch seconds."""


class _Response(NamedTuple):
    body: bytes  # JSON, so that nobody changes what others are given
    input_tokens: int
    output_tokens: int
    nanodollars: int
    cached_at: float


class ResponseCache:
    """Responses by prompt, task and whatever else changes the answer, in an `LRUCache`.

    `max_bytes` bounds the sum of the responses' JSON.
    """

    def __init__(
        self,
        max_size: int = 500,
        default_ttl: float = 1800,
        *,
        max_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._responses: LRUCache[bytes, _Response] = LRUCache(
            max_size, default_ttl, max_bytes=max_bytes, weigh=lambda response: len(response.body), monotonic=monotonic
        )

    def get_cached_response(self, prompt: str, task_type: str, **what_else: Any) -> CachedResponse | None:
        """Return the response stored for the same prompt, task and `what_else`, or None."""
        found = self._responses.get(_digest(prompt, task_type, what_else))
        if found is None:
            return None
        return {
            "response": json.loads(found.body),
            "input_tokens": found.input_tokens,
            "output_tokens": found.output_tokens,
            "cost": found.nanodollars / NANODOLLARS,
            "cached_at": found.cached_at,
        }

    def cache_response(
        self,
        prompt: str,
        task_type: str,
        response: Any,
        input_tokens: int,
        output_tokens: int,
        cost: float,
        ttl: float | None = None,
        **what_else: Any,
    ) -> None:
        """Store `response`, anything that JSON can say, with its cost in dollars (stored to the nano-dollar).

        `what_else` is whatever besides prompt and task changes the answer: model, temperature, categories, language.
        Raises TypeError for a response or a `what_else` that JSON cannot say.
        """
        body = json.dumps(response).encode()
        stored = _Response(body, input_tokens, output_tokens, round(cost * NANODOLLARS), self._clock())
        self._responses.put(_digest(prompt, task_type, what_else), stored, ttl)

    def clear(self) -> int:
        """Forget every response and return how many there were."""
        return self._responses.clear()

    def size(self) -> int:
        """Return the number of responses."""
        return self._responses.size()

    def get_stats(self) -> CacheStats:
        """Return the figures of this moment."""
        return self._responses.get_stats()


def _digest(prompt: str, task_type: str, what_else: dict[str, Any]) -> bytes:
    # JSON tells ["a,b"] and ["a","b"] apart.
    canonical = json.dumps([task_type, prompt, _equal_numbers_alike(what_else)], sort_keys=True)
    return blake2b(canonical.encode(), digest_size=20).digest()


def _equal_numbers_alike(value: Any) -> Any:
    """Return `value` with -0.0, 0.0 and 0, or 1.0 and 1, written the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _equal_numbers_alike(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_equal_numbers_alike(part) for part in value]
    return value


class Window(Protocol):
    """At most `amount` calls in any `window_seconds`."""

    @property
    def amount(self) -> int: ...
    @property
    def window_seconds(self) -> float: ...


class CallTimes:
    """The times of one client's last calls: one ring that serves all windows watched. Use it under a lock.

    Calls are numbered from 0; a window is the number of its oldest call. Counting is O(1), or O(log calls) after a
    pause, and takes 8 bytes for each call that a window still needs.
    """

    # What holds whenever the lock is free (each has a test of its name in tests/test_call_times.py):
    #
    # 1. Numbers only grow: neither `_end` nor an entry of `_oldest` ever falls.
    # 2. A window is a stretch of the calls: 0 <= oldest <= _end.
    # 3. No call is overwritten that a window still needs: _end - min(_oldest) <= len(_ring), a power of two.

    __slots__ = ("_end", "_full_at", "_oldest", "_ring", "_watched")

    def __init__(self) -> None:
        self._ring = array("d", bytes(4 * 8))
        self._end = 0  # the number of the next call
        self._full_at = 4  # the number of the first call that has no room in the ring, as far as is known
        self._watched: tuple[Window, ...] = ()
        self._oldest: list[int] = []  # for each window, the number of its oldest call

    def find_tightest(self, windows: tuple[Window, ...], now: float) -> tuple[int, int, float]:
        """Return the window with least room: its number, how many calls fit into it now, and when that number grows.

        Of windows with the same room it is the one that grows last. A window longer than those asked for before begins
        with the calls that these still needed.
        """
        if windows is not self._watched and windows != self._watched:
            self._oldest = [min(self._oldest, default=self._end)] * len(windows)
            self._watched = windows
        ring, end, oldest = self._ring, self._end, self._oldest
        mask = len(ring) - 1
        tightest, least, grows = 0, UNBOUNDED, 0.0
        for number, window in enumerate(windows):
            first, amount, seconds = oldest[number], window.amount, window.window_seconds
            if first < end and ring[first & mask] + seconds <= now:
                first += 1  # most often just one call has left the window since
                if first < end and ring[first & mask] + seconds <= now:
                    first = self._first_within(seconds, now, first)
                oldest[number] = first
            if end - first > amount:  # possible only when the limit was lowered
                first = end - amount
            room = amount - end + first
            grows_at = (ring[first & mask] if first < end else now) + seconds
            if room < least or (room == least and grows_at > grows):
                tightest, least, grows = number, room, grows_at
        return tightest, least, grows

    def record(self, now: float) -> None:
        """Count a call at `now`, in every window."""
        end = self._end
        if end == self._full_at:
            self._make_room()
        self._ring[end & (len(self._ring) - 1)] = now
        self._end = end + 1

    def count(self, seconds: float, now: float) -> int:
        """Return the number of remembered calls less than `seconds` ago; moves nothing."""
        return self._end - self._first_within(seconds, now, min(self._oldest, default=self._end))

    def _first_within(self, seconds: float, now: float, first: int) -> int:
        """Return the number of the first call less than `seconds` ago, from number `first` on; O(log calls)."""
        ring, mask = self._ring, len(self._ring) - 1
        return first + bisect_right(range(first, self._end), now, key=lambda number: ring[number & mask] + seconds)

    def _make_room(self) -> None:
        former, size, oldest = self._ring, len(self._ring), min(self._oldest)
        if self._end - oldest == size:
            self._ring = array("d", bytes(2 * size * 8))
            for number in range(oldest, self._end):
                self._ring[number & (2 * size - 1)] = former[number & (size - 1)]
        self._full_at = oldest + len(self._ring)


class CounterStats(TypedDict):
    """The number of clients counted now, and of those forgotten for want of room."""

    size: int
    max_size: int
    evictions: int


class _Unlimited(NamedTuple):
    window_seconds: float
    amount: int = UNBOUNDED


class RateLimitCache:
    """Counts the calls of at most `max_size` clients in sliding windows; the one longest not counted goes first."""

    def __init__(self, max_size: int = 10000, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        if max_size < 1:
            raise ValueError("max_size must be at least 1")
        self._monotonic = monotonic
        self._clients: LRUCache[str, CallTimes] = LRUCache(max_size, None, monotonic=monotonic)
        self._lock = Lock()

    def increment_count(self, key: str, window_size: float = 60) -> int:
        """Count a call of `key` and return its calls in the last `window_size` seconds, this one included.

        Exact, so it takes 8 bytes for each call in the window.
        """
        with self._lock:
            calls = self._clients.get(key)
            if calls is None:
                calls = CallTimes()
                self._clients.put(key, calls)
            now = self._monotonic()
            _, room, _ = calls.find_tightest((_Unlimited(window_size),), now)
            calls.record(now)
            return UNBOUNDED - room + 1

    def get_count(self, key: str, window_size: float = 60) -> int:
        """Return the calls of `key` in the last `window_size` seconds, 0 for an unknown one. Count and move nothing."""
        with self._lock:
            calls = self._clients.peek(key)
            return 0 if calls is None else calls.count(window_size, self._monotonic())

    def size(self) -> int:
        """Return the number of clients."""
        return self._clients.size()

    def clear(self) -> int:
        """Forget every client and return how many there were."""
        with self._lock:
            return self._clients.clear()

    def get_stats(self) -> CounterStats:
        """Return the figures of this moment."""
        stats = self._clients.get_stats()
        return {"size": stats["size"], "max_size": stats["max_size"], "evictions": stats["evictions"]}
