"""Writes that wait for their commit, and the connection that commits them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mtllm.domain.errors import ApiError
from mtllm.domain.periods import Calendar
from mtllm.ledger.engine import Connection, Engine
from mtllm.ledger.records import Hit
from mtllm.ledger.transaction import LedgerTransaction, migrate


@dataclass(frozen=True, slots=True, eq=False)
class PendingWrite:
    """One thing to do in a transaction, and the future of whoever waits for it."""

    run: Callable[[LedgerTransaction], Any]
    outcome: Future[Any] = field(default_factory=Future)

    def begin(self) -> bool:
        """Return whether it is still wanted; from then on it cannot be cancelled. May be called again."""
        return self.outcome.running() or self.outcome.set_running_or_notify_cancel()

    def run_in(self, transaction: LedgerTransaction) -> object:
        """Return its result, or the refusal it raised: that has written nothing, so the transaction goes on."""
        try:
            return self.run(transaction)
        except ApiError as refusal:
            return refusal

    def end(self, outcome: object) -> None:
        """Give whoever waits the result, or the exception to raise."""
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class WritingConnection:
    """The one connection of a process that writes. It connects, and makes or migrates the tables, when it must."""

    def __init__(self, engine: Engine, calendar: Calendar) -> None:
        self._engine = engine
        self._calendar = calendar
        self._connection: Connection | None = None

    def commit(self, writes: Sequence[PendingWrite], hits: Sequence[Hit]) -> list[object]:
        """Run all of this in one transaction; return the outcomes of `writes` once it is committed.

        Raises what the database raises. Nothing is written then.
        """
        connection = self._connect()
        try:
            connection.begin()
            transaction = LedgerTransaction(connection, self._calendar)
            outcomes = [write.run_in(transaction) for write in writes]
            transaction.add_hits(hits)
            transaction.finish()
            connection.commit()
        except Exception:
            self._roll_back(connection)
            raise
        return outcomes

    def close(self) -> None:
        """Disconnect. The next commit connects again: the file may be another one by then."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _connect(self) -> Connection:
        if self._connection is None:
            connection = self._engine.connect()
            try:
                migrate(self._engine, connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _roll_back(self, connection: Connection) -> None:
        try:
            connection.rollback()
        except Exception:  # a connection that cannot roll back is of no use
            self.close()
