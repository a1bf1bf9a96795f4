"""The table of rate-limited clients: bounded, and clients at a limit are evicted last."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock
from typing import TypedDict

from lru_cache import require_gil
from mtllm.ratelimit.window import ClientCalls


class TableStats(TypedDict):
    """The number of clients in a table now, and of those it had to forget."""

    size: int
    max_size: int
    protected: int
    """Clients that are, or just were, at a limit."""
    evictions: int


class ClientTable:
    """The calls of at most `max_size` clients; the client longest not seen goes first.

    Clients at a limit are protected: they are held apart and go only when there is nobody else, so that a flood of new
    clients does not set them free. Each client has a lock of its own, and a known client is found without any
    (benchmarks: parts_cache, rate limiters, 8 threads), so that clients do not wait for each other; the table's lock is
    for clients that come, go or change sides. Raises RuntimeError on a free-threaded interpreter.
    """

    def __init__(self, max_size: int = 10000, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        require_gil()
        if max_size < 1:
            raise ValueError("max_size must be at least 1")
        self._lock = Lock()
        self._max_size = max_size
        self._monotonic = monotonic
        self._open: OrderedDict[str, ClientCalls] = OrderedDict()
        self._protected: OrderedDict[str, ClientCalls] = OrderedDict()
        self._evictions = 0

    def locked(self, client: str, found: ClientCalls | None = None) -> AbstractContextManager[ClientCalls]:
        """Lock the calls of `client` for the `with` block that this opens, in which the table may not be used.

        `found` spares the search: the calls that `find` has just returned. Evicted since, they are looked for again.
        """
        calls = found or self.find(client)
        while True:
            calls.lock.acquire()
            if not calls.evicted:
                return calls
            calls.lock.release()
            calls = self.find(client)

    def find(self, client: str) -> ClientCalls:
        """Return the calls of `client`, now the one seen last; an unknown one comes with none, in place of another's.

        Only `full` and `protected_until` may be read of them; the rest is for `locked`.
        """
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
            return self._find_or_add(client)

    def protect(self, client: str, calls: ClientCalls, until: float) -> None:
        """Evict `client`, whose `calls` were just locked, last until that time (monotonic): it is at a limit.

        Before this the client may go, if so many newcomers come in that moment as the table has room for.
        """
        with self._lock:
            calls.protected_until = until
            if self._open.get(client) is calls:
                self._protected[client] = self._open.pop(client)

    def size(self) -> int:
        """Return the number of clients in the table."""
        return len(self._open) + len(self._protected)

    def clear(self) -> int:
        """Forget every client and return how many there were."""
        with self._lock:
            known = [*self._open.values(), *self._protected.values()]
            self._open.clear()
            self._protected.clear()
            for calls in known:
                _mark_evicted(calls)
            return len(known)

    def get_stats(self) -> TableStats:
        """Return the figures of this moment."""
        with self._lock:
            return {
                "size": self.size(),
                "max_size": self._max_size,
                "protected": len(self._protected),
                "evictions": self._evictions,
            }

    def _find_or_add(self, client: str) -> ClientCalls:
        calls = self._open.get(client)
        if calls is not None:
            return calls
        calls, now = self._protected.get(client), self._monotonic()
        if calls is None:
            if self.size() >= self._max_size:
                self._evict(now)
            calls = self._open[client] = ClientCalls()
        elif calls.protected_until <= now:
            self._open[client] = self._protected.pop(client)
        return calls

    def _evict(self, now: float) -> None:
        # One protected client is looked at for each eviction, so those whose time is over cannot pile up.
        self._evictions += 1
        if self._protected:
            client, calls = self._protected.popitem(last=False)
            if calls.protected_until <= now or not self._open:
                _mark_evicted(calls)
                return
            self._protected[client] = calls
        _mark_evicted(self._open.popitem(last=False)[1])


def _mark_evicted(calls: ClientCalls) -> None:
    with calls.lock:  # whoever holds it has counted by then
        calls.evicted = True
