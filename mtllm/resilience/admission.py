"""Admission: how many requests may wait for Gemini at once. Past that, load is shed at once instead of queued.

A server thread that waits for Gemini serves nobody else. The places are fewer than the threads, so that one is always
left for stored answers, health and statistics, however slow Gemini is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from mtllm.domain.errors import Overloaded


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """Places in use, all places, and the requests shed and calls abandoned since the start.

    A call is abandoned at its deadline, or when the client of its stream has left, while Gemini is still at it.
    """

    in_use: int
    places: int
    shed: int
    abandoned: int = 0


class Admission:
    """Counts the places for requests that wait for Gemini: those that lead a call and those that follow one."""

    def __init__(self, places: int = 1) -> None:
        self.resize(places)
        self._in_use = 0
        self._shed = 0
        self._abandoned = 0
        self._lock = threading.Lock()

    def resize(self, places: int) -> None:
        """Set how many places there are. Raises ValueError below one."""
        if places < 1:
            raise ValueError("there must be at least one place")
        self._places = places

    def enter(self) -> None:
        """Take a place. Raises Overloaded when none is free."""
        with self._lock:
            if self._in_use >= self._places:
                self._shed += 1
                raise Overloaded()
            self._in_use += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._in_use -= 1

    def count_abandoned(self) -> None:
        """Count a call that is given up; its place stays taken until the call has ended."""
        with self._lock:
            self._abandoned += 1

    def state(self) -> AdmissionState:
        """Return the figures of this moment."""
        with self._lock:
            return AdmissionState(self._in_use, self._places, self._shed, self._abandoned)
