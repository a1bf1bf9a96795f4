"""Bounded memory: a general LRU cache, the cache of answers built on it, and the table of rate-limited clients.

Every operation is O(1): nothing is swept, what has expired goes when it is met or evicted. Locks are small; to find
what is there takes none, for it is done in steps that Python's global lock keeps whole (a build of Python without that
lock would need locks here).
Durations are monotonic; the wall clock is read only for what people read (`stored_at`) and what outlives the process.
"""

from __future__ import annotations

import json
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from hashlib import blake2b
from itertools import count
from math import inf
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypedDict, TypeVar, overload

from mtllm.domain.completion import CacheHit, StoredAnswer
from mtllm.domain.money import TokenUsage

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

NANODOLLARS = 1_000_000_000
UNBOUNDED = 1 << 62


class CacheStats(TypedDict):
    """What a cache holds now, and what has happened since it was made."""

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
    """The share of look-ups that were hits, 0.0 when there were none."""
    return hits / (hits + misses) if hits + misses else 0.0


class _Tally:
    """A number that many threads count up without a lock: each does it in one step of the interpreter."""

    def __init__(self) -> None:
        self.add = count().__next__
        self._looks = 0

    def total(self) -> int:
        """How often `add` was called. To look is a step too, which is left out; one thread at a time may."""
        total = self.add() - self._looks
        self._looks += 1
        return total


_Entry = tuple[V, float, int, int]
"""Value, when it expires (monotonic), weight, and its number in the order of use."""


class LRUCache(Generic[K, V]):
    """A thread-safe map that forgets what was used least recently, and what is past its time.

    Bounded by `max_size` entries and, with `max_bytes`, by the sum of `weigh(value)`. An entry lives `ttl` seconds:
    expired at `now >= expires`. `default_ttl=None` means that entries without a ttl of their own never expire.

    A look-up takes no lock. The order of use is kept by number and not by key, so that to move an entry to its end is
    one step of the interpreter, whatever code of its own a key is compared by. As in any map, a key's hash must not
    change, nor its comparison raise.
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
        self._hits, self._misses = _Tally(), _Tally()
        self._bytes = self._evictions = self._expirations = 0

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: Any = None) -> Any:
        """The value under `key`, now the one used last, or `default`; None and 0 are values like any other."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses.add()
            return default
        if self._monotonic() >= entry[1]:
            self._expire(key, entry)
            self._misses.add()
            return default
        try:  # noqa: SIM105  # `suppress` would take longer than all the rest
            self._use.move_to_end(entry[3])
        except KeyError:  # it went meanwhile, and was here when it was asked for
            pass
        self._hits.add()
        return entry[0]

    def peek(self, key: K) -> V | None:
        """The value under `key` or None, with nothing counted and nothing moved."""
        entry = self._entries.get(key)
        return None if entry is None or self._monotonic() >= entry[1] else entry[0]

    def put(self, key: K, value: V, ttl: float | None = None) -> bool:
        """Keep `value` for `ttl` seconds (None = the default) as the one used last.

        What could never be read again (a ttl of 0 or less, heavier than `max_bytes`) is not kept; the former value
        under `key` goes all the same, since it is not the current one any more. True when it was kept.
        """
        weight = self._weigh(value) if self._weigh is not None else 0
        lifetime = self._default_lifetime if ttl is None else ttl
        kept = lifetime > 0 and weight <= self._most_bytes
        entry = (value, self._monotonic() + lifetime, weight, next(self._numbers))
        entries, use = self._entries, self._use
        with self._lock:
            held = self._bytes
            former = entries.get(key)
            if former is not None:
                held -= former[2]
                del use[former[3]]
            if kept:
                entries[key] = entry  # over the former: a look-up must not find nothing in between
                use[entry[3]] = key
                held += weight
                while len(entries) > self._max_size or held > self._most_bytes:
                    held -= entries.pop(use.popitem(False)[1])[2]
                    self._evictions += 1
            elif former is not None:
                del entries[key]
            self._bytes = held
        return kept

    def delete(self, key: K) -> bool:
        """Forget `key`; True when there was an entry, expired or not."""
        with self._lock:
            return self._discard(key)

    def clear(self) -> int:
        """Forget everything; the number of entries forgotten. The counters go on."""
        with self._lock:
            size = len(self._entries)
            self._entries.clear()
            self._use.clear()
            self._bytes = 0
            return size

    def size(self) -> int:
        """The number of entries held, those that expired without being met included."""
        with self._lock:
            return len(self._entries)

    def get_stats(self) -> CacheStats:
        """The figures of this moment; every look-up that has returned is in them once."""
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


class Journal(Protocol):
    """Where a ResponseCache notes what should outlive the process. None of these may block on a disk but `clear`."""

    def append(self, key: bytes, answer: StoredAnswer, expires_at: float) -> None:
        """`answer` is stored under `key`, fresh until `expires_at` (epoch seconds)."""

    def touch(self, key: bytes) -> None:
        """The answer under `key` was used."""

    def clear(self) -> None:
        """Everything is forgotten."""


class CachedResponse(TypedDict):
    """What `ResponseCache.get_cached_response` hands back."""

    response: Any
    input_tokens: int
    output_tokens: int
    cost: float
    """Dollars."""
    cached_at: float
    """Epoch seconds."""


class _Kept(NamedTuple):
    answer: StoredAnswer
    stored: float  # monotonic
    fresh_until: float  # monotonic


def _weight(kept: _Kept) -> int:
    return len(kept.answer.body)  # the few hundred bytes around each body are bounded by the number of entries


class ResponseCache:
    """Answers by the digest of the request that they answer; `max_bytes` bounds the sum of their bodies.

    An answer is fresh for its ttl and, expired, kept `stale_seconds` longer for `look_up_stale`. The service uses
    `look_up` and `store` with keys of its own making; `get_cached_response` and `cache_response` are the same store
    for Python callers, who name what they asked.
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
        self._answers: LRUCache[bytes, _Kept] = LRUCache(
            max_size, None, max_bytes=max_bytes, weigh=_weight, monotonic=monotonic
        )
        # What the map above counts as a hit or a miss, and this cache counts otherwise. Both are rare, and the ordinary
        # hit takes no lock.
        self._corrections = Lock()
        self._unusable = 0
        self._shared = 0
        self._unasked = 0

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None:
        """The fresh answer under `key`, at most `max_age` seconds old when that is given. Counts a hit or a miss."""
        kept = self._answers.get(key)
        if kept is None:
            return None
        answer, stored, fresh_until = kept
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
        """The answer under `key` even when it expired, at most `stale_seconds` ago. Counts neither hit nor miss."""
        kept = self._answers.peek(key)
        if kept is None:
            return None
        now = self._monotonic()
        return CacheHit(kept.answer, now - kept.stored, kept.fresh_until - now)

    def store(self, key: bytes, answer: StoredAnswer, ttl: float | None = None) -> bool:
        """Keep `answer` under `key`, fresh for `ttl` seconds (None = the default; 0 = not kept). True if it was."""
        lifetime = self._default_ttl if ttl is None else ttl
        now = self._monotonic()
        kept = self._keep(key, _Kept(answer, now, now + lifetime), lifetime)
        if kept and self._journal is not None:
            self._journal.append(key, answer, self._clock() + lifetime)
        return kept

    def count_shared_hit(self, *, missed: bool = True) -> None:
        """An answer was shared with an identical request in flight: a hit, instead of the miss that was counted for it.

        `missed` is False for a request that was not looked up, so that there is no miss to take back.
        """
        with self._corrections:
            if missed:
                self._shared += 1
            else:
                self._unasked += 1

    def restore(self, entries: Iterable[tuple[bytes, StoredAnswer, float]]) -> int:
        """Keep what a journal held: (key, answer, fresh until, in epoch seconds), used least recently first.

        Each goes on ageing where it was. What has expired meanwhile, or comes from the future because the clock was
        set back, is left out. The number of answers kept at first; the bounds hold as ever.
        """
        restored = 0
        for key, answer, expires_at in entries:
            wall, now = self._clock(), self._monotonic()
            age, freshness = wall - answer.stored_at, expires_at - wall
            if age >= 0 and freshness + self._stale_seconds > 0:
                self._keep(key, _Kept(answer, now - age, now + freshness), freshness)
                restored += 1
        return restored

    def clear(self) -> int:
        """Forget every answer, in the journal too; the number of answers forgotten here."""
        size = self._answers.clear()
        if self._journal is not None:
            self._journal.clear()
        return size

    def get_stats(self) -> CacheStats:
        """The figures of this moment; hits count answers that were served from here or shared in flight."""
        with self._corrections:  # read first: what is corrected has been counted before
            shift, unasked = self._shared - self._unusable, self._unasked
        stats = self._answers.get_stats()
        stats["hits"] += shift + unasked
        stats["misses"] -= shift
        stats["hit_ratio"] = hit_ratio(stats["hits"], stats["misses"])
        return stats

    def get_cached_response(self, prompt: str, task_type: str, **what_else: Any) -> CachedResponse | None:
        """What `cache_response` kept for the same prompt, task and `what_else`, or None."""
        found = self.look_up(_canonical_key(prompt, task_type, what_else))
        if found is None:
            return None
        answer = found.answer
        return {
            "response": json.loads(answer.body),
            "input_tokens": answer.usage.input,
            "output_tokens": answer.usage.output,
            "cost": answer.cost / NANODOLLARS,
            "cached_at": answer.stored_at,
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
        """Keep `response`, anything that JSON can say, which cost `cost` dollars (kept to the nano-dollar).

        `what_else` is whatever besides prompt and task changes the answer: model, temperature, categories, language.
        Raises TypeError for a response or a `what_else` that JSON cannot say.
        """
        answer = StoredAnswer(
            body=json.dumps(response).encode(),
            usage=TokenUsage(input_tokens, output_tokens),
            cost=round(cost * NANODOLLARS),
            model=str(what_else.get("model", "")),
            finish_reason="stop",
            stored_at=self._clock(),
        )
        self.store(_canonical_key(prompt, task_type, what_else), answer, ttl)

    def _keep(self, key: bytes, kept: _Kept, freshness: float) -> bool:
        born_stale = kept.fresh_until <= kept.stored
        return self._answers.put(key, kept, 0 if born_stale else freshness + self._stale_seconds)


def _canonical_key(prompt: str, task_type: str, what_else: dict[str, Any]) -> bytes:
    # JSON keeps ["a,b"] and ["a","b"] apart; `person` keeps these keys apart from those that the service makes
    canonical = json.dumps([task_type, prompt, what_else], sort_keys=True)
    return blake2b(canonical.encode(), digest_size=20, person=b"python caller").digest()


class TableStats(TypedDict):
    """What a table of clients holds now, and how many it had to forget."""

    size: int
    max_size: int
    protected: int
    """Clients that are, or just were, at a limit."""
    evictions: int


class CallTimes:
    """When a client made its last counted calls: one ring of times that serves all windows watched.

    Calls are numbered, and each window knows the number of its oldest call, which only moves forward: counting is
    O(1), or O(log calls) after a pause. The ring grows only when a call that some window still needs would
    be overwritten. Used under its `lock`, but for a look at `full`.
    """

    __slots__ = ("_end", "_forgotten", "_full_at", "_oldest", "_ring", "_watched", "full", "lock", "protected_until")

    def __init__(self) -> None:
        self.lock = Lock()
        self._forgotten = False
        self.full: tuple[tuple[Hashable, ...], int, float] | None = None
        """(windows, number of the one that has room last, when it has): until then (monotonic) they admit nothing."""
        self._ring = array("d", bytes(4 * 8))  # the times, as doubles; the length is always a power of two
        self._end = 0  # the number of the next call
        self._full_at = 4  # the number of the first call that has no place, as far as is known
        self._watched: tuple[Hashable, ...] = ()
        self._oldest: list[int] = []  # for each window, the number of its oldest call
        self.protected_until = -inf

    def hold(self) -> bool:
        """Take the lock, unless the table has let go of these calls: what is counted then would count for nobody."""
        self.lock.acquire()
        if self._forgotten:
            self.lock.release()
        return not self._forgotten

    def forget(self) -> None:
        """The table lets go; whoever holds the lock has counted by then."""
        with self.lock:
            self._forgotten = True

    def watch(self, windows: tuple[Hashable, ...]) -> None:
        """Number the windows from 0; to be called before each use, it costs something only when they change.

        A window longer than those watched last begins with the calls that these still remember.
        """
        if windows is not self._watched and windows != self._watched:
            self._oldest = [min(self._oldest, default=self._end)] * len(windows)
            self._watched = windows

    def room(self, window: int, amount: int, seconds: float, now: float) -> tuple[int, float]:
        """How many more calls fit into `amount` in `seconds`, and when that number next grows."""
        ring, end, first = self._ring, self._end, self._oldest[window]
        mask = len(ring) - 1
        if first < end and ring[first & mask] + seconds <= now:
            first += 1  # most often just one call has left the window since
            if first < end and ring[first & mask] + seconds <= now:
                first = self._first_within(seconds, now, first)
            self._oldest[window] = first
        if first == end:
            return amount, now + seconds
        if end - first > amount:  # possible only when the limit was lowered
            first = end - amount
        return amount - (end - first), ring[first & mask] + seconds

    def record(self, now: float) -> None:
        """Count a call at `now`, in every window."""
        self.full = None  # this call may keep a window full for longer
        end = self._end
        if end == self._full_at:
            self._make_place()
        self._ring[end & (len(self._ring) - 1)] = now
        self._end = end + 1

    def count(self, seconds: float, now: float) -> int:
        """The calls less than `seconds` ago among those remembered; moves nothing."""
        return self._end - self._first_within(seconds, now, min(self._oldest, default=self._end))

    def _first_within(self, seconds: float, now: float, first: int) -> int:
        """The number of the first call less than `seconds` ago, from number `first` on; O(log calls)."""
        ring, mask = self._ring, len(self._ring) - 1
        return first + bisect_right(range(first, self._end), now, key=lambda number: ring[number & mask] + seconds)

    def _make_place(self) -> None:
        former, size, oldest = self._ring, len(self._ring), min(self._oldest)
        if self._end - oldest == size:
            self._ring = array("d", bytes(2 * size * 8))
            for number in range(oldest, self._end):
                self._ring[number & (2 * size - 1)] = former[number & (size - 1)]
        self._full_at = oldest + len(self._ring)


class RateLimitCache:
    """The calls of at most `max_size` clients; the one longest not seen goes first.

    Clients at a limit are protected: they are kept apart and go only when there is nobody else, so that a flood of
    new clients does not set them free. Each client has a lock of its own, and one that is known is found without any,
    so that clients do not wait for each other; the table's lock is for those who come, go or change sides.
    """

    def __init__(self, max_size: int = 10000, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        if max_size < 1:
            raise ValueError("max_size must be at least 1")
        self._lock = Lock()
        self._max_size = max_size
        self._monotonic = monotonic
        self._open: OrderedDict[str, CallTimes] = OrderedDict()
        self._protected: OrderedDict[str, CallTimes] = OrderedDict()
        self._evictions = 0

    def increment_count(self, key: str, window_size: float = 60) -> int:
        """Count a call of `key`; its calls in the last `window_size` seconds, this one included.

        Exact, so it takes 8 bytes for each call in the window.
        """
        calls = self.held(key)
        try:
            now = self._monotonic()
            calls.watch((window_size,))
            room, _ = calls.room(0, UNBOUNDED, window_size, now)
            calls.record(now)
        finally:
            calls.lock.release()
        return UNBOUNDED - room + 1

    def get_count(self, key: str, window_size: float = 60) -> int:
        """The calls of `key` in the last `window_size` seconds, 0 for an unknown one. Counts and moves nothing."""
        with self._lock:
            calls = self._open.get(key) or self._protected.get(key)
        if calls is None:
            return 0
        with calls.lock:
            return calls.count(window_size, self._monotonic())

    def size(self) -> int:
        """The number of clients in the table."""
        return len(self._open) + len(self._protected)

    def clear(self) -> int:
        """Forget every client; the number forgotten."""
        with self._lock:
            known = [*self._open.values(), *self._protected.values()]
            self._open.clear()
            self._protected.clear()
            for calls in known:
                calls.forget()
            return len(known)

    def get_stats(self) -> TableStats:
        """The figures of this moment."""
        with self._lock:
            return {
                "size": self.size(),
                "max_size": self._max_size,
                "protected": len(self._protected),
                "evictions": self._evictions,
            }

    def held(self, client: str) -> CallTimes:
        """What `recall` brings with its lock held, to be released before anything else is asked of the table."""
        while not (calls := self.recall(client)).hold():
            pass  # evicted in between: the next one is that of the table
        return calls

    def recall(self, client: str) -> CallTimes:
        """The calls of `client`, now the one seen last; an unknown one comes with none, in place of another's."""
        try:  # each of these is one step of the interpreter, so that a known client needs no lock
            if (calls := self._open.get(client)) is not None:
                self._open.move_to_end(client)
                return calls
            if (calls := self._protected.get(client)) is not None and calls.protected_until > self._monotonic():
                self._protected.move_to_end(client)
                return calls
        except KeyError:  # it went or changed sides between two of them
            pass
        with self._lock:
            return self._found_or_new(client)

    def protect(self, client: str, calls: CallTimes, until: float) -> None:
        """Evict `client`, whose `calls` were just held, last until that time (monotonic): it is at a limit.

        Between the two it may go, if so many newcomers come in that moment as the table has room for.
        """
        with self._lock:
            calls.protected_until = until
            if self._open.get(client) is calls:
                self._protected[client] = self._open.pop(client)

    def _found_or_new(self, client: str) -> CallTimes:
        calls = self._open.get(client)
        if calls is not None:
            return calls
        calls, now = self._protected.get(client), self._monotonic()
        if calls is None:
            if self.size() >= self._max_size:
                self._evict(now)
            calls = self._open[client] = CallTimes()
        elif calls.protected_until <= now:
            self._open[client] = self._protected.pop(client)
        return calls

    def _evict(self, now: float) -> None:
        # One protected client is looked at for each eviction, so those whose time is over cannot pile up.
        self._evictions += 1
        if self._protected:
            client, calls = self._protected.popitem(last=False)
            if calls.protected_until <= now or not self._open:
                calls.forget()
                return
            self._protected[client] = calls
        self._open.popitem(last=False)[1].forget()
