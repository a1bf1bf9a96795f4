"""SQLite as the ledger's engine: WAL, so that readers and the writer do not wait for each other."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtllm.ledger.engine import Row, Sync, Value

BUSY_SECONDS = 5.0
PATIENCE_SECONDS = 15.0
"""See Engine. A busy disk can take this long for an fsync, and a call to Gemini is worth waiting for."""
SWITCH_PAUSE_SECONDS = 0.02
WAL_LIMIT_BYTES = 64 * 1024 * 1024
CHECKPOINT_PAGES = 4_000

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


class SQLiteConnection:
    """See `stores.engine.Connection`. The sqlite3 module is in autocommit mode: transactions begin where we say so."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def begin(self, *, schema: bool = False) -> None:  # noqa: ARG002 - one writer at a time covers schema changes
        """Take the write lock at once: what is read under it stays true until the commit, whoever else writes."""
        self._raw.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """See Connection."""
        self._raw.execute("COMMIT")

    def rollback(self) -> None:
        """See Connection. SQLite has already rolled back by itself after some failures (disk full)."""
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """See Connection."""
        return self._raw.execute(sql, parameters).fetchall()

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """See Connection."""
        self._raw.executemany(sql, rows)

    def close(self) -> None:
        """See Connection."""
        self._raw.close()


class SQLiteEngine:
    """A database file, made with its folder when missing; `path` None is a temporary one, gone when closed.

    `sync`: "full" survives a power cut, "normal" only the end of the process, however it comes; "off" is for files
    that need to survive nothing. Several processes of one machine may use one file (not over a network file system).
    """

    serial_key = "INTEGER PRIMARY KEY AUTOINCREMENT"
    patience_seconds = PATIENCE_SECONDS

    def __init__(self, path: Path | None, *, sync: Sync = "full") -> None:
        self._path = path
        self._sync: Sync = "off" if path is None else sync
        self._temporary: weakref.finalize[[Path, int], SQLiteEngine] | None = None

    def connect(self, *, read_only: bool = False) -> SQLiteConnection:
        """See Engine."""
        raw = sqlite3.connect(
            self._file(), timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            _into_wal_mode(raw)
            raw.execute(f"PRAGMA synchronous = {self._sync}")
            raw.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
            raw.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            raw.execute(f"PRAGMA query_only = {read_only:d}")
        except BaseException:
            raw.close()
            raise
        return SQLiteConnection(raw)

    def unavailable(self, error: Exception) -> bool:
        """See Engine. The low byte of SQLite's extended codes is the kind of failure."""
        if isinstance(error, sqlite3.Error):
            return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _UNAVAILABLE
        return isinstance(error, OSError)

    def close(self) -> None:
        """Remove a temporary database."""
        if self._temporary is not None:
            self._temporary()

    def _file(self) -> Path:
        if self._path is None:
            folder = Path(tempfile.mkdtemp(prefix="ledger-"))
            self._path = folder / "ledger.sqlite3"
            self._temporary = weakref.finalize(self, _remove, folder, os.getpid())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path


def _into_wal_mode(raw: sqlite3.Connection) -> None:
    """The switch needs a new file alone for a moment and may fail at once, so it is tried again for a while."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
            time.sleep(SWITCH_PAUSE_SECONDS)
        else:
            return


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child shares the folder and must not take it away
        shutil.rmtree(folder, ignore_errors=True)
