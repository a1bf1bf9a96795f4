"""The service is killed while it earns: nothing that a client received is missing, and its kept answers are there."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kill_nine import Clients, Life, Received, audit, lives, sums
from mtllm.ledger.ledger import ExportRow, Ledger, open_ledger
from tests.support.ledgers import ATTEMPT, HIT, SETTLEMENT
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import APP_PY, Process, post

pytestmark = pytest.mark.long

TEXT = "/api/v1/generate/text"
WARM = 0.9
"""Of the answers that were hits before the end, the share that must be hits after it: the last moment may be lost."""


def ended(folder: Path, by: signal.Signals, count: int) -> list[Life]:
    """So many lives on one folder, each ended while 32 clients wait for answers."""
    return list(lives(folder, count, seed=7, longest=0.5, end=by))


def test_three_kills_under_32_clients(tmp_path: Path) -> None:
    """Every answer that was received is settled, every call is there, the sums agree, and the cache is still warm."""
    killed = ended(tmp_path, signal.SIGKILL, 3)
    assert [life.broken for life in killed] == [()] * 3
    assert all(life.paid for life in killed)
    assert killed[-1].hot_hit_ratio >= WARM * killed[0].hot_hit_ratio


def test_a_restart_in_order_keeps_all_of_the_cache(tmp_path: Path) -> None:
    """SIGTERM under load: what was hit before is hit after, and nothing is left open in the ledger."""
    former, latter = ended(tmp_path, signal.SIGTERM, 2)
    assert former.broken == latter.broken == ()
    assert (former.unfinished, latter.unfinished) == (0, 0)
    assert latter.hot_hit_ratio >= former.hot_hit_ratio


def test_the_folder_of_the_cache_may_go_at_any_time(environment: dict[str, str], gemini: ScriptedGemini) -> None:
    """While the service runs and between two runs: answers are paid for again, and kept again; no record is lost."""
    cache = Path(environment["CACHE_DIR"])

    def asked_twice(port: int, prompt: str) -> list[str]:
        return [post(port, TEXT, {"prompt": prompt}).headers["X-Cached"] for _ in range(2)]

    with Process(APP_PY, environment) as service:
        assert asked_twice(service.port, "one") == ["false", "true"]
        shutil.rmtree(cache, ignore_errors=True)
        assert asked_twice(service.port, "two") == ["false", "true"]
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    shutil.rmtree(cache)
    with Process(APP_PY, environment) as service:
        assert asked_twice(service.port, "one") == ["false", "true"]
    with closing(open_ledger(Path(environment["DATA_DIR"]) / "ledger.sqlite3")) as ledger:
        assert [row.status for row in ledger.export(0, 4e9)].count("ok") == gemini.count == 3


# The audit itself finds what it is there to find


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """One paid answer, one call that was cut off, one hit."""
    with closing(open_ledger(tmp_path / "ledger.sqlite3", sync="normal")) as books:
        books.settle(books.open(ATTEMPT), SETTLEMENT)
        books.open(replace(ATTEMPT, request_id="r-3"))
        books.record_hit(HIT)
        books.flush()
        yield books


def audited(ledger: Ledger, received: Received, calls: dict[str, int]) -> list[str]:
    """What the audit says of `received` and of so many calls by prompt."""
    clients = Clients(asked=[("r-1", "paid"), ("r-2", "paid"), ("r-3", "cut off")], received=[received])
    return list(audit(ledger.export(0, 4e9), clients, Counter(calls), {"paid": 300}))


PAID = Received("r-1", "paid", 200, cached=False, nanodollars=300)


def test_the_audit_has_nothing_to_say_of_books_that_balance(ledger: Ledger) -> None:
    """A call that was cut off is there, a hit cost nothing."""
    assert audited(ledger, PAID, {"paid": 1, "cut off": 1}) == []
    assert audited(ledger, Received("r-2", "paid", 200, cached=True, nanodollars=0), {"paid": 1}) == []
    assert list(sums(ledger, list(ledger.export(0, 4e9)))) == []


@pytest.mark.parametrize(
    ("received", "calls"),
    [
        (replace(PAID, request_id="r-4"), {}),
        (replace(PAID, nanodollars=299), {}),
        (PAID, {"paid": 2}),
        (PAID, {"cut off": 2}),
        (PAID, {"never heard of": 1}),
    ],
    ids=["answer not there", "another amount", "repeated call", "call not there", "unknown call"],
)
def test_the_audit_finds_what_is_missing(ledger: Ledger, received: Received, calls: dict[str, int]) -> None:
    """An answer, a call or an amount."""
    assert audited(ledger, received, calls)


def test_the_audit_finds_sums_that_are_not_those_of_the_rows(ledger: Ledger) -> None:
    """Totals, days and budget, each by itself."""
    rows: list[ExportRow] = list(ledger.export(0, 4e9))
    missing = [row for row in rows if row.request_id != "r-1"]
    assert len(list(sums(ledger, missing))) == 3
    assert len(list(sums(ledger, [row._replace(reserved=0) for row in rows]))) == 1
