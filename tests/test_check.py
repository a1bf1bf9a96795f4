"""`python app.py --check` as an operator runs it: a line for each thing, advice where one fails, the exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mtllm.emulator.models import parse_model
from mtllm.ledger.ledger import open_ledger
from mtllm.ledger.sqlite import SQLiteEngine
from mtllm.ledger.transaction import MIGRATIONS, migrate
from mtllm.project import PROJECT
from tests.support.scripted_gemini import ScriptedGemini

Check = Callable[..., "subprocess.CompletedProcess[str]"]
FIRST, NEXT = "gemini-2.5-flash-lite", "gemini-3.1-flash-lite"


@pytest.fixture
def check(environment: dict[str, str], tmp_path: Path) -> Check:
    """Runs the command with settings by name, in a place where nothing was prepared."""

    def run(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, **environment, "PORT": "0", **{name.upper(): text for name, text in settings.items()}}
        command = [sys.executable, str(PROJECT / "app.py"), "--check", *options]
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def lines(done: subprocess.CompletedProcess[str], subject: str) -> list[str]:
    """The findings about one thing."""
    return [line for line in done.stdout.splitlines() if line[6:].startswith(subject)]


def test_all_is_well(check: Check, gemini: ScriptedGemini, tmp_path: Path) -> None:
    """Exit status 0; nothing is bought, and no ledger is made."""
    done = check(gemini_fallback_models=NEXT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("All is well.\n")
    assert lines(done, "model") == [
        f"ok    model     {FIRST}, closed, $0.1 in, $0.4 out per million tokens, served to this key",
        f"ok    model     {NEXT}, current, $0.25 in, $1.5 out per million tokens, served to this key",
    ]
    assert "not there yet" in lines(done, "ledger")[0]
    assert not any(call.generates for call in gemini.calls)
    assert not list((tmp_path / "data").glob("*"))


def test_offline_needs_no_key(check: Check) -> None:
    """The emulator answers the looks."""
    done = check("--offline", google_api_key="")
    assert (done.returncode, lines(done, "key")) == (0, ["ok    key       not needed offline"])
    assert f"offline-{FIRST}" in lines(done, "model")[0]


def test_a_closed_model_is_no_failure_while_another_answers(check: Check, gemini: ScriptedGemini) -> None:
    """It says so in its line."""
    gemini.plays(parse_model(f"{FIRST}=closed"))
    done = check(gemini_fallback_models=NEXT)
    assert done.returncode == 0
    assert lines(done, "model")[0].endswith("not served to this key; the next one answers")


def test_no_model_that_is_served_fails_with_what_to_do(check: Check, gemini: ScriptedGemini) -> None:
    """Exit status 1."""
    gemini.plays(parse_model(f"{FIRST}=closed"))
    done = check()
    assert done.returncode == 1
    [line] = lines(done, "model")
    assert line.startswith(f"fail  model     {FIRST}, closed")
    assert "GEMINI_MODEL" in line
    assert done.stdout.endswith("1 of these would fail.\n")


def test_a_missing_key_says_what_to_set(check: Check) -> None:
    """Without one nobody looks at models."""
    done = check(google_api_key="")
    assert (done.returncode, lines(done, "model")) == (1, [])
    assert "set GOOGLE_API_KEY" in lines(done, "key")[0]


def test_a_ledger_shows_its_version_and_is_not_changed(check: Check, tmp_path: Path) -> None:
    """An older one is migrated by the service alone: an older service may still be writing it."""
    path = tmp_path / "data" / "ledger.sqlite3"
    with closing(SQLiteEngine(path).connect()) as connection:
        migrate(SQLiteEngine(path), connection, MIGRATIONS[:1])
    done = check()
    assert (done.returncode, lines(done, "ledger")) == (0, [f"ok    ledger    {path}, schema 1"])


def test_a_ledger_of_a_newer_version_fails(check: Check, tmp_path: Path) -> None:
    """In the words that the service would use."""
    path = tmp_path / "data" / "ledger.sqlite3"
    with closing(open_ledger(path)) as ledger:
        ledger.prepare()
    with closing(SQLiteEngine(path).connect()) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    done = check()
    assert done.returncode == 1
    assert "schema version 99" in lines(done, "ledger")[0]


def test_a_ledger_that_is_no_database_fails(check: Check, tmp_path: Path) -> None:
    """Without a traceback."""
    path = tmp_path / "data" / "ledger.sqlite3"
    path.parent.mkdir()
    path.write_text("these are no tables, whatever the name of the file says" * 100)
    done = check()
    assert (done.returncode, done.stderr) == (1, "")
    assert lines(done, "ledger")[0].startswith("fail")


def test_a_port_in_use_fails(check: Check) -> None:
    """The setting is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = check("--port", str(port))
    assert done.returncode == 1
    assert lines(done, "port")[0].startswith(f"fail  port      HOST=127.0.0.1 PORT={port}: ")


def test_a_redis_that_does_not_answer_fails(check: Check) -> None:
    """The service would go on by itself; whoever set it wants to know."""
    pytest.importorskip("redis", reason="needs redis (requirements-dev.txt)")
    done = check(redis_url="redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert "look at REDIS_URL" in lines(done, "redis")[0]


def test_settings_that_cannot_be_used_end_it_with_2(check: Check) -> None:
    """As they end the service."""
    done = check(threads="none")
    assert done.returncode == 2
    assert "THREADS" in done.stderr


def test_no_finding_shows_a_secret(check: Check) -> None:
    """Whatever fails."""
    done = check(admin_api_key="AKeyOfAnAdmin", database_url="postgresql://user:hunter2@127.0.0.1:1/db")
    for secret in ("AIza-test-key", "AKeyOfAnAdmin", "hunter2"):
        assert secret not in done.stdout + done.stderr
