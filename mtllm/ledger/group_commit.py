"""One thread that writes: it takes all that waits, runs it in one transaction, commits once and wakes everybody.

While one commit waits for the disk, the next batch gathers, so many concurrent operations cost few fsyncs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeVar

from mtllm.domain.errors import ApiError, LedgerUnavailable
from mtllm.ledger.engine import Connection, Engine
from mtllm.ledger.records import Hit, LedgerHealth
from mtllm.ledger.transaction import LedgerTooNew, LedgerTransaction, migrate

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


@dataclass(frozen=True, slots=True, eq=False)
class _Operation:
    run: Callable[[LedgerTransaction], Any]
    outcome: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Signal:
    """Not an operation, but something the writer has to wake up for."""


_HITS_WAIT = _Signal()
_STOP = _Signal()


class GroupCommit:
    """The writer of one process. Its thread starts with the first operation."""

    def __init__(self, engine: Engine, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._queue: queue.SimpleQueue[_Operation | _Signal] = queue.SimpleQueue()
        self._hits: deque[Hit] = deque()
        self._oldest_queued: float | None = None  # None also says: the writer does not know of hits, so wake it
        self._oldest_taken: float | None = None
        self._dropped = 0
        # For starting, stopping and counting; nothing slow happens under it. Reentrant, because a ledger may be
        # collected, and so closed, by a thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._connection: Connection | None = None
        self._working = threading.Lock()  # held by the writer only, but for `pause`
        self._error: str | None = None
        self._writing_since: float | None = None
        self._next_sweep = -inf

    def submit(self, run: Callable[[LedgerTransaction], T]) -> T:
        """Have `run` executed in the next transaction; its result once that is committed.

        Raises what `run` raised, or LedgerUnavailable; at once when the database hangs already.
        """
        if self._hangs():
            raise LedgerUnavailable
        operation = _Operation(run)
        self._put(operation)
        try:
            result: T = operation.outcome.result(self._engine.patience_seconds)
        except FutureTimeout:
            operation.outcome.cancel()  # if it still waits, it is not to happen any more
            raise LedgerUnavailable from None
        return result

    def add_hit(self, hit: Hit) -> None:
        """Queue `hit`; counts it as dropped when the queue is full or closed."""
        if len(self._hits) >= MAX_QUEUED_HITS or self._closed:
            self._drop(1)
            return
        self._hits.append(hit)
        if self._oldest_queued is None:
            self._oldest_queued = self._monotonic()
            with suppress(LedgerUnavailable):
                self._put(_HITS_WAIT)

    def flush(self) -> None:
        """Return when the hits queued before are on disk; each transaction takes MAX_HITS along."""
        for _ in range(MAX_QUEUED_HITS // MAX_HITS + 1):
            self.submit(_nothing)
            if not self._hits:
                return

    def health(self) -> LedgerHealth:
        """See LedgerHealth."""
        since = [start for start in (self._oldest_taken, self._oldest_queued) if start is not None]
        lag = max(0.0, self._monotonic() - min(since)) if since else 0.0
        error = HANGS if self._hangs() else self._error
        return LedgerHealth(error is None, error, len(self._hits), lag, self._dropped)

    def close(self) -> None:
        """Write what waits, stop the thread, close the connection."""
        with self._lock:
            self._closed, thread = True, self._thread
            self._queue.put(_STOP)
        if thread is not None and thread is not threading.current_thread():  # garbage is collected on any thread
            thread.join()

    def pause(self) -> None:
        """Wait for the transaction under way, close the connection, and begin nothing before `resume`."""
        self._working.acquire()
        self._disconnect()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._working.release()

    def _put(self, item: _Operation | _Signal) -> None:
        """Under the lock, so that nothing is queued behind _STOP, where nobody would find it."""
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

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def _run(self) -> None:
        stopping = False
        while not stopping or (self._hits and self._error is None):
            operations, stopping = ([], True) if stopping else self._gather()
            with self._working:
                self._writing_since = time.monotonic()
                self._write(operations, self._take_hits())
                self._writing_since = None
        self._drop(len(self._hits))
        self._disconnect()

    def _gather(self) -> tuple[list[_Operation], bool]:
        """The operations that wait, once something does; and whether to stop after them."""
        item = self._next(SWEEP_SECONDS if self._error is None else RETRY_SECONDS)
        if item is _HITS_WAIT:
            item = self._next(HITS_GATHER_SECONDS)
        operations = [self._sweep()] if item is None or self._monotonic() >= self._next_sweep else []
        while item is not None:
            if item is _STOP:
                return operations, True
            if isinstance(item, _Operation):
                operations.append(item)
            item = self._next(0) if len(operations) < MAX_OPERATIONS else None  # what is taken must be done
        return operations, False

    def _next(self, seconds: float) -> _Operation | _Signal | None:
        try:
            return self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _sweep(self) -> _Operation:
        """What is done every few seconds: mark unsettled rows, and after a failure see whether writing works again."""
        self._next_sweep = self._monotonic() + SWEEP_SECONDS
        failed = self._error is not None

        def sweep(books: LedgerTransaction) -> None:
            books.mark_unsettled(self._clock())
            if failed:
                books.touch()

        return _Operation(sweep)

    def _take_hits(self) -> list[Hit]:
        """The hits for this transaction; the next one to be queued wakes the writer again."""
        self._oldest_taken, self._oldest_queued = self._oldest_queued, None
        hits = self._hits
        taken = [hits.popleft() for _ in range(min(len(hits), MAX_HITS))]
        if hits:
            self._oldest_queued = self._oldest_taken
            self._queue.put(_HITS_WAIT)
        return taken

    def _put_back(self, hits: list[Hit]) -> None:
        """The writer tries again by itself, so nobody has to wake it."""
        if hits:
            self._oldest_queued = self._oldest_taken
            self._hits.extendleft(reversed(hits))

    def _write(self, operations: list[_Operation], hits: list[Hit]) -> None:
        """Commit all of this, or tell each operation why it was not."""
        operations = [operation for operation in operations if _still_wanted(operation)]
        if not operations and not hits:
            return
        try:
            outcomes = self._transaction(operations, hits)
        except Exception as error:  # whatever it is, the thread must live and those who wait must learn of it
            self._undo()
            self._failed(error, operations, hits)
        else:
            self._error = self._oldest_taken = None
            for operation, outcome in zip(operations, outcomes, strict=True):
                _tell(operation, outcome)

    def _transaction(self, operations: list[_Operation], hits: list[Hit]) -> list[object]:
        connection = self._connected()
        connection.begin()
        books = LedgerTransaction(connection)
        outcomes = [_outcome(operation, books) for operation in operations]
        books.add_hits(hits)
        books.finish()
        connection.commit()
        return outcomes

    def _failed(self, error: Exception, operations: list[_Operation], hits: list[Hit]) -> None:
        if isinstance(error, LedgerUnavailable) or self._engine.unavailable(error):
            self._disconnect()
            self._put_back(hits)
            self._error = type(error).__name__
            for operation in operations:
                _tell(operation, error if isinstance(error, LedgerTooNew) else LedgerUnavailable())
        elif len(operations) + len(hits) > 1:  # one of them cannot be written; the others shall not suffer for it
            for some_operations, some_hits in _divided(operations, hits):
                self._write(some_operations, some_hits)
        else:
            self._drop(len(hits))
            for operation in operations:
                _tell(operation, error)

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._engine.connect()
            try:
                migrate(self._engine, connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _undo(self) -> None:
        if self._connection is not None:
            try:
                self._connection.rollback()
            except Exception:  # a connection that cannot roll back is of no use
                self._disconnect()

    def _disconnect(self) -> None:
        """A new connection is made at the next try: the file may be another one by then."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


def _nothing(_books: LedgerTransaction) -> None:
    """An operation to wait for."""


def _outcome(operation: _Operation, books: LedgerTransaction) -> object:
    try:
        return operation.run(books)
    except ApiError as refusal:  # it has written nothing, so the transaction goes on
        return refusal


def _tell(operation: _Operation, outcome: object) -> None:
    if isinstance(outcome, Exception):
        operation.outcome.set_exception(outcome)
    else:
        operation.outcome.set_result(outcome)


def _still_wanted(operation: _Operation) -> bool:
    return operation.outcome.running() or operation.outcome.set_running_or_notify_cancel()


def _divided(
    operations: list[_Operation], hits: list[Hit]
) -> tuple[tuple[list[_Operation], list[Hit]], tuple[list[_Operation], list[Hit]]]:
    """Two smaller batches, in order."""
    if operations and hits:
        return (operations, []), ([], hits)
    middle = (len(operations) + len(hits)) // 2
    if hits:
        return ([], hits[:middle]), ([], hits[middle:])
    return (operations[:middle], []), (operations[middle:], [])
