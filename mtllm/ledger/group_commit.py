"""One thread that writes: it takes all that waits, runs it in one transaction, commits once and wakes everybody.

While one commit waits for the disk, the next batch gathers, so many concurrent writes cost few fsyncs.
"""

from __future__ import annotations

import enum
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from math import inf
from typing import TypeVar

from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.periods import Calendar
from mtllm.ledger.engine import Engine
from mtllm.ledger.hit_queue import HitQueue
from mtllm.ledger.records import Hit, LedgerHealth
from mtllm.ledger.transaction import LedgerTooNew, LedgerTransaction
from mtllm.ledger.writing import PendingWrite, WritingConnection

T = TypeVar("T")

HITS_GATHER_SECONDS = 0.25
"""How long the first hit waits for others; with a slow commit on top, still well under a second."""
SWEEP_SECONDS = 5.0
RETRY_SECONDS = 1.0
MAX_OPERATIONS = 128
MAX_HITS = 200
"""A batch takes about a millisecond of CPU at most, so that it never holds up the threads that serve."""
MAX_QUEUED_HITS = 10_000
HANGS = "Hangs"
"""The kind of failure that shows only by its silence."""


class _Signal(enum.Enum):
    """What the writer has to wake up for beside writes."""

    HITS_WAIT = enum.auto()
    STOP = enum.auto()


class GroupCommit:
    """The writer of one process. Its thread starts with the first write."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float], monotonic: Callable[[], float], calendar: Calendar
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._queue: queue.SimpleQueue[PendingWrite | _Signal] = queue.SimpleQueue()
        self._hits = HitQueue(monotonic)
        self._connection = WritingConnection(engine, calendar)
        # For starting and stopping; nothing slow happens under it. Reentrant, because a ledger may be collected, and so
        # closed, by a thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._working = threading.Lock()  # held by the writer only, but for `pause`
        self._error: str | None = None
        self._writing_since: float | None = None
        self._next_sweep = -inf

    def submit(self, run: Callable[[LedgerTransaction], T]) -> T:
        """Have `run` executed in the next transaction, and return its result once that is committed.

        Raises what `run` raised, or LedgerUnavailable; at once when the database hangs already.
        """
        if self._hangs():
            raise LedgerUnavailable
        write = PendingWrite(run)
        self._put(write)
        try:
            result: T = write.outcome.result(self._engine.patience_seconds)
        except FutureTimeout:
            write.outcome.cancel()  # if it still waits, it is not to happen any more
            raise LedgerUnavailable from None
        return result

    def add_hit(self, hit: Hit) -> None:
        """Queue `hit`; count it as dropped when the queue is full or closed."""
        if len(self._hits) >= MAX_QUEUED_HITS or self._closed:
            self._hits.drop(1)
        elif self._hits.add(hit):
            with suppress(LedgerUnavailable):  # closed just now: the writer takes the hit along, or counts it
                self._put(_Signal.HITS_WAIT)

    def flush(self) -> None:
        """Return when the hits queued before are on disk; each transaction takes MAX_HITS along."""
        for _ in range(MAX_QUEUED_HITS // MAX_HITS + 1):
            self.submit(lambda _transaction: None)
            if not self._hits:
                return

    def health(self) -> LedgerHealth:
        """Return how writing goes."""
        error = HANGS if self._hangs() else self._error
        return LedgerHealth(error is None, error, len(self._hits), self._hits.lag_seconds(), self._hits.dropped)

    def close(self) -> None:
        """Write what waits, stop the thread, close the connection."""
        with self._lock:
            self._closed, thread = True, self._thread
            self._queue.put(_Signal.STOP)
        if thread is not None and thread is not threading.current_thread():  # garbage is collected on any thread
            thread.join()

    def pause(self) -> None:
        """Wait for the transaction under way, close the connection, and begin nothing before `resume`."""
        self._working.acquire()
        self._connection.close()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._working.release()

    def _put(self, item: PendingWrite | _Signal) -> None:
        """Under the lock, so that nothing is queued behind STOP, where nobody would find it."""
        with self._lock:
            if self._closed:
                raise LedgerUnavailable("The ledger is closed.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
                self._thread.start()
            self._queue.put(item)

    def _hangs(self) -> bool:
        """In real time, as the futures' own."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > self._engine.patience_seconds

    # The writer's thread

    def _run(self) -> None:
        stopping = False
        while not stopping or (self._hits and self._error is None):
            writes: list[PendingWrite] = []
            if not stopping:
                writes, stopping = self._gather()
            with self._working:
                self._writing_since = time.monotonic()
                self._write(writes, self._take_hits())
                self._writing_since = None
        self._hits.drop(len(self._hits))
        self._connection.close()

    def _gather(self) -> tuple[list[PendingWrite], bool]:
        """Wait until something is to be written; return the writes that wait, and whether to stop after them."""
        item = self._next(SWEEP_SECONDS if self._error is None else RETRY_SECONDS)
        if item is _Signal.HITS_WAIT:
            item = self._next(HITS_GATHER_SECONDS)
        writes = [self._sweep()] if item is None or self._monotonic() >= self._next_sweep else []
        while item is not None:
            if item is _Signal.STOP:
                return writes, True
            if isinstance(item, PendingWrite):
                writes.append(item)
            item = self._next(0) if len(writes) < MAX_OPERATIONS else None  # what is taken must be done
        return writes, False

    def _next(self, seconds: float) -> PendingWrite | _Signal | None:
        try:
            return self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _sweep(self) -> PendingWrite:
        """Return the write of every few seconds: mark unsettled rows, and after a failure see whether writing works."""
        self._next_sweep = self._monotonic() + SWEEP_SECONDS
        failed = self._error is not None

        def sweep(transaction: LedgerTransaction) -> None:
            transaction.mark_unsettled(self._clock())
            if failed:
                transaction.touch()

        return PendingWrite(sweep)

    def _take_hits(self) -> list[Hit]:
        hits = self._hits.take(MAX_HITS)
        if self._hits:  # more than one transaction takes
            self._queue.put(_Signal.HITS_WAIT)
        return hits

    def _write(self, writes: list[PendingWrite], hits: list[Hit]) -> None:
        """Commit all of this, or let each write know why it was not."""
        writes = [write for write in writes if write.begin()]
        if not writes and not hits:
            return
        try:
            outcomes = self._connection.commit(writes, hits)
        except Exception as error:  # whatever it is, the thread must live and those who wait must learn of it
            self._fail(error, writes, hits)
        else:
            self._error = None
            self._hits.mark_written()
            for write, outcome in zip(writes, outcomes, strict=True):
                write.end(outcome)

    def _fail(self, error: Exception, writes: list[PendingWrite], hits: list[Hit]) -> None:
        if isinstance(error, LedgerUnavailable) or self._engine.unavailable(error):
            self._connection.close()
            self._hits.put_back(hits)
            self._error = type(error).__name__
            for write in writes:
                write.end(error if isinstance(error, LedgerTooNew) else LedgerUnavailable())
        elif len(writes) + len(hits) > 1:  # one of them cannot be written; the others shall not suffer for it
            for some_writes, some_hits in _halve(writes, hits):
                self._write(some_writes, some_hits)
        else:
            self._hits.drop(len(hits))
            for write in writes:
                write.end(error)


_Batch = tuple[list[PendingWrite], list[Hit]]


def _halve(writes: list[PendingWrite], hits: list[Hit]) -> tuple[_Batch, _Batch]:
    """Return two smaller batches, in order."""
    if writes and hits:
        return (writes, []), ([], hits)
    middle = (len(writes) + len(hits)) // 2
    if hits:
        return ([], hits[:middle]), ([], hits[middle:])
    return (writes[:middle], []), (writes[middle:], [])
