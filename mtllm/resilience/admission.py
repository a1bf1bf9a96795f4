"""Admission: how many calls to Gemini run at once, how many requests wait for one, and who is refused.

A call takes one of `slots`. A request that finds none waits in line for one, first come, first served, for a bounded
time. Waiting takes a thread, and a server thread that waits serves nobody else: so one of `threads` is always left for
stored answers and health, however slow Gemini is. Past that load is shed: a refusal tells, from the rate at which slots
came free lately, when to come back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mtllm.domain.errors import Overloaded

RELEASES_KEPT = 32
"""Slots given back lately, from which the rate is measured."""
LONGEST_RETRY_AFTER = 60.0
"""Seconds; no measured rate sends a caller away for longer."""


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """What is taken now, and what has happened since the start.

    `in_use` of `slots` are taken, `queued` requests wait for one, `following` ones for another's call. `shed`: requests
    refused. `waited`: requests that got a slot after a wait. `abandoned`: calls given up by their caller, or at their
    deadline, while Gemini is still at it.
    """

    in_use: int
    slots: int
    queued: int
    following: int
    shed: int
    waited: int = 0
    abandoned: int = 0


class _Ticket:
    """A place in the line: its lock is released when a slot is handed over."""

    __slots__ = ("granted", "wake")

    def __init__(self) -> None:
        self.granted = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Admission:
    """Hands out `slots` for calls. Thread-safe.

    `queue_seconds`: how long a request waits in line at most; 0 refuses at once. `threads`: the server's, one of which
    stays free.
    """

    def __init__(
        self,
        slots: int = 1,
        *,
        threads: int = 2,
        queue_seconds: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resize(slots, threads)
        self._queue_seconds = queue_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()
        self._releases: deque[float] = deque(maxlen=RELEASES_KEPT)
        self._in_use = 0
        self._following = 0
        self._shed = 0
        self._waited = 0
        self._abandoned = 0

    def resize(self, slots: int, threads: int) -> None:
        """Set how many slots there are, and how many threads the server has. Raises ValueError below one slot.

        Where an operator sets more slots than there are threads, as many may wait, and no thread is kept free.
        """
        if slots < 1:
            raise ValueError("there must be at least one slot")
        self._slots = slots
        self._most_waiting = max(threads - 1, slots)

    def enter(self, deadline: float) -> float:
        """Take a slot, after a wait in line if need be; return the seconds waited.

        Never waits past `deadline` (monotonic). Raises Overloaded when no slot came in time, or the line is full.
        """
        began = self._monotonic()
        with self._lock:
            if self._in_use < self._slots and not self._line:
                self._in_use += 1
                return 0.0
            patience = min(self._queue_seconds, deadline - began)
            if patience <= 0 or self._threads_taken() >= self._most_waiting:
                raise self._refusal()
            ticket = _Ticket()
            self._line.append(ticket)
        ticket.wake.acquire(timeout=patience)
        with self._lock:
            if not ticket.granted:
                self._line.remove(ticket)
                raise self._refusal()
            self._waited += 1
        return self._monotonic() - began

    def leave(self) -> None:
        """Give the slot back: to the first in line, if there is one."""
        with self._lock:
            self._releases.append(self._monotonic())
            if not self._line:
                self._in_use -= 1
                return
            ticket = self._line.popleft()
            ticket.granted = True
        ticket.wake.release()

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Hold a thread, and no slot, while the block waits for somebody else's call. Raises Overloaded."""
        with self._lock:
            if self._threads_taken() >= self._most_waiting:
                raise self._refusal()
            self._following += 1
        try:
            yield
        finally:
            with self._lock:
                self._following -= 1

    def count_abandoned(self) -> None:
        """Count a call that is given up; its slot stays taken until the call has ended."""
        with self._lock:
            self._abandoned += 1

    def state(self) -> AdmissionState:
        """Return what holds now."""
        with self._lock:
            return AdmissionState(
                self._in_use, self._slots, len(self._line), self._following, self._shed, self._waited, self._abandoned
            )

    def _threads_taken(self) -> int:
        return self._in_use + self._following + len(self._line)

    def _refusal(self) -> Overloaded:
        """Count a refusal and say when a slot will be free for who comes back. Called with the lock held."""
        self._shed += 1
        return Overloaded(retry_after=self._seconds_to_a_slot())

    def _seconds_to_a_slot(self) -> float:
        """Return how long all that wait now, and one more, will take by the rate of the last releases."""
        if len(self._releases) < 2:
            return 1.0
        now = self._monotonic()
        seconds = (now - self._releases[0]) / len(self._releases)
        return min(max(1.0, (len(self._line) + 1) * seconds), LONGEST_RETRY_AFTER)
