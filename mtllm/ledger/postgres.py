"""PostgreSQL as the ledger's engine: one ledger for the processes of many machines.

Transactions that write take one lock for the ledger first, as SQLite's do: they would wait for each other anyway, at
the sums of all time and of the day's budget, which every one of them changes; this way they cannot deadlock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper

from mtllm.ledger.engine import Row, Sync, Value

T = TypeVar("T")

CONNECT_SECONDS = 2
"""The least that libpq can be told."""
WRITE_SECONDS = 2.0
"""For one statement of a transaction, waiting for the lock included."""
READ_SECONDS = 10.0
"""For one statement that reads: a report over years takes a while."""
GRACE_SECONDS = 0.5
"""The server ends what takes too long by itself; after this much more, it is taken for dead."""
PATIENCE_SECONDS = 3.0
"""See Engine."""
IDLE_SECONDS = 10
"""A process that stops in the middle of a transaction loses it, and the lock, after this."""

_LEDGER_LOCK = 1_296_387_149
"""The first half of the lock's number, unlike others' by chance; the second half stands for the schema."""
_BEGIN = f"BEGIN; SELECT pg_advisory_xact_lock({_LEDGER_LOCK}, hashtext(current_schema()))"
_BEGIN_SCHEMA = _BEGIN.replace("BEGIN;", "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '30s';")

_KEEPALIVE = {
    "connect_timeout": str(CONNECT_SECONDS),
    "tcp_user_timeout": "3000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "application_name": "multi-task-llm-api",
}
"""So that a machine that vanishes without a word is noticed; the URL may say otherwise."""

_SYNCHRONOUS_COMMIT = {
    "full": "on",  # on disk here, and on the synchronous standby, where there is one
    "normal": "local",  # on disk here: a standby may be behind
    "off": "off",
}

_UNAVAILABLE = (
    psycopg.OperationalError,  # no connection, no room, shutting down, took too long, lost to another transaction
    psycopg.InterfaceError,  # the connection is closed
    psycopg.InternalError,  # read-only, corrupt
    errors.UndefinedTable,  # another database stands where ours was: its tables are made at the next connect
    errors.InsufficientPrivilege,
    OSError,
)


class PostgresConnection:
    """See `stores.engine.Connection`. What a restart of the server has cut is connected again where nothing is lost.

    The statements of a transaction are sent without waiting for the answers to those before (libpq's pipeline mode): it
    takes two round trips, and one more for each time that somebody looks at rows.
    """

    def __init__(self, connect: Callable[[], _Impatient]) -> None:
        self._connect = connect
        self._raw = connect()
        self._transaction: ExitStack | None = None
        self._sent: list[_Rows] = []

    def begin(self, *, schema: bool = False) -> None:
        """Take the ledger's lock: what is read under it stays true until the commit, whoever else writes."""
        self._anew_if_cut(lambda: self._raw.execute(_BEGIN_SCHEMA if schema else _BEGIN))
        self._transaction, self._sent = ExitStack(), []
        self._transaction.enter_context(self._raw.pipeline())

    def commit(self) -> None:
        """See Connection. Raises when the answer is lost, though the server may have committed by then."""
        self._raw.execute("COMMIT")
        self._end()
        for rows in self._sent:
            rows.fetch()

    def rollback(self) -> None:
        """See Connection. The server has already rolled back what was cut."""
        if self._raw.closed:
            self._transaction = None
            return
        with suppress(psycopg.Error):
            self._end()
        self._raw.execute("ROLLBACK")

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> Sequence[Row]:
        """See Connection."""
        if self._transaction is None:
            return self._anew_if_cut(lambda: _Rows(self._raw.execute(_with_places(sql), parameters)).fetch())
        rows = _Rows(self._raw.execute(_with_places(sql), parameters))
        self._sent.append(rows)
        return rows

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """See Connection."""
        for row in rows:
            self._raw.execute(_with_places(sql), row)

    def close(self) -> None:
        """See Connection."""
        self._raw.close()

    def _end(self) -> None:
        """Wait for the answers to all that was sent; raises the first failure among them."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.close()

    def _anew_if_cut(self, start: Callable[[], T]) -> T:
        """`start()`, a second time over a new connection when the first turns out to have been cut while it rested."""
        try:
            return start()
        except psycopg.Error as error:
            if not self._raw.closed or isinstance(error, DatabaseSilent):
                raise
            self._raw = self._connect()
            return start()


class _Rows(Sequence[Row]):
    """The rows of a statement that may still be under way; looking at them waits for them."""

    def __init__(self, cursor: psycopg.Cursor[Row]) -> None:
        self._cursor: psycopg.Cursor[Row] | None = cursor
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.fetch())

    def __getitem__(self, index: Any) -> Any:
        return self.fetch()[index]

    def fetch(self) -> list[Row]:
        """All of them; afterwards they are here, whatever becomes of the connection."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            self._rows = cursor.fetchall() if _has_rows(cursor) else []
        return self._rows


def _has_rows(cursor: psycopg.Cursor[Row]) -> bool:
    """Return whether the statement is one that returns rows, once that is known."""
    return cursor.pgresult is None or cursor.description is not None


class PostgresEngine:
    """A database at `url` (postgresql://user:password@host:port/name?option=value, as libpq takes it).

    `sync`: "full" waits for the disk, and for a synchronous standby; "normal" for the disk alone.
    Raises ValueError, which repeats nothing of the URL, when the URL cannot be understood.
    """

    serial_key = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    patience_seconds = PATIENCE_SECONDS

    def __init__(self, url: str, *, sync: Sync = "full") -> None:
        self._sync: Sync = sync
        try:
            self._parameters = {**_KEEPALIVE, **conninfo_to_dict(url)}
        except psycopg.Error:
            raise ValueError("DATABASE_URL: is not a URL that PostgreSQL's client understands") from None

    def connect(self, *, read_only: bool = False) -> PostgresConnection:
        """See Engine."""
        return PostgresConnection(lambda: self._raw(read_only))

    def unavailable(self, error: Exception) -> bool:
        """See Engine."""
        return isinstance(error, _UNAVAILABLE)

    def close(self) -> None:
        """Nothing outlives the connections."""

    def _raw(self, read_only: bool) -> _Impatient:
        raw = _Impatient.connect(**cast("dict[str, Any]", self._parameters), autocommit=True)
        raw.patience = (READ_SECONDS if read_only else WRITE_SECONDS) + GRACE_SECONDS
        raw.adapters.register_dumper(int, Int8Dumper)  # one type for all numbers: one plan for each statement
        try:
            raw.execute(_settings(self._sync, read_only))
        except BaseException:
            raw.close()
            raise
        return raw


class DatabaseSilent(psycopg.OperationalError):
    """The server said nothing for too long."""


class _Impatient(psycopg.Connection[Row]):
    """A connection that is cut when the server says nothing for `patience` seconds; libpq would wait for ever."""

    patience = CONNECT_SECONDS + GRACE_SECONDS

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """See psycopg."""
        return super().wait(self._within(gen, time.monotonic() + self.patience), *args, **kwargs)

    def _within(self, gen: Generator[Any, Any, T], end: float) -> Generator[Any, Any, T]:
        """`gen`, until `end`. psycopg asks ten times a second or oftener, also when there is nothing to read."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    self.pgconn.finish()
                    raise DatabaseSilent("the database does not answer")
                wanted = gen.send(ready)
        except StopIteration as stop:
            result: T = stop.value
            return result


def _settings(sync: Sync, read_only: bool) -> str:
    """Return what a session is told once, in one round trip."""
    milliseconds = round((READ_SECONDS if read_only else WRITE_SECONDS) * 1000)
    lines = (
        f"SET statement_timeout = {milliseconds}",
        f"SET idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}",
        f"SET default_transaction_read_only = {'on' if read_only else 'off'}",
        f"SET synchronous_commit = {_SYNCHRONOUS_COMMIT[sync]}",
    )
    return "; ".join(lines)


@cache
def _with_places(sql: str) -> str:
    """Our SQL has `?` for parameters and no other question mark, and no per cent sign."""
    return sql.replace("?", "%s")
