"""Single flight: identical requests that are under way at once share one call.

The first of them leads the flight; those that come before it finishes follow, and get its result.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """The flights that are under way, by key. Results are values: an error is handed on, never raised in a follower."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Future[Result]] = {}
        self._lock = threading.Lock()

    def join(self, key: bytes) -> tuple[Future[Result], bool]:
        """Return the flight of `key`, and whether the caller leads it. A leader must `finish` it, whatever happens."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Future()
            return flight, True

    def finish(self, key: bytes, result: Result) -> None:
        """End the flight of `key`: its followers get `result`, and the next to come leads a new one."""
        with self._lock:
            flight = self._flights.pop(key)
        flight.set_result(result)
