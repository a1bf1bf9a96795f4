"""What the ledger's tests share: rows to write, engines that fail on demand, and the sums that must always agree."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Protocol

from mtllm.billing.prices import Price
from mtllm.domain.money import Amount, Charge, Cost, TokenUsage
from mtllm.ledger.engine import Connection, Engine, Row, Value
from mtllm.ledger.ledger import Attempt, Hit, Ledger, Settlement, Totals
from mtllm.ledger.sqlite import SQLiteEngine
from tests.support.postgres_server import PostgresServer

_numbers = itertools.count()

NOON = 1_800_014_400.0
"""2027-01-15, 12:00 UTC."""

PRICE = Price("model-a", date.min, 7, 8, 9)
ATTEMPT = Attempt("r-1", "text", "10.0.0.1", "model-a", NOON, NOON + 30, reserved=1_000)
CHARGE = Charge(Amount(TokenUsage(10, 5, cached_input=2), Cost(100, 200)), PRICE)
SETTLEMENT = Settlement("ok", "model-a", CHARGE)
HIT = Hit("r-2", NOON, "text", "10.0.0.1", "model-a", input_tokens=10, output_tokens=5, saved=300)


def attempt(at: float = NOON, *, reserved: int = 1_000, key: str | None = None, seconds: float = 30.0) -> Attempt:
    """An attempt at `at` that is over `seconds` later."""
    return replace(ATTEMPT, timestamp=at, deadline=at + seconds, reserved=reserved, key=key)


def settlement(cost: int) -> Settlement:
    """SETTLEMENT at another cost."""
    return replace(SETTLEMENT, charge=replace(CHARGE, amount=replace(CHARGE.amount, cost=Cost(0, cost))))


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.001)


def failure(code: int, text: str = "no") -> sqlite3.OperationalError:
    """The exception that the sqlite3 module raises for SQLite's result `code`."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def assert_adds_up(ledger: Ledger) -> None:
    """Totals, day usage and budgets equal the sums over all exported rows."""
    rows = list(ledger.export(0, 4e9))
    finished = [row for row in rows if row.status not in ("open", "unsettled")]
    paid = [row for row in finished if not row.cached]
    totals = Totals(
        requests=sum(row.status in ("ok", "hit") for row in finished),
        cached_requests=sum(row.cached for row in finished),
        input_tokens=sum(row.input_tokens for row in paid),
        output_tokens=sum(row.output_tokens for row in paid),
        cost=sum(row.total_cost for row in paid),
        saved=sum(row.saved for row in finished),
        unpriced_requests=sum(row.unpriced for row in finished),
    )
    assert ledger.totals() == totals
    days = ledger.usage(0, 4e9, "day")
    assert sum(day.cost for day in days) == totals.cost
    assert sum(day.requests for day in days) == totals.requests
    budgets = [ledger.budget_state("service", at) for at in {row.timestamp // 86_400 * 86_400 for row in rows}]
    assert sum(budget.spent for budget in budgets) == totals.cost
    assert sum(budget.reserved for budget in budgets) == sum(row.reserved for row in rows)


class Database(Protocol):
    """A database of either kind, empty at first, and how it fails."""

    @property
    def location(self) -> str:
        """What `open_ledger` takes."""

    @property
    def gone(self) -> Exception:
        """A failure that says that the database cannot be used."""

    @property
    def mistake(self) -> Exception:
        """A failure that is our own fault."""

    @property
    def absurd(self) -> type[Exception]:
        """What a number raises that does not fit."""

    def engine(self) -> Engine:
        """An engine that need not survive a power cut."""

    def rows(self, sql: str) -> list[Row]:
        """What an onlooker sees."""


class SQLiteDatabase:
    """A file of its own."""

    gone = failure(sqlite3.SQLITE_FULL, "database or disk is full")
    mistake = failure(sqlite3.SQLITE_ERROR, "syntax")
    absurd = OverflowError

    def __init__(self, folder: Path) -> None:
        self.location = str(folder / f"{next(_numbers)}" / "ledger.sqlite3")

    def engine(self) -> SQLiteEngine:
        return SQLiteEngine(Path(self.location), sync="off")

    def rows(self, sql: str) -> list[Row]:
        with closing(sqlite3.connect(self.location)) as connection:
            return connection.execute(sql).fetchall()


class PostgresDatabase:
    """A schema of its own."""

    def __init__(self, server: PostgresServer) -> None:
        import psycopg

        schema = f"test_{next(_numbers)}"
        self._connect = psycopg.connect
        self.location = f"{server.url}?options=-csearch_path%3D{schema}"
        self.gone: Exception = psycopg.errors.DiskFull("no space left on device")
        self.mistake: Exception = psycopg.errors.SyntaxError("syntax")
        self.absurd: type[Exception] = psycopg.errors.NumericValueOutOfRange
        self.rows(f"CREATE SCHEMA {schema}")

    def engine(self) -> Engine:
        from mtllm.ledger.postgres import PostgresEngine

        return PostgresEngine(self.location, sync="off")

    def rows(self, sql: str) -> list[Row]:
        with self._connect(self.location, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


class FaultyConnection:
    """A connection that raises the engine's `fault`, if there is one, at each transaction's begin and commit."""

    def __init__(self, inner: Connection, engine: FaultyEngine) -> None:
        self.inner = inner
        self.engine = engine

    def begin(self, *, schema: bool = False) -> None:
        self.engine.check()
        self.inner.begin(schema=schema)
        if self.engine.full:
            self.inner.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size when that is more

    def commit(self) -> None:
        self.engine.at_commit()
        self.inner.commit()
        self.engine.commits += 1

    def rollback(self) -> None:
        if self.engine.rollback_fault is not None:
            raise self.engine.rollback_fault
        self.inner.rollback()

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> Sequence[Row]:
        return self.inner.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        self.inner.executemany(sql, rows)

    def close(self) -> None:
        self.inner.close()


class FaultyEngine:
    """An engine that fails on demand: faults are raised, `gate` holds each commit.

    `full` forbids the file to grow (SQLite).
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.serial_key = inner.serial_key
        self.patience_seconds = inner.patience_seconds
        self.fault: Exception | None = None
        self.reading_fault: Exception | None = None
        self.rollback_fault: Exception | None = None
        self.full = False
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()
        self.commits = 0

    def connect(self, *, read_only: bool = False) -> FaultyConnection:
        if read_only and self.reading_fault is not None:
            raise self.reading_fault
        return FaultyConnection(self.inner.connect(read_only=read_only), self)

    def unavailable(self, error: Exception) -> bool:
        return self.inner.unavailable(error)

    def close(self) -> None:
        self.inner.close()

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def at_commit(self) -> None:
        self.check()
        if not self.gate.is_set():
            self.held.set()
            self.gate.wait(10)
