"""Keeps how long the latest answers took, and the latest errors, for /stats and the dashboard.

Kept as they are, not in buckets: percentiles of the last thousand answers are exact and forget what is long over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from mtllm.domain.completion import Origin
from mtllm.domain.events import RequestEvent

TIMES_KEPT = 1000
ERRORS_KEPT = 5
"""Of each code, so that a flood of one does not wash away the others."""

# An enum's members are looked up and hashed in Python; every finished request comes by here.
_HIT, _STALE, _NONE = Origin.HIT, Origin.STALE, Origin.NONE


@dataclass(frozen=True, slots=True)
class DurationPercentiles:
    """Percentiles of `samples` durations by nearest rank, in seconds; 0 where there are none."""

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
    client: str
    """The API key's name, else the address."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Whole durations of answers from the cache (`hit`) and of requests that waited for Gemini (`miss`).

    `own` is the share of both that is this service's own, without Gemini and without queueing.
    """

    hit: DurationPercentiles
    miss: DurationPercentiles
    own: DurationPercentiles


class Recent:
    """Remembers the latest requests. Safe to share between threads: a deque's append and copy need no lock."""

    def __init__(self) -> None:
        self._hits: deque[float] = deque(maxlen=TIMES_KEPT)
        self._misses: deque[float] = deque(maxlen=TIMES_KEPT)
        self._own: deque[float] = deque(maxlen=TIMES_KEPT)
        self._errors: dict[str, deque[ErrorSeen]] = {}
        self._lock = threading.Lock()

    def observe(self, event: RequestEvent) -> None:
        """Take note of a finished request."""
        origin = event.origin
        if origin is not _NONE:
            duration = event.duration
            (self._hits if origin is _HIT or origin is _STALE else self._misses).append(duration)
            own = duration - event.queue_seconds - event.upstream_seconds
            self._own.append(own if own > 0.0 else 0.0)
        if event.code is not None and not is_noise(event):
            self._note_error(event.code, event)

    def _note_error(self, code: str, event: RequestEvent) -> None:
        seen = ErrorSeen(event.timestamp, event.status, event.method, event.path, event.request_id, event.client)
        with self._lock:
            self._errors.setdefault(code, deque(maxlen=ERRORS_KEPT)).append(seen)

    def latencies(self) -> Latencies:
        """Return the percentiles of the last TIMES_KEPT requests of each kind."""
        return Latencies(_percentiles(self._hits), _percentiles(self._misses), _percentiles(self._own))

    def errors(self) -> dict[str, tuple[ErrorSeen, ...]]:
        """Return the latest errors but noise, by code, the last one last; the code seen last comes first."""
        with self._lock:
            copies = [(code, tuple(latest)) for code, latest in self._errors.items()]
        return dict(sorted(copies, key=lambda each: each[1][-1].timestamp, reverse=True))


def is_noise(event: RequestEvent) -> bool:
    """Return whether an error is nobody's trouble.

    That is a path that is not there, as any open port is asked for, or a browser that is asked for the dashboard's key.
    """
    return event.status == 404 or (event.status == 401 and event.path.startswith("/dashboard"))


def _percentiles(durations: deque[float]) -> DurationPercentiles:
    ordered = sorted(durations.copy())
    p50, p95, p99, longest = _at_ranks(ordered, (0.5, 0.95, 0.99, 1.0))
    return DurationPercentiles(len(ordered), p50, p95, p99, longest)


def _at_ranks(ordered: list[float], shares: Iterable[float]) -> list[float]:
    return [ordered[ceil(share * len(ordered)) - 1] if ordered else 0.0 for share in shares]
