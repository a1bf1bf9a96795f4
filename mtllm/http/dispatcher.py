"""The threads that answer requests under waitress: few work at once, many may wait for Gemini.

Python runs one thread at a time, so more than a few that work only get in each other's way; but a thread that waits for
Gemini is in nobody's way. So at most `ACTIVE` threads work at once, a thread that begins to wait (`waiting`) hands its
turn to the next request, and the thread that rested last is woken first, while its memory is still warm. Threads are
started when they are first needed.

benchmarks: hits, isolation.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

ACTIVE = 4
"""Threads that work at once: what `--threads=4`, waitress's default, means too."""

logger = logging.getLogger("waitress")


class Serviceable(Protocol):
    """One connection with a request to answer."""

    def service(self) -> None:
        """Answer the request."""

    def cancel(self) -> None:
        """Give the request up: the server stops."""


class _Worker(threading.Thread):
    """A thread that answers what it is given, and rests in between."""

    def __init__(self, dispatcher: Dispatcher, number: int) -> None:
        super().__init__(name=f"request-{number}", daemon=True)
        self.dispatcher = dispatcher
        self._given = threading.Lock()
        self._given.acquire()
        self._task: Serviceable | None = None

    def give(self, task: Serviceable | None) -> None:
        """Wake the resting thread for `task`; None ends it."""
        self._task = task
        self._given.release()

    def run(self) -> None:
        """Answer until the end is given."""
        _here.worker = self
        while True:
            self._given.acquire()
            task = self._task
            if task is None:
                return
            while task is not None:
                try:
                    task.service()
                except BaseException:
                    logger.exception("Exception when servicing %r", task)
                task = self.dispatcher.next_for(self)


class _Here(threading.local):
    worker: _Worker | None = None


_here = _Here()


class Dispatcher:
    """Has waitress's interface of a task dispatcher. At most `threads` in all, at most `active` that do not wait."""

    def __init__(self, threads: int, active: int = ACTIVE) -> None:
        self._threads = threads
        self._most_active = min(active, threads)
        self._lock = threading.Lock()
        self._queue: deque[Serviceable] = deque()
        self._resting: list[_Worker] = []
        self._started = 0
        self._active = 0
        self._ended: threading.Event | None = None

    @property
    def queued(self) -> int:
        """Return how many requests wait for a thread."""
        return len(self._queue)

    @property
    def working(self) -> int:
        """Return how many threads work now, those that wait left out."""
        return self._active

    def add_task(self, task: Serviceable) -> None:
        """Have `task` answered, at once if a thread may work on it."""
        with self._lock:
            self._queue.append(task)
            given = self._next_pair()
        _wake(given)

    def next_for(self, worker: _Worker) -> Serviceable | None:
        """Return the next task for a thread that has finished one; None sends it to rest."""
        with self._lock:
            if self._queue and self._active <= self._most_active:
                return self._queue.popleft()
            self._active -= 1
            self._resting.append(worker)
            if self._ended is not None and not self._active:
                self._ended.set()
            return None

    @contextmanager
    def lend_turn(self) -> Iterator[None]:
        """Let another request be worked on while the calling thread waits."""
        with self._lock:
            self._active -= 1
            given = self._next_pair()
        _wake(given)
        try:
            yield
        finally:
            with self._lock:
                self._active += 1

    def _next_pair(self) -> tuple[_Worker, Serviceable] | None:
        """Take a task and a thread for it, if there are both and a turn. Called with the lock held."""
        if not self._queue or self._active >= self._most_active:
            return None
        if self._resting:
            worker = self._resting.pop()
        elif self._started < self._threads:
            self._started += 1
            worker = _Worker(self, self._started)
        else:
            return None
        self._active += 1
        return worker, self._queue.popleft()

    def set_thread_count(self, count: int) -> None:
        """Allow `count` threads in all."""
        with self._lock:
            self._threads = count
            self._most_active = min(self._most_active, max(count, 1))

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """End the threads, give up what waits, and wait `timeout` seconds for what is being answered.

        Return whether anything was given up.
        """
        with self._lock:
            pending, self._queue = self._queue, deque()
            resting, self._resting = self._resting, []
            self._threads = 0
            if self._active:
                self._ended = threading.Event()
        for worker in resting:
            worker.give(None)
        if cancel_pending:
            for task in pending:
                task.cancel()
        if self._ended is not None and not self._ended.wait(timeout):
            logger.warning("%d thread(s) still running", self._active)
        return bool(pending)


def _wake(given: tuple[_Worker, Serviceable] | None) -> None:
    if given is not None:
        worker, task = given
        if worker.ident is None:
            worker.start()
        worker.give(task)


@contextmanager
def waiting() -> Iterator[None]:
    """Let another request be worked on while the calling thread waits; does nothing in a thread of another kind."""
    worker = _here.worker
    if worker is None:
        yield
        return
    with worker.dispatcher.lend_turn():
        yield
