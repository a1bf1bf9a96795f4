"""The durable record of every call to Gemini and every hit; owner of every total that survives a restart.

An attempt is opened with a reservation, which is on disk before the call, and settled, which is on disk before the
answer leaves. Concurrent operations share one commit. Hits are batched, at most a second behind. Roll-ups (all time,
minutes, hours, hours by task, client and model) and the budgets' days are written in the same transaction as the rows,
so they always add up. Prompts and answers are never kept.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TypeVar

from mtllm.domain.caller import SERVICE_SCOPE, Budget, key_scope
from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.periods import UTC_CALENDAR, Calendar, Period
from mtllm.ledger import queries
from mtllm.ledger.engine import Connection, Engine, Sync
from mtllm.ledger.group_commit import GroupCommit
from mtllm.ledger.records import (
    ABANDONED,
    ALL_USAGE,
    HIT,
    OK,
    OPEN,
    UNSETTLED,
    Attempt,
    BudgetAlert,
    BudgetState,
    ExportRow,
    GroupBy,
    Hit,
    LedgerHealth,
    Selection,
    Settlement,
    Totals,
    UsageGroup,
    WindowUsage,
)
from mtllm.ledger.sqlite import SQLiteEngine
from mtllm.ledger.transaction import MINUTES_KEPT_SECONDS, LedgerTooNew, LedgerTransaction, find_version

__all__ = [
    "ABANDONED",
    "ALL_USAGE",
    "HIT",
    "OK",
    "OPEN",
    "SERVICE_SCOPE",
    "UNSETTLED",
    "Attempt",
    "Budget",
    "BudgetAlert",
    "BudgetState",
    "ExportRow",
    "GroupBy",
    "Hit",
    "Ledger",
    "LedgerHealth",
    "LedgerTooNew",
    "Selection",
    "Settlement",
    "Totals",
    "UsageGroup",
    "WindowUsage",
    "key_scope",
    "open_ledger",
]

PRUNE_BATCH = 1000
IDLE_CONNECTIONS = 4
"""Kept open for the next reads; a server has not many to give."""

T = TypeVar("T")


def open_ledger(
    target: str | Path,
    *,
    sync: Sync = "full",
    calendar: Calendar = UTC_CALENDAR,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Ledger:
    """Return the ledger at `target`: a postgresql:// URL, a file's path, or ":memory:", which is gone when closed.

    `sync`: "full" survives a power cut, "normal" a kill only. Nothing is opened before the first use. Raises ValueError
    in words when `target` is a URL that cannot be used, or what speaks to PostgreSQL is not installed.
    """
    return Ledger(_engine(str(target), sync), calendar=calendar, clock=clock, monotonic=monotonic)


def _engine(target: str, sync: Sync) -> Engine:
    if target.startswith(("postgresql://", "postgres://")):
        return _postgres(target, sync)
    return SQLiteEngine(None if target == ":memory:" else Path(target), sync=sync)


def _postgres(url: str, sync: Sync) -> Engine:
    try:
        from mtllm.ledger.postgres import PostgresEngine  # psycopg is needed, and installed, only where it is asked for
    except ModuleNotFoundError:
        raise ValueError("DATABASE_URL: needs psycopg (pip install -r requirements-scale.txt)") from None
    return PostgresEngine(url, sync=sync)


class Ledger:
    """Keeps every call and every hit. Safe for many threads and, on one database, many processes; usable after a fork.

    All but `record_hit` and `health` raise LedgerUnavailable while the database cannot be used (full, read-only,
    locked, gone), and work again when it can; LedgerTooNew when a newer version of this program has written it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        calendar: Calendar = UTC_CALENDAR,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calendar = calendar
        """In whose days and months budgets are counted."""
        self._clock = clock
        self._processes = _ByProcess(lambda: _OpenLedger(engine, clock, monotonic, calendar))
        # A ledger that nobody closes still writes its last hits, at the end of the program at the latest.
        self._finalizer = weakref.finalize(self, self._processes.close)

    def prepare(self) -> None:
        """Create or migrate the database now rather than at the first use."""
        self._processes.current().prepare()

    def open(self, attempt: Attempt, budgets: tuple[Budget, ...] = ()) -> int:
        """Put `attempt` and its reservation on disk and return the id to settle it by.

        Raises BudgetExceeded, and records nothing, when one of `budgets` cannot cover the reservation in the day or
        month of the attempt. Exact under any concurrency, of processes too.
        """
        return self._submit(lambda transaction: transaction.open(attempt, budgets)).id

    def settle(self, row_id: int, settlement: Settlement) -> None:
        """Put the end of attempt `row_id` on disk. Counts once however often it is called, late ones included."""
        self._submit(lambda transaction: transaction.settle(row_id, settlement))

    def record_hit(self, hit: Hit) -> None:
        """Record `hit` within a second. Never blocks, never fails."""
        self._processes.current().writer.add_hit(hit)

    def record_alert(self, alert: BudgetAlert, *, posts: bool) -> bool:
        """Keep an alert of a budget; return False where it was told already. `posts`: it is to be sent, too."""
        return self._submit(lambda transaction: transaction.record_alert(alert, posts=posts))

    def lease_alerts(self, now: float, seconds: float) -> list[BudgetAlert]:
        """Return the alerts that are to be sent now; no other process sends them for so many seconds."""
        return self._submit(lambda transaction: transaction.lease_alerts(now, seconds))

    def mark_alert_taken(self, alert: BudgetAlert) -> None:
        """Send an alert no more."""
        self._submit(lambda transaction: transaction.mark_alert_taken(alert))

    def mark_unsettled(self, now: float) -> int:
        """Mark the rows still open after their deadline and return how many. Runs by itself every few seconds, too."""
        return self._submit(lambda transaction: transaction.mark_unsettled(now))

    def prune(self, before: float, batch: int = PRUNE_BATCH, progress: Callable[[int], object] | None = None) -> int:
        """Remove rows older than `before`, `batch` a transaction, and return how many. Totals and roll-ups keep them.

        `progress` is called with the number removed so far after each batch.
        """
        minutes_before = min(before, self._clock() - MINUTES_KEPT_SECONDS)
        self._submit(lambda transaction: transaction.prune_minutes(minutes_before))
        removed = 0
        while count := self._submit(lambda transaction: transaction.prune(before, batch)):
            removed += count
            if progress is not None:
                progress(removed)
        return removed

    def totals(self) -> Totals:
        """Return all-time sums."""
        with self._reading() as connection:
            return queries.totals(connection)

    def window(self, hours: int, now: float) -> WindowUsage:
        """Return the sums of the last `hours` hours before `now`."""
        with self._reading() as connection:
            return queries.window(connection, hours, now)

    def usage(
        self, from_: float, to: float, group_by: GroupBy, *, only: Selection = ALL_USAGE, zone: tzinfo = UTC
    ) -> list[UsageGroup]:
        """Return the sums of `from_` <= timestamp < `to` by group, in order of their keys, without groups of zeros.

        Where rows are pruned already, the part of an hour (of a minute, when grouped by minute) that lies at either
        end is missing; single minutes are kept for 31 days. `only`: what of it is summed. `zone`:
        where days and months begin.
        """
        with self._reading() as connection:
            return queries.usage(connection, from_, to, group_by, only=only, zone=zone)

    def attempts_of(self, request_id: str) -> list[ExportRow]:
        """Return every attempt (and hit) of the requests with this id, in order, a few hundred at most."""
        with self._reading() as connection:
            return queries.attempts_of(connection, request_id)

    def budget_state(self, scope: str, at: float, period: Period = "day") -> BudgetState:
        """Return what is spent and reserved in `scope` in the day or month of `at`."""
        with self._reading() as connection:
            return queries.budget_state(connection, scope, self.calendar.days(period, at))

    def export(self, from_: float, to: float) -> Iterator[ExportRow]:
        """Yield the rows with `from_` <= timestamp < `to`, by timestamp, then id. Holds a few hundred at a time."""
        with self._reading() as connection:
            yield from queries.export(connection, from_, to)

    def count_before(self, before: float) -> int:
        """Return how many rows `prune` would remove."""
        with self._reading() as connection:
            return queries.count_before(connection, before)

    def schema_version(self) -> int:
        """Return the version of the tables as they are, 0 where there are none, without making or changing any.

        Raises LedgerTooNew for one that is past what this program knows.
        """
        return self._processes.current().schema_version()

    def health(self) -> LedgerHealth:
        """Return how the writer is doing; reads no file."""
        return self._processes.current().writer.health()

    def flush(self) -> None:
        """Return when all hits recorded so far are on disk."""
        self._processes.current().writer.flush()

    def close(self) -> None:
        """Flush, stop the writer, close the database. Later operations raise LedgerUnavailable; hits are dropped."""
        self._finalizer()

    def _submit(self, run: Callable[[LedgerTransaction], T]) -> T:
        return self._processes.current().writer.submit(run)

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._processes.current().reading()


class _OpenLedger:
    """What one process has open of a ledger: its writer, and connections for reading that wait for their next use."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float], monotonic: Callable[[], float], calendar: Calendar
    ) -> None:
        self.writer = GroupCommit(engine, clock, monotonic, calendar)
        self._engine = engine
        self._idle: deque[Connection] = deque()
        self._prepared = False
        self._closed = False
        _rest_while_forking(weakref.ref(self), os.getpid())

    def prepare(self) -> None:
        """Have the writer make or migrate the tables, unless it has."""
        if not self._prepared:
            self.writer.flush()
            self._prepared = True

    def schema_version(self) -> int:
        """Return the version of the tables. Raises LedgerUnavailable, LedgerTooNew."""
        try:
            with closing(self._engine.connect(read_only=True)) as connection:
                return _find_version(connection)
        except Exception as error:
            if self._engine.unavailable(error):
                raise LedgerUnavailable(f"it cannot be read ({type(error).__name__})") from error
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a connection to read from. Raises LedgerUnavailable when the database cannot be used."""
        self.prepare()
        connection: Connection | None = None
        reusable = False
        try:
            connection = self._connection()
            yield connection
            reusable = not self._closed and len(self._idle) < IDLE_CONNECTIONS
        except Exception as error:
            if self._engine.unavailable(error):
                raise LedgerUnavailable from error
            raise
        finally:
            if connection is not None:
                self._idle.append(connection) if reusable else connection.close()

    def close(self) -> None:
        """Write what waits, and close all connections."""
        self._closed = True
        self.writer.close()
        self._close_idle()
        self._engine.close()

    def rest(self) -> None:
        """Close all connections until the writer resumes, save those that other threads read from."""
        self.writer.pause()
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _connection(self) -> Connection:
        if self._closed:
            raise LedgerUnavailable("The ledger is closed.")
        try:
            return self._idle.pop()
        except IndexError:
            return self._engine.connect(read_only=True)


def _find_version(connection: Connection) -> int:
    try:
        return find_version(connection)
    except LedgerTooNew:
        raise
    except Exception:  # no tables, or no database
        connection.execute("SELECT 1")
        return 0


def _rest_while_forking(process: weakref.ref[_OpenLedger], owner: int) -> None:
    """Have nothing open at the moment of a fork.

    A child that inherits an open SQLite file believes it holds locks that it does not hold, and would lose commits
    (sqlite.org/howtocorrupt.html, section 2.6).
    """

    def mine() -> _OpenLedger | None:
        return process() if os.getpid() == owner else None

    def before() -> None:
        if (here := mine()) is not None:
            here.rest()

    def after() -> None:
        if (here := mine()) is not None:
            here.writer.resume()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after)


class _ByProcess:
    """The `_OpenLedger` of each process, by its id.

    A forked child gets one of its own: threads and locks do not survive a fork, and what the parent has queued the
    parent writes.
    """

    def __init__(self, start: Callable[[], _OpenLedger]) -> None:
        self._start = start
        self._by_id = {os.getpid(): start()}

    def current(self) -> _OpenLedger:
        """Return the one of this process."""
        known = self._by_id.get(os.getpid())
        return known or self._by_id.setdefault(os.getpid(), self._start())

    def close(self) -> None:
        """Close the one of this process."""
        self.current().close()
