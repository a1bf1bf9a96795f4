"""The service under gunicorn, as `docs/scaling.md` starts it: workers and instances that share one ledger, and Redis.

Every server here is started by the documented command, told to stop by SIGTERM, and has to leave with status 0.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("gunicorn", reason="needs gunicorn (requirements-scale.txt)")

from mtllm.domain.money import NANO
from mtllm.ledger.ledger import ExportRow, Ledger, open_ledger
from mtllm.project import PROJECT
from tests.support.ledgers import Database, assert_adds_up, until
from tests.support.redis_server import running_redis
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import Answer, Process, eventually, free_port, get, listens

only_sqlite = pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("new_database", ["postgres"], indirect=True)

TEXT = "/api/v1/generate/text"
THREADS = 8
LONG = 60.0
"""Seconds that the first answer of a worker may take on a machine with fewer cores than workers."""


class Gunicorn(Process):
    """`gunicorn --threads 8 -w 4 app:app`, and what else its command line says; entered, it has all its workers."""

    def __init__(self, environ: Mapping[str, str], *flags: str, workers: int = 4) -> None:
        super().__init__("gunicorn", environ, threads=THREADS)
        self.wanted = workers
        program = shutil.which("gunicorn", path=str(Path(sys.executable).parent))
        options = [f"--threads={THREADS}", f"-w={workers}", f"--bind=127.0.0.1:{self.port}", *flags]
        self._command = [program or "gunicorn", *options, "app:app"]

    def __enter__(self) -> Self:
        super().__enter__()
        until(lambda: len(self.workers()) == self.wanted, LONG)
        return self

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        pid = self._running().pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> str:
        """SIGTERM; what it had to say, once it has left with status 0."""
        self.signal()
        said = self.output()
        assert self.wait() == 0, said
        assert "Traceback" not in said
        return said


@pytest.fixture
def environ(environment: dict[str, str], database: Database, tmp_path: Path) -> dict[str, str]:
    """Settings of a service whose ledger lies in `database`."""
    location = database.location if "://" in database.location else f"sqlite:///{database.location}"
    return environment | {
        "DATABASE_URL": location,
        "GEMINI_MAX_CONCURRENCY": "64",
        "RATE_LIMITS": "",
        "HOME": str(tmp_path),  # gunicorn keeps a socket there
    }


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    """The ledger, as one more process sees it."""
    with closing(open_ledger(database.location)) as ledger:
        yield ledger


@contextmanager
def two_instances(environ: Mapping[str, str], *flags: str) -> Iterator[list[Gunicorn]]:
    """On two ports, as on two machines: only the database and Redis are shared, not the folders."""
    folders = [{name: f"{environ[name]}-{number}" for name in ("LOG_DIR", "CACHE_DIR")} for number in range(2)]
    with ExitStack() as running:
        yield [running.enter_context(Gunicorn({**environ, **own}, "--preload", *flags, workers=2)) for own in folders]


def rows_of(ledger: Ledger) -> list[ExportRow]:
    return list(ledger.export(0, 4e9))


def ask(port: int, prompt: str) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=LONG)
    with closing(connection):
        connection.request("POST", TEXT, json.dumps({"prompt": prompt}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read(), 0.0)


@pytest.mark.parametrize(
    ("new_database", "flags"), [("sqlite", ()), ("postgres", ("--preload",))], indirect=["new_database"], ids=str
)
def test_four_workers_keep_one_account(
    environ: dict[str, str], ledger: Ledger, gemini: ScriptedGemini, flags: tuple[str, ...]
) -> None:
    """What all workers answered is in the one ledger and the one folder of logs when gunicorn has stopped, hits too."""
    with Gunicorn(environ, *flags) as server, ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda number: ask(server.port, f"question {number % 20}"), range(120)))
        server.stop()
    assert {answer.status for answer in answers} == {200}
    rows = rows_of(ledger)
    assert Counter(row.status for row in rows) == Counter(
        "hit" if answer.headers["X-Cached"] == "true" else "ok" for answer in answers
    )
    assert sum(row.status == "ok" for row in rows) == len(gemini.calls)
    assert {row.request_id for row in rows} == {answer.headers["X-Request-ID"] for answer in answers}
    assert_adds_up(ledger)
    for log in ("api_requests", "performance", "cost_tracking"):
        lines = (Path(environ["LOG_DIR"]) / f"{log}.log").read_text().splitlines()
        assert len([json.loads(line) for line in lines if TEXT in line]) == len(answers), log


@only_postgres
def test_two_instances_never_pass_one_budget(environ: dict[str, str], ledger: Ledger, gemini: ScriptedGemini) -> None:
    """Of 40 calls at once to four workers on two ports as many are made as the budget covers, and not one more."""
    gemini.gate.clear()
    budget = 12 * 850_000  # nano-dollars: room for about a dozen
    with (
        two_instances(environ | {"DAILY_BUDGET_USD": str(budget / NANO)}, "--threads=40") as servers,  # none queues
        ThreadPoolExecutor(40) as callers,
    ):
        calls = [callers.submit(ask, servers[n % 2].port, f"question {n:02}") for n in range(40)]
        until(lambda: sum(call.done() for call in calls) + len(gemini.calls) == 40, LONG)
        bounds = {row.reserved for row in rows_of(ledger)}
        gemini.gate.set()
        statuses = Counter(call.result().status for call in calls)
        for server in servers:
            server.stop()
    [bound] = bounds
    assert statuses == {200: budget // bound, 402: 40 - budget // bound}
    assert_adds_up(ledger)


@only_postgres
def test_with_redis_an_answer_is_bought_once_and_a_limit_is_one_limit(
    environ: dict[str, str], ledger: Ledger, gemini: ScriptedGemini
) -> None:
    """Two instances of two workers behave as one service: one cache, one limit, one account."""
    with running_redis() as redis:
        limited = environ | {"REDIS_URL": redis.patient_url, "RATE_LIMITS": "50/hour"}
        with two_instances(limited) as servers, ThreadPoolExecutor(16) as callers:
            for server in servers:
                assert eventually(partial(redis_is_up, server), LONG)
            ask(servers[0].port, "the same")
            answers = list(callers.map(lambda n: ask(servers[n % 2].port, "the same"), range(79)))
            for server in servers:
                server.stop()
    assert Counter(answer.status for answer in answers) == {200: 49, 429: 30}
    assert len(gemini.calls) == 1
    assert ledger.totals().requests == 50
    assert_adds_up(ledger)


def redis_is_up(server: Gunicorn) -> bool:
    """Which worker answers is chance, so some good answers in a row stand for all of them."""
    answers = [get(server.port, "/api/v1/health/ready").json for _ in range(6 * server.wanted)]
    return {answer["checks"]["redis"]["status"] for answer in answers} == {"ok"}


def test_kill_9_of_a_worker_loses_no_settled_row(environ: dict[str, str], ledger: Ledger) -> None:
    """Killed under load, a worker takes along what it had in hand; whatever was answered is in the ledger."""
    with Gunicorn(environ, "--preload", workers=2) as server:
        with under_load(server.port) as answered:
            for goal in (15, 45):
                assert eventually(partial(has, answered, goal), LONG)
                os.kill(server.workers()[0], signal.SIGKILL)
            assert eventually(partial(has, answered, 75), LONG)
        server.stop()
    assert {answer.status for answer in answered} == {200}
    settled = {row.request_id for row in rows_of(ledger) if row.status == "ok"}
    assert {answer.headers["X-Request-ID"] for answer in answered} <= settled
    assert_adds_up(ledger)


@only_sqlite
def test_sigterm_lets_calls_in_flight_finish(environ: dict[str, str], ledger: Ledger, gemini: ScriptedGemini) -> None:
    """A worker that is told to go answers what it has begun, and its account is complete."""
    with Gunicorn(environ, workers=2) as server, ThreadPoolExecutor(6) as callers:
        gemini.gate.clear()
        calls = [callers.submit(ask, server.port, f"question {number}") for number in range(6)]
        assert gemini.wait_for_calls(6)
        server.signal()
        gemini.gate.set()
        assert [call.result().status for call in calls] == [200] * 6
        said = server.output()
        assert server.wait() == 0, said
    assert [row.status for row in rows_of(ledger)] == ["ok"] * 6
    assert_adds_up(ledger)


@only_postgres
def test_a_rolling_restart_fails_no_request(environ: dict[str, str], ledger: Ledger) -> None:
    """SIGHUP replaces the workers one by one under load: every request is answered, recorded, and counted once."""
    shared = environ | {"RATE_LIMITS": "100000/hour"}
    with running_redis() as redis, Gunicorn(shared | {"REDIS_URL": redis.patient_url}, workers=2) as server:
        with under_load(server.port, forgiving=False) as answered:
            assert eventually(partial(has, answered, 20), LONG)
            before = set(server.workers())
            server.signal(signal.SIGHUP)
            until(lambda: len(server.workers()) == 2 and not before & set(server.workers()), LONG)
            assert eventually(partial(has, answered, len(answered) + 20), LONG)
        counted = 100_000 - int(ask(server.port, "one more").headers["X-RateLimit-Remaining"])
        said = server.stop()
    assert len(re.findall("Booting worker", said)) == 4
    assert {answer.status for answer in answered} == {200}
    assert counted == len(answered) + 1
    assert {answer.headers["X-Request-ID"] for answer in answered} < {row.request_id for row in rows_of(ledger)}
    assert ledger.totals().requests == counted
    assert_adds_up(ledger)


def has(answered: list[Answer], count: int) -> bool:
    return len(answered) >= count


@contextmanager
def under_load(port: int, *, forgiving: bool = True) -> Iterator[list[Answer]]:
    """Callers who ask a new question as soon as the last is answered; the answers so far.

    Forgiving ones go on when a connection breaks before an answer came, as it does when a worker is killed.
    """
    answered: list[Answer] = []
    numbers = itertools.count()
    over = threading.Event()
    broken = (OSError, HTTPException) if forgiving else ()

    def call() -> None:
        while not over.is_set():
            with suppress(*broken):
                answered.append(ask(port, f"question {next(numbers)}"))

    with ThreadPoolExecutor(6) as callers:
        running: list[Any] = [callers.submit(call) for _ in range(6)]
        try:
            yield answered
        finally:
            over.set()
        for caller in running:
            caller.result()


@only_sqlite
def test_a_database_url_that_cannot_be_used_ends_the_start(environ: dict[str, str]) -> None:
    """Nothing listens, the reason is told in words, and no password is repeated."""
    server = Gunicorn(environ | {"DATABASE_URL": "postgresql://user:hunter2%@host/name"}, "--preload")
    ended = subprocess.run(
        server._command, cwd=PROJECT, env=server._environ, capture_output=True, text=True, timeout=LONG
    )
    assert ended.returncode != 0
    assert "DATABASE_URL" in ended.stderr
    assert "hunter2" not in ended.stderr


@only_sqlite
def test_gunicorn_alone_is_a_good_command(environ: dict[str, str], gemini: ScriptedGemini) -> None:
    """`gunicorn app:app` finds its settings: it knows its threads, and all callers are at Gemini at once."""
    given = environ | {"THREADS": "64", "PORT": str(free_port())}
    del given["GEMINI_MAX_CONCURRENCY"]
    program = shutil.which("gunicorn", path=str(Path(sys.executable).parent)) or "gunicorn"
    with subprocess.Popen([program, "app:app"], cwd=PROJECT, env=os.environ | given, stderr=subprocess.PIPE) as server:
        port = int(given["PORT"])
        until(lambda: listens(port), LONG)
        ask(port, "known")
        gemini.gate.clear()
        with ThreadPoolExecutor(30) as callers:
            calls = [callers.submit(ask, port, f"{number}") for number in range(30)]
            assert gemini.wait_for_calls(1 + 30)
            assert get(port, "/stats").json["admission"]["places"] == 32
            gemini.gate.set()
            assert {call.result().status for call in calls} == {200}
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=LONG)
    assert server.returncode == 0
    assert b"Traceback" not in said


@only_sqlite
def test_a_stop_drains_before_gunicorn_ends_the_worker(environ: dict[str, str], gemini: ScriptedGemini) -> None:
    """Who is being answered gets the answer, who comes meanwhile is told `draining`, and nobody meets a reset."""
    with Gunicorn(environ, workers=1) as server, ThreadPoolExecutor(4) as callers:
        ask(server.port, "known")
        gemini.gate.clear()
        slow = callers.submit(ask, server.port, "slow")
        assert gemini.wait_for_calls(2)
        server.signal()
        until(lambda: get(server.port, "/api/v1/health/ready").status == 503, LONG)
        assert ask(server.port, "late").status == 503
        gemini.gate.set()
        assert slow.result().status == 200
        assert server.wait() == 0
