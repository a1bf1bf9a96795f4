"""What happened lately: how long the latest answers took, and the latest errors. For /stats and the dashboard.

Kept as they are, not in buckets: percentiles of the last thousand answers are exact and forget what is long over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from mtllm.domain.completion import Origin
from mtllm.logs.writer import RequestEvent

TIMES_KEPT = 1000
ERRORS_KEPT = 5
"""Of each code, so that a flood of one does not wash away the others."""

# An enum's members are looked up and hashed in Python; every finished request comes by here.
_HIT, _STALE, _NONE = Origin.HIT, Origin.STALE, Origin.NONE


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `samples` durations, in seconds: the value that so many percent do not exceed (nearest rank). 0 of none."""

    samples: int
    p50: float
    p95: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class ErrorSeen:
    """One request that ended in an error; `timestamp` in epoch seconds, `status` as sent (200 for a broken stream)."""

    timestamp: float
    status: int
    method: str
    path: str
    request_id: str


@dataclass(slots=True)
class ErrorsOfCode:
    """How often a code was the end since the start, and its latest cases, the last one last."""

    code: str
    count: int = 0
    latest: deque[ErrorSeen] = field(default_factory=lambda: deque(maxlen=ERRORS_KEPT))


@dataclass(frozen=True, slots=True)
class Latencies:
    """Whole durations of answers from the cache (`hit`) and of requests that waited for Gemini (`miss`), and the share
    of both that is this service's own (`own`: without Gemini and without queueing)."""

    hit: Percentiles
    miss: Percentiles
    own: Percentiles


class Recent:
    """Remembers the latest requests. Safe to share between threads: a deque's append and copy need no lock."""

    def __init__(self) -> None:
        self._hits: deque[float] = deque(maxlen=TIMES_KEPT)
        self._misses: deque[float] = deque(maxlen=TIMES_KEPT)
        self._own: deque[float] = deque(maxlen=TIMES_KEPT)
        self._errors: dict[str, ErrorsOfCode] = {}
        self._lock = threading.Lock()

    def observe(self, event: RequestEvent) -> None:
        """Take note of a finished request."""
        origin = event.origin
        if origin is not _NONE:
            duration = event.duration
            (self._hits if origin is _HIT or origin is _STALE else self._misses).append(duration)
            own = duration - event.queue_seconds - event.upstream_seconds
            self._own.append(own if own > 0.0 else 0.0)
        if event.code is not None and not _is_noise(event):
            self._note_error(event.code, event)

    def _note_error(self, code: str, event: RequestEvent) -> None:
        seen = ErrorSeen(event.timestamp, event.status, event.method, event.path, event.request_id)
        with self._lock:
            errors = self._errors.setdefault(code, ErrorsOfCode(code))
            errors.count += 1
            errors.latest.append(seen)

    def latencies(self) -> Latencies:
        """Of the last TIMES_KEPT requests of each kind."""
        return Latencies(_percentiles(self._hits), _percentiles(self._misses), _percentiles(self._own))

    def errors(self) -> list[ErrorsOfCode]:
        """Every error but noise, by code, the latest first."""
        with self._lock:
            copies = [ErrorsOfCode(e.code, e.count, e.latest.copy()) for e in self._errors.values()]
        return sorted(copies, key=lambda errors: errors.latest[-1].timestamp, reverse=True)


def _is_noise(event: RequestEvent) -> bool:
    """A path that is not there, as any open port is asked for; a browser that is asked for the key of the dashboard."""
    return event.status == 404 or (event.status == 401 and event.path.startswith("/dashboard"))


def _percentiles(durations: deque[float]) -> Percentiles:
    ordered = sorted(durations.copy())
    p50, p95, p99, longest = _at_ranks(ordered, (0.5, 0.95, 0.99, 1.0))
    return Percentiles(len(ordered), p50, p95, p99, longest)


def _at_ranks(ordered: list[float], shares: Iterable[float]) -> list[float]:
    return [ordered[ceil(share * len(ordered)) - 1] if ordered else 0.0 for share in shares]
