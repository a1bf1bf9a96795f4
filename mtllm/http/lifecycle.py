"""Counts the requests in flight and, on SIGTERM, lets them finish before the process leaves.

SIGTERM has no handler under waitress, so the process would die in the middle of its answers. Ours refuses new tasks
(503 `draining`), waits until nothing is in flight and every connection has sent its bytes, closes the service, and
leaves with status 0.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from mtllm.parts import CheckResult, judge

POLL_SECONDS = 0.02

Leave = Callable[[int, FrameType | None], object]
"""A signal handler that ends the process in its server's own way."""


class Lifecycle:
    """Knows whether the process is draining, and how many requests are in flight."""

    def __init__(self, drain_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.draining = False
        self._drain_seconds = drain_seconds
        self._monotonic = monotonic
        self._in_flight = 0
        self._lock = threading.Lock()
        self._drained_by: float | None = None
        self._unsent: Callable[[], bool] = lambda: False

    @property
    def in_flight(self) -> int:
        """Return the requests begun and not yet closed, streams included."""
        return self._in_flight

    def begin(self) -> None:
        """Count a request that has come in."""
        with self._lock:
            self._in_flight += 1

    def end(self) -> None:
        """Count a request that has been answered whole."""
        with self._lock:
            self._in_flight -= 1

    def seconds_left(self) -> float:
        """Return how many seconds a draining process may still take."""
        return self._drain_seconds if self._drained_by is None else max(0.0, self._drained_by - self._monotonic())

    def check(self) -> CheckResult:
        """Return what readiness says of it."""
        return judge(not self.draining, "shutting down")

    def watch_connections(self, unsent: Callable[[], bool]) -> None:
        """Ask `unsent` from now on whether a connection still has bytes to send."""
        self._unsent = unsent

    def drain(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Refuse new tasks and wait until nothing is in flight, at most DRAIN_SECONDS."""
        self.draining = True
        self._drained_by = self._monotonic() + self._drain_seconds
        while (self._in_flight or self._unsent()) and self._monotonic() < self._drained_by:
            wait(POLL_SECONDS)

    def drain_on_sigterm(self, close: Callable[[], None], leave: Leave | None = None) -> None:
        """Install the handler, in the main thread alone; where another has one, only if that is given as `leave`.

        `close` flushes and closes what must not be lost; it runs after the drain. The drain has a thread of its own,
        since the main one must go on serving connections meanwhile; at its end it sends the signal once more, and only
        then does the handler `leave`: by default it raises SystemExit, which waitress takes as its word to stop.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if leave is None and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        drained = threading.Event()

        def drain_and_leave() -> None:
            try:
                self.drain()
                close()
            finally:  # whatever went wrong, the process was told to go
                drained.set()
                os.kill(os.getpid(), signal.SIGTERM)

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            if drained.is_set():
                if leave is None:
                    raise SystemExit(0)
                leave(number, frame)
            elif not self.draining:
                self.draining = True
                threading.Thread(target=drain_and_leave, name="drain", daemon=True).start()

        signal.signal(signal.SIGTERM, on_sigterm)
