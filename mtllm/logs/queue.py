"""The queue between the requests and the log writer, bounded by what its events weigh."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from mtllm.domain.events import Notice, RequestEvent

QUEUE_BYTES: Final = 16 * 1024 * 1024
EVENT_BYTES: Final = 1024
"""What an event without words weighs, roughly."""

LogEvent = RequestEvent | Notice


class EventQueue:
    """Events that wait to be written. Many threads put, one takes; nobody waits but in `wait_until_done`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._changed = threading.Condition(threading.Lock())
        self._events: deque[LogEvent] = deque()
        self._bytes = self._accepted = self._done = self._dropped = 0
        self._closed = False

    def put(self, event: LogEvent, weight: int, *, urgent: bool) -> bool:
        """Take `event` over, or count it as dropped and return False. An `urgent` one has a quarter more room."""
        room = self._max_bytes + self._max_bytes // 4 if urgent else self._max_bytes
        with self._changed:
            if self._closed or self._bytes + weight > room:
                self._dropped += 1
                return False
            self._events.append(event)
            self._bytes += weight
            self._accepted += 1
        return True

    def take_all(self) -> deque[LogEvent]:
        """Return all events that wait, oldest first."""
        with self._changed:
            events, self._events, self._bytes = self._events, deque(), 0
        return events

    def mark_done(self, count: int) -> None:
        """Say that `count` of the events taken are written, or counted as lost."""
        with self._changed:
            self._done += count
            self._changed.notify_all()

    def wait_until_done(self, timeout: float) -> bool:
        """Wait until all that was put before is done; False when `timeout` seconds pass."""
        with self._changed:
            wanted = self._accepted
            return self._changed.wait_for(lambda: self._done >= wanted, timeout)

    def close(self) -> None:
        """Take no further event."""
        with self._changed:
            self._closed = True

    @property
    def is_finished(self) -> bool:
        """Return whether the queue is closed and all of it taken."""
        return self._closed and not self._events

    def counts(self) -> tuple[int, int]:
        """Return how many events wait or are being written, and how many were dropped."""
        with self._changed:
            return self._accepted - self._done, self._dropped
