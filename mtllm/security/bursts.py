"""Which client keeps failing: repeated 401, bursts of 404 and 429."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mtllm.domain.findings import Finding, Severity

REPEATED_UNAUTHORIZED: Final = "repeated_unauthorized"
NOT_FOUND_BURST: Final = "not_found_burst"
RATE_LIMIT_BURST: Final = "rate_limit_burst"

_BURSTS: Final[dict[int, tuple[str, Severity, int]]] = {
    401: (REPEATED_UNAUTHORIZED, "high", 5),
    404: (NOT_FOUND_BURST, "medium", 20),
    429: (RATE_LIMIT_BURST, "low", 20),
}
"""By status: the finding, its severity, and how many such answers within the window make a burst."""


@dataclass(slots=True)
class _Failures:
    times: deque[float]
    reported: float


class BurstDetector:
    """Notices a client that gathers 401, 404 or 429 answers faster than a person would.

    `window` is in seconds. O(1) an answer and nothing for other statuses; the times of the last few such answers are
    kept for `max_clients` pairs of client and status, the longest silent forgotten first.
    """

    def __init__(
        self,
        *,
        window: float = 60.0,
        max_clients: int = 10_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window = window
        self._max_clients = max_clients
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures: OrderedDict[tuple[str, int], _Failures] = OrderedDict()

    def observe(self, client: str, status: int) -> Finding | None:
        """Count one answer; return a finding when it completes a burst. One that goes on is found once a window."""
        burst = _BURSTS.get(status)
        if burst is None:
            return None
        kind, severity, threshold = burst
        now = self._monotonic()
        with self._lock:
            failures = self._failures_of((client, status), threshold)
            failures.times.append(now)
            full = len(failures.times) == threshold and now - failures.times[0] < self._window
            if not full or now - failures.reported < self._window:
                return None
            failures.reported = now
        return Finding(kind, severity, f"{threshold} or more within {self._window:g} s")

    def _failures_of(self, who: tuple[str, int], threshold: int) -> _Failures:
        failures = self._failures.get(who)
        if failures is None:
            failures = self._failures[who] = _Failures(deque(maxlen=threshold), float("-inf"))
            if len(self._failures) > self._max_clients:
                self._failures.popitem(last=False)
        self._failures.move_to_end(who)
        return failures
