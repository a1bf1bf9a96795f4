"""A circuit breaker: while Gemini is down, callers are told so at once instead of after a wait.

closed     calls pass; `threshold` failures in a row open it
open       calls are refused for `cool_down` seconds
half-open  one call passes as a probe, the others are still refused; its success closes, its failure opens again
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mtllm.domain.errors import UpstreamFailure, UpstreamUnavailable

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """The breaker's state, for readiness and stats."""

    state: State
    consecutive_failures: int
    retry_in: float
    """Seconds until the next call is admitted; 0 when one would be now."""
    times_opened: int
    """Since the process started."""


class CircuitBreaker:
    """One for all calls to one model. `admit()` before a request, one `record_...` or `withdraw()` after it.

    A request is counted once, whatever its retries. A probe that never reports back is given up after another
    `cool_down` seconds, so that it cannot keep the breaker open. Thread-safe; times are monotonic seconds.
    """

    def __init__(
        self, *, threshold: int = 5, cool_down: float = 10.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._threshold = threshold
        self._cool_down = cool_down
        self._monotonic = monotonic
        self._failures = 0
        self._times_opened = 0
        self._refuses_until: float | None = None
        self._probing = False
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Let one request pass, or raise UpstreamUnavailable with the seconds until the next one would."""
        with self._lock:
            if self._refuses_until is None:
                return
            now = self._monotonic()
            if now < self._refuses_until:
                raise UpstreamUnavailable(retry_after=self._refuses_until - now)
            self._probing = True
            self._refuses_until = now + self._cool_down

    def record_success(self) -> None:
        """Count an admitted request that Gemini answered, be it with a refusal."""
        with self._lock:
            self._failures = 0
            self._refuses_until = None
            self._probing = False

    def withdraw(self) -> None:
        """Take back an admitted request that never asked Gemini: if it was the probe, the next one is."""
        with self._lock:
            if self._probing:
                self._probing = False
                self._refuses_until = self._monotonic()

    def record_failure(self, error: UpstreamFailure) -> None:
        """Count an admitted request that failed; where `breaks` is false, Gemini answered after all."""
        if not error.breaks:
            self.record_success()
            return
        with self._lock:
            self._failures += 1
            if self._opens():
                self._times_opened += self._refuses_until is None
                self._refuses_until = self._monotonic() + self._cool_down
                self._probing = False

    def _opens(self) -> bool:
        """Return whether the failure just counted opens it; later ones do not prolong the wait."""
        return self._probing or (self._refuses_until is None and self._failures >= self._threshold)

    @property
    def state(self) -> State:
        """Return the state that holds now."""
        return self.snapshot().state

    def snapshot(self) -> BreakerSnapshot:
        """Return state and figures of one moment."""
        with self._lock:
            until = self._refuses_until
            wait = 0.0 if until is None else max(0.0, until - self._monotonic())
            return BreakerSnapshot(self._state(wait), self._failures, wait, self._times_opened)

    def _state(self, wait: float) -> State:
        if self._refuses_until is None:
            return "closed"
        return "half-open" if self._probing or not wait else "open"


class Breakers:
    """A circuit breaker for each model. Thread-safe."""

    def __init__(self, make: Callable[[], CircuitBreaker] = CircuitBreaker) -> None:
        self._make = make
        self._by_model: dict[str, CircuitBreaker] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> CircuitBreaker:
        """Return the breaker of a model, a new one at its first request."""
        breaker = self._by_model.get(model)
        if breaker is None:
            with self._lock:
                breaker = self._by_model.setdefault(model, self._make())
        return breaker

    def snapshot(self) -> BreakerSnapshot:
        """Return the figures of the breaker that is worst off, with how often any of them has opened."""
        with self._lock:
            snapshots = [breaker.snapshot() for breaker in self._by_model.values()]
        if not snapshots:
            return BreakerSnapshot("closed", 0, 0.0, 0)
        worst = max(snapshots, key=lambda one: (_ORDER.index(one.state), one.consecutive_failures))
        return replace(worst, times_opened=sum(one.times_opened for one in snapshots))


_ORDER: tuple[State, ...] = ("closed", "half-open", "open")
"""From well to worst."""
