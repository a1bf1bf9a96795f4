"""Hits on their way to the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from mtllm.ledger.records import Hit


class HitQueue:
    """Hits that wait to be written, oldest first. Any thread adds, only the writer takes; adding takes no lock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._hits: deque[Hit] = deque()
        self._oldest_queued: float | None = None  # None also says: the writer does not know of hits, so wake it
        self._oldest_taken: float | None = None
        self._counting = threading.Lock()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._hits)

    def add(self, hit: Hit) -> bool:
        """Queue `hit`; return whether the writer must be woken for it."""
        self._hits.append(hit)
        if self._oldest_queued is not None:
            return False
        self._oldest_queued = self._monotonic()
        return True

    def take(self, at_most: int) -> list[Hit]:
        """Return the oldest hits, to be written. From now on the next hit that is added wakes the writer again."""
        self._oldest_taken, self._oldest_queued = self._oldest_queued, None
        taken = [self._hits.popleft() for _ in range(min(len(self._hits), at_most))]
        if self._hits:
            self._oldest_queued = self._oldest_taken
        return taken

    def mark_written(self) -> None:
        """Say that the hits taken are on disk."""
        self._oldest_taken = None

    def put_back(self, hits: list[Hit]) -> None:
        """Queue hits again that could not be written. The writer tries again by itself, so nobody has to wake it."""
        if hits:
            self._oldest_queued = self._oldest_taken
            self._hits.extendleft(reversed(hits))

    def drop(self, count: int) -> None:
        """Count hits as lost."""
        with self._counting:
            self._dropped += count

    @property
    def dropped(self) -> int:
        """Return how many hits were lost so far."""
        return self._dropped

    def lag_seconds(self) -> float:
        """Return for how long the oldest hit has been waiting for the disk."""
        starts = [start for start in (self._oldest_taken, self._oldest_queued) if start is not None]
        return max(0.0, self._monotonic() - min(starts)) if starts else 0.0
