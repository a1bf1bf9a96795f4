"""Calls that end on time, whatever the other side does.

A socket's time-out is per read, so a peer that drips bytes outlives it. Here one thread shuts the socket of a call down
when the call is due; whoever reads it is woken by that. A `BoundedCall` also knows how far it got, which decides what a
failure means.
"""

from __future__ import annotations

import enum
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any


class Cut(enum.Enum):
    """Why a call was ended from outside."""

    DEADLINE = "deadline"
    CANCEL = "cancel"


running = threading.local()
"""`running.call` is the call that the current thread works for."""
_owners = threading.Lock()  # guards who owns a connection, so that a late cut never hits the connection's next call


class BoundedCall:
    """One call while it runs: its deadline (monotonic seconds), how far it got, and the means to end it."""

    def __init__(self, watchdog: Watchdog, deadline: float) -> None:
        self._watchdog = watchdog
        self._deadline = deadline
        self.due = deadline
        self.cut_by: Cut | None = None
        self.sent = False
        """The request began to leave, so it may be processed."""
        self._sent_at = inf
        self.reused = False
        """It left on a kept-alive connection, which the other side may have closed meanwhile."""
        self.answered = False
        """Status and headers came."""
        self._connection: Any = None

    def mark_sent(self, *, reused: bool) -> None:
        """Say that the request leaves now, and whether on a connection that was kept alive."""
        self.sent = True
        self.reused = reused
        self._sent_at = self._watchdog.monotonic()

    @property
    def seconds_sent(self) -> float:
        """Return how long ago the request left; negative infinity before that."""
        return self._watchdog.monotonic() - self._sent_at

    @property
    def remaining(self) -> float:
        """Seconds until the call is cut; negative when it is due already."""
        return self.due - self._watchdog.monotonic()

    def allow(self, seconds: float = inf) -> None:
        """Allow the call `seconds` more from now on, but no longer than its deadline."""
        self._watchdog.watch(self, min(self._deadline, self._watchdog.monotonic() + seconds))

    def finish(self) -> None:
        """Say that the call has ended by itself."""
        self._watchdog.forget(self)

    def cut(self, reason: Cut) -> None:
        """End the call from any thread: its reader sees the connection end. The first reason stays."""
        with _owners:
            self.cut_by = self.cut_by or reason
            self._shut_down()

    def claim(self, connection: Any, wire: socket.socket) -> None:
        """Make `wire`, the socket of `connection`, work for this call from now on."""
        with _owners:
            connection.owner, connection.wire = self, wire
            self._connection = connection
            if self.cut_by:
                self._shut_down()

    def _shut_down(self) -> None:
        connection = self._connection
        if connection is not None and connection.owner is self:
            with suppress(OSError):  # it is closed already
                # Not SSLSocket.shutdown: that takes the TLS state away under the thread that reads. Not close():
                # that wakes nobody.
                socket.socket.shutdown(connection.wire, socket.SHUT_RDWR)

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Make the connections that this thread uses inside the block work for this call."""
        running.call = self
        try:
            yield
        finally:
            del running.call


class Watchdog:
    """One thread that cuts calls when they are due. It starts with the first call and ends with `close`."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._changed = threading.Condition()
        self._calls: set[BoundedCall] = set()
        self._wakes_at = inf
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, call: BoundedCall, due: float) -> None:
        """Cut `call` when it is `due`; called again, it moves that time. Once closed, cut it now."""
        with self._changed:
            call.due = due
            if self._closed:
                call.cut(Cut.CANCEL)
                return
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # not alive: this process was forked
                self._thread = threading.Thread(target=self._run, name="gemini-deadlines", daemon=True)
                self._thread.start()
            elif due < self._wakes_at:
                self._changed.notify()

    def forget(self, call: BoundedCall) -> None:
        """Cut `call` no more: it has ended by itself."""
        with self._changed:
            self._calls.discard(call)

    def close(self) -> None:
        """End the thread, and every call that still runs."""
        with self._changed:
            self._closed = True
            left, self._calls = self._calls, set()
            self._changed.notify()
        for call in left:
            call.cut(Cut.CANCEL)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while due := self._next_due():
            for call in due:
                call.cut(Cut.DEADLINE)

    def _next_due(self) -> list[BoundedCall]:
        with self._changed:
            while not self._closed:
                now = self.monotonic()
                due = [call for call in self._calls if call.due <= now]
                if due:
                    self._calls.difference_update(due)
                    return due
                self._wakes_at = min((call.due for call in self._calls), default=inf)
                self._changed.wait(None if self._wakes_at == inf else self._wakes_at - now)
        return []
