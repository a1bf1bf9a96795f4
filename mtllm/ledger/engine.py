"""What the ledger asks of a database. SQL is written once, for SQLite and PostgreSQL, with `?` for parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

Sync = Literal["full", "normal", "off"]
"""What a commit survives: a power cut, a kill only, or neither; each engine says how."""

Value = str | int | None
Row = tuple[Any, ...]


class Connection(Protocol):
    """One connection, used by one thread at a time. Outside of begin/commit each statement stands alone."""

    def begin(self, *, schema: bool = False) -> None:
        """Start a transaction that writes; with `schema`, one that no other process's schema change overlaps."""

    def commit(self) -> None:
        """End the transaction; what it wrote is on disk when this returns."""

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> Sequence[Row]:
        """Run one statement; all its rows.

        In a transaction it may be that the statement is sent, and its rows come, when they are looked at or at the
        commit, so that many statements share a way to the database; its failure is raised then.
        """

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement for each of `rows`."""

    def close(self) -> None:
        """Give up the connection."""


class Engine(Protocol):
    """A kind of database at one place."""

    @property
    def serial_key(self) -> str:
        """The column type of a primary key that counts up by itself and never gives a number twice."""

    @property
    def patience_seconds(self) -> float:
        """Return how long a caller waits for a transaction before the database counts as hanging."""

    def connect(self, *, read_only: bool = False) -> Connection:
        """A new connection; readers never wait for the writer, nor the writer for them."""

    def unavailable(self, error: Exception) -> bool:
        """Return whether `error` says that the database cannot be used now (full, locked, gone), not that we erred."""

    def close(self) -> None:
        """Release what outlives the connections."""
