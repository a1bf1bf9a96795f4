"""The SQLite engine: durable settings, failures told apart, several processes on one file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mtllm.ledger import sqlite
from mtllm.ledger.engine import Sync
from mtllm.ledger.ledger import open_ledger
from mtllm.ledger.sqlite import SQLiteConnection, SQLiteEngine
from mtllm.ledger.transaction import RESERVED_BY_OPEN
from tests.support.ledgers import failure


@pytest.fixture
def engine(tmp_path: Path) -> SQLiteEngine:
    return SQLiteEngine(tmp_path / "a" / "b" / "ledger.sqlite3")


@pytest.fixture
def connection(engine: SQLiteEngine) -> Iterator[SQLiteConnection]:
    with closing(engine.connect()) as connection:
        connection.execute("CREATE TABLE words (word TEXT)")
        yield connection


@pytest.mark.parametrize(("sync", "level"), [("full", 2), ("normal", 1), ("off", 0)])
def test_a_file_is_in_wal_mode_and_as_durable_as_asked(tmp_path: Path, sync: Sync, level: int) -> None:
    """FULL is an fsync of the log at every commit; NORMAL only at checkpoints."""
    with closing(SQLiteEngine(tmp_path / "ledger.sqlite3", sync=sync).connect()) as connection:
        assert connection.execute("PRAGMA journal_mode") == [("wal",)]
        assert connection.execute("PRAGMA synchronous") == [(level,)]


def test_a_transaction_holds_the_write_lock_from_its_start(
    engine: SQLiteEngine, connection: SQLiteConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second writer cannot begin, a reader sees what was committed, and a rollback leaves nothing."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    with closing(engine.connect()) as other, closing(engine.connect(read_only=True)) as reader:
        connection.begin()
        connection.executemany("INSERT INTO words VALUES (?)", [("one",), ("two",)])
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.begin()
        assert engine.unavailable(locked.value)
        assert reader.execute("SELECT * FROM words") == []
        connection.rollback()
        connection.rollback()
        other.begin()
        other.commit()
        assert reader.execute("SELECT * FROM words") == []


def test_a_reader_cannot_write(engine: SQLiteEngine, connection: SQLiteConnection) -> None:
    """A read-only connection refuses to change anything."""
    with closing(engine.connect(read_only=True)) as reader, pytest.raises(sqlite3.OperationalError):
        reader.execute("INSERT INTO words VALUES ('no')")
    assert connection.execute("SELECT * FROM words") == []


def test_a_full_database_is_unavailable(engine: SQLiteEngine, connection: SQLiteConnection) -> None:
    """SQLITE_FULL is told apart from mistakes of ours."""
    connection.execute("PRAGMA max_page_count = 3")
    connection.begin()
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("INSERT INTO words VALUES (?)", ("x" * 100_000,))
    connection.rollback()
    assert engine.unavailable(full.value)


@pytest.mark.parametrize(
    ("error", "unavailable"),
    [
        (failure(sqlite3.SQLITE_READONLY), True),
        (failure(sqlite3.SQLITE_IOERR_FSYNC), True),
        (failure(sqlite3.SQLITE_BUSY_SNAPSHOT), True),
        (failure(sqlite3.SQLITE_ERROR, "no such table"), False),
        (failure(sqlite3.SQLITE_CONSTRAINT), False),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), False),
        (PermissionError("data"), True),
        (OverflowError(), False),
    ],
)
def test_failures_of_the_place_are_told_from_mistakes_of_ours(
    engine: SQLiteEngine, error: Exception, unavailable: bool
) -> None:
    """Only what may pass by itself counts as unavailable, extended codes included."""
    assert engine.unavailable(error) is unavailable


def test_a_folder_in_the_way_is_unavailable(tmp_path: Path) -> None:
    """A path that cannot be opened leaves no connection behind."""
    engine = SQLiteEngine(tmp_path)
    with pytest.raises(sqlite3.OperationalError) as refused:
        engine.connect()
    assert engine.unavailable(refused.value)


def test_many_may_create_one_file_together(tmp_path: Path) -> None:
    """The switch to WAL is retried while others make it, too."""
    path = tmp_path / "ledger.sqlite3"

    def connect(_number: int) -> None:
        SQLiteEngine(path).connect().close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(connect, range(16)))


def test_a_file_that_stays_locked_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that holds the new file for too long makes it unavailable, not hang."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    engine = SQLiteEngine(tmp_path / "ledger.sqlite3")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            engine.connect()
    assert engine.unavailable(locked.value)


class TestTemporary:
    def test_all_connections_share_it_and_close_removes_it(self) -> None:
        """Without a path there is one database until `close`."""
        engine = SQLiteEngine(None)
        with closing(engine.connect()) as one, closing(engine.connect()) as other:
            one.execute("CREATE TABLE words (word TEXT)")
            assert other.execute("SELECT * FROM words") == []
            [(_, _, file)] = one.execute("PRAGMA database_list")
        engine.close()
        engine.close()
        assert not Path(file).parent.exists()

    def test_only_its_maker_removes_it(self, tmp_path: Path) -> None:
        """The copy of a forked child leaves the folder to its parent."""
        sqlite._remove(tmp_path, os.getpid() + 1)
        assert tmp_path.exists()

    def test_unused_it_never_exists(self) -> None:
        """Closing an engine that never connected does nothing."""
        SQLiteEngine(None).close()


def test_what_calls_under_way_hold_is_found_without_a_scan_of_the_day(tmp_path: Path) -> None:
    """A refusal says it inside the writer's transaction, where everybody waits."""
    path = tmp_path / "ledger.sqlite3"
    with closing(open_ledger(path)) as ledger:
        ledger.prepare()
    with closing(sqlite3.connect(path)) as connection:
        [step] = connection.execute(f"EXPLAIN QUERY PLAN {RESERVED_BY_OPEN}", (0,))
    assert "entries_open" in step[3]
