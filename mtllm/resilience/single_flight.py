"""Single flight: identical requests that are under way at once share one call.

The first of them leads and lands the flight; those that come before it lands follow, and get what it got.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Generic, TypeVar

Landing = TypeVar("Landing")


class SingleFlight(Generic[Landing]):
    """The flights that are in the air, by key."""

    def __init__(self) -> None:
        self._in_air: dict[bytes, Future[Landing]] = {}
        self._lock = threading.Lock()

    def join(self, key: bytes) -> tuple[Future[Landing], bool]:
        """The flight of `key`, and whether the caller leads it. A leader must `land` it, whatever happens."""
        with self._lock:
            flight = self._in_air.get(key)
            if flight is not None:
                return flight, False
            flight = self._in_air[key] = Future()
            return flight, True

    def land(self, key: bytes, result: Landing) -> None:
        """End the flight of `key`: its followers get `result`, and the next to come leads a new one."""
        with self._lock:
            flight = self._in_air.pop(key)
        flight.set_result(result)
