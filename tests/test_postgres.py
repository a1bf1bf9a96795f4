"""PostgreSQL as the ledger's engine: durable, exact, impatient with a dead server, and silent about passwords."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

pytest.importorskip("psycopg", reason="needs psycopg (requirements-scale.txt)")

import psycopg

from app import Api
from mtllm.domain.errors import LedgerUnavailable
from mtllm.ledger import postgres as engine_module
from mtllm.ledger.engine import Sync
from mtllm.ledger.ledger import Ledger, open_ledger
from mtllm.ledger.postgres import PostgresEngine
from tests.support.fakes import FakeClock
from tests.support.ledgers import ATTEMPT, HIT, NOON, SETTLEMENT, PostgresDatabase, assert_adds_up, until
from tests.support.postgres_server import PostgresServer

PROMPT = {"prompt": "Why is the sky blue?"}


@pytest.fixture
def database(postgres: PostgresServer) -> PostgresDatabase:
    return PostgresDatabase(postgres)


@pytest.fixture
def ledger(database: PostgresDatabase) -> Iterator[Ledger]:
    with closing(open_ledger(database.location, clock=FakeClock(NOON))) as ledger:
        ledger.prepare()
        yield ledger


def paid(ledger: Ledger) -> int:
    row_id = ledger.open(ATTEMPT)
    ledger.settle(row_id, SETTLEMENT)
    return row_id


class TestEngine:
    @pytest.mark.parametrize(("sync", "level"), [("full", "on"), ("normal", "local"), ("off", "off")])
    def test_a_session_is_as_durable_as_asked(self, database: PostgresDatabase, sync: Sync, level: str) -> None:
        """Both settings of the service wait for the server's disk; `normal` does not wait for a standby."""
        with closing(PostgresEngine(database.location, sync=sync).connect()) as connection:
            assert connection.execute("SHOW synchronous_commit") == [(level,)]

    def test_a_reader_cannot_write(self, database: PostgresDatabase) -> None:
        """A read-only connection refuses to change anything."""
        reader = PostgresEngine(database.location).connect(read_only=True)
        with closing(reader), pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("CREATE TABLE words (word TEXT)")

    def test_one_writer_at_a_time(self, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transaction holds the ledger's lock from its start; who waits for it too long is told so."""
        monkeypatch.setattr(engine_module, "WRITE_SECONDS", 0.1)
        engine = PostgresEngine(database.location)
        with closing(engine.connect()) as one, closing(engine.connect()) as other:
            one.begin()
            with pytest.raises(psycopg.errors.QueryCanceled) as refused:
                other.begin()
            assert engine.unavailable(refused.value)
            other.rollback()
            one.rollback()
            one.rollback()
            other.begin()
            other.commit()

    def test_two_ledgers_of_one_database_do_not_wait_for_each_other(self, postgres: PostgresServer) -> None:
        """The lock belongs to the schema."""
        databases = PostgresDatabase(postgres), PostgresDatabase(postgres)
        one, other = (PostgresEngine(database.location).connect() for database in databases)
        with closing(one), closing(other):
            one.begin()
            other.begin()

    def test_a_writer_that_stops_loses_its_lock(
        self, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that hangs in the middle of a transaction does not hold up the others for long."""
        monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
        engine = PostgresEngine(database.location)
        with closing(engine.connect()) as one, closing(engine.connect()) as other:
            one.begin()
            other.begin()
            with pytest.raises(psycopg.Error) as cut:
                one.commit()
            assert engine.unavailable(cut.value)

    def test_tables_that_are_gone_are_made_again(self, ledger: Ledger, database: PostgresDatabase) -> None:
        """An empty database in the place of the old one is a failure once, and a ledger again after it."""
        database.rows("DROP TABLE entries, rollups, usage_hours, budget_days, budget_alerts, schema_version")
        with pytest.raises(LedgerUnavailable):
            paid(ledger)
        paid(ledger)
        assert_adds_up(ledger)


class TestBadDays:
    def test_kill_9_of_the_server_loses_no_settled_row(
        self, ledger: Ledger, postgres: PostgresServer, database: PostgresDatabase
    ) -> None:
        """Killed at any moment, with all its children: what was settled is there, and the sums agree with the rows."""
        promised: set[int] = set()
        stop = threading.Event()

        def work(_number: int) -> None:
            while not stop.is_set():
                with suppress(LedgerUnavailable):
                    promised.add(paid(ledger))
                ledger.record_hit(HIT)

        with ThreadPoolExecutor(6) as pool:
            workers = [pool.submit(work, number) for number in range(6)]
            for goal in (20, 60):
                until(lambda goal=goal: len(promised) >= goal, seconds=30)  # type: ignore[misc]  # a default, not an argument
                postgres.kill()
                postgres.start()
            until(lambda: len(promised) >= 100, seconds=30)
            stop.set()
            for worker in workers:
                worker.result()
        settled = {row_id for (row_id,) in database.rows("SELECT id FROM entries WHERE status = 'ok'")}
        assert promised <= settled
        ledger.flush()
        assert_adds_up(ledger)

    def test_a_restart_between_two_requests_goes_unnoticed(self, ledger: Ledger, postgres: PostgresServer) -> None:
        """Connections that were cut while they rested are made anew, for writing and for reading."""
        paid(ledger)
        assert ledger.totals().cost == 300
        postgres.stop()
        postgres.start()
        assert ledger.totals().cost == 300
        paid(ledger)
        assert ledger.totals().cost == 600

    def test_a_server_that_is_gone_refuses_at_once_and_heals(self, ledger: Ledger, postgres: PostgresServer) -> None:
        """Hits wait and are written when it is back, without any traffic."""
        postgres.kill()
        try:
            begun = time.monotonic()
            for use in (lambda: ledger.open(ATTEMPT), ledger.totals):
                with pytest.raises(LedgerUnavailable):
                    use()
            assert time.monotonic() - begun < 1
            ledger.record_hit(HIT)
            assert not ledger.health().writable
        finally:
            postgres.start()
        until(lambda: ledger.health().writable)
        until(lambda: ledger.totals().cached_requests == 1)

    def test_a_server_that_hangs_costs_three_seconds_and_heals(self, ledger: Ledger, postgres: PostgresServer) -> None:
        """One that is there but says nothing is given up; so is the connection, and the next one finds it well."""
        paid(ledger)
        postgres.signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                ledger.open(ATTEMPT)
            assert time.monotonic() - begun < 3.5
            until(lambda: not ledger.health().writable)
        finally:
            postgres.signal(signal.SIGCONT)
        until(lambda: ledger.health().writable)
        paid(ledger)
        assert_adds_up(ledger)

    def test_a_server_that_never_greets_is_given_up(self) -> None:
        """A port that takes connections and says nothing holds nobody longer than three seconds."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ledger = open_ledger(f"postgresql://user:secret@127.0.0.1:{silent.getsockname()[1]}/name")
            begun = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                ledger.open(ATTEMPT)
            assert time.monotonic() - begun < 3.5
            ledger.close()

    def test_the_service_goes_on_serving_what_it_has(
        self, make_app: Callable[..., Api], database: PostgresDatabase, postgres: PostgresServer
    ) -> None:
        """Without its database: a hit is served, a paid call is refused, readiness says why; with it, all is well."""
        app = make_app(real_time=True, database_url=database.location)
        client = app.test_client()
        assert client.post("/api/v1/generate/text", json=PROMPT).status_code == 200
        postgres.kill()
        try:
            hit = client.post("/api/v1/generate/text", json=PROMPT)
            refused = client.post("/api/v1/generate/text", json={"prompt": "Why is grass green?"})
            assert (hit.status_code, hit.headers["X-Cached"]) == (200, "true")
            assert (refused.status_code, refused.get_json()["code"]) == (503, "ledger_unavailable")
            assert client.get("/api/v1/health/ready").status_code == 503
        finally:
            postgres.start()
        until(lambda: app.service.ledger.health().writable)
        assert client.post("/api/v1/generate/text", json={"prompt": "Why is grass green?"}).status_code == 200
        app.service.ledger.flush()
        assert app.service.ledger.totals().cached_requests == 1
        assert_adds_up(app.service.ledger)


class TestSecrets:
    @pytest.mark.parametrize(
        "place", ["127.0.0.1:1/name", "127.0.0.1:port/name", "127.0.0.1/name?nonsense=1", "[::1/name"]
    )
    def test_no_url_that_cannot_be_used_shows_its_password(self, place: str) -> None:
        """Neither the refusal nor what it was caused by repeats any part of the URL."""
        for password in ("hunter2", "hunter2%with-a-sign-that-is-not-encoded"):
            told = self.told_by(f"postgresql://user:{password}@{place}")
            assert "hunter2" not in told

    def test_a_wrong_password_is_not_repeated(self, postgres: PostgresServer) -> None:
        """The server refuses, and the refusal names no secret."""
        told = self.told_by(postgres.url.replace("//postgres:", "//postgres:hunter2"))
        assert "LedgerUnavailable" in told
        assert "hunter2" not in told

    @staticmethod
    def told_by(url: str) -> str:
        try:
            with closing(open_ledger(url)) as ledger:
                ledger.totals()
        except (ValueError, LedgerUnavailable):
            return traceback.format_exc()
        raise AssertionError("it worked")

    def test_without_psycopg_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The driver is needed, and loaded, only where the URL asks for it."""
        monkeypatch.delitem(sys.modules, "mtllm.ledger.postgres")
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(ValueError, match=r"pip install -r requirements-scale\.txt"):
            open_ledger("postgresql://user:hunter2@localhost/name")
