"""Beside the requests: rows past their retention go, settlements that came late are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app import Api
from mtllm.billing.drift import DriftMeter
from mtllm.billing.maintenance import LedgerMaintenance
from mtllm.billing.prices import PriceTable, SpendMeter
from mtllm.billing.recorder import CostRecorder
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, Route
from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.money import TokenUsage
from mtllm.ledger.ledger import Hit, Ledger, open_ledger
from mtllm.ledger.sqlite import SQLiteEngine
from mtllm.tasks import TASK_BY_NAME, parse
from tests.support.fakes import FakeClock
from tests.support.ledgers import assert_adds_up, until

DAY = 86_400
RETENTION_DAYS = 30
BATCH = 1_000


class LedgerTransaction:
    """A ledger with its maintenance, a clock, and what the maintenance reported."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(1_800_000_000.0)
        self.ahead = 0.0
        """Seconds by which the clock is wrong; the monotonic one never is."""
        self.ledger: Ledger = open_ledger(folder / "ledger.sqlite3", sync="normal", clock=self.clock)
        self.spend = SpendMeter()
        self.drift = DriftMeter(lambda texts: [0] * len(texts))
        prices = PriceTable.fixed(0.1, 0.4)
        self.recorder = CostRecorder(self.ledger, prices, TokenCounter(), self.spend, self.drift, clock=self.clock)
        self.reported: list[str] = []
        self.maintenance = self.new_upkeep()

    def new_upkeep(self, check_seconds: float = 3600.0) -> LedgerMaintenance:
        return LedgerMaintenance(
            self.ledger,
            self.recorder,
            retention_days=RETENTION_DAYS,
            report=self.reported.append,
            clock=lambda: self.clock() + self.ahead,
            monotonic=self.clock,
            check_seconds=check_seconds,
        )

    def record(self, count: int, age_days: float) -> None:
        """So many hits of that age."""
        at = self.clock() - age_days * DAY
        for number in range(count):
            self.ledger.record_hit(Hit(f"r-{number}", at, "text", "10.0.0.1", "model", 10, 5, 300))
        self.ledger.flush()

    def rows(self) -> int:
        return sum(1 for _ in self.ledger.export(0, 4e9))


@pytest.fixture
def books(tmp_path: Path) -> Iterator[LedgerTransaction]:
    kept = LedgerTransaction(tmp_path)
    yield kept
    kept.drift.close()
    kept.ledger.close()


def test_rows_past_their_retention_go_and_the_totals_keep_them(books: LedgerTransaction) -> None:
    """Young ones stay; the operator is told how many went."""
    books.record(3, age_days=RETENTION_DAYS + 1)
    books.record(2, age_days=RETENTION_DAYS - 1)
    before = books.ledger.totals()
    books.maintenance.run_due()
    assert (books.rows(), books.ledger.totals()) == (2, before)
    assert len(books.reported) == 1
    assert books.reported[0].startswith("3 ")


@pytest.mark.parametrize("days", [500, -500])
def test_a_clock_that_jumped_removes_nothing_and_is_told(books: LedgerTransaction, days: int) -> None:
    """A machine that resumes, or a clock that is set before NTP: the rows that were young are young."""
    books.maintenance.run_due()
    books.record(5, age_days=1)
    books.ahead = days * DAY
    for _ in range(3):
        books.clock.advance(60)
        books.maintenance.run_due()
    assert books.rows() == 5
    assert len(books.reported) == 1
    assert books.reported[0].startswith(f"The clock jumped by {days * DAY:+d} s. No ledger row is removed")
    books.ahead = 0.0
    books.clock.advance((RETENTION_DAYS + 1) * DAY)
    books.maintenance.run_due()
    assert books.rows() == 0


def test_a_new_time_that_goes_evenly_for_a_day_is_believed(books: LedgerTransaction) -> None:
    """A clock that was wrong at the start and was set right must not end the upkeep for ever."""
    books.record(5, age_days=1)
    books.ahead = 500 * DAY
    books.maintenance.run_due()
    books.clock.advance(DAY - 1)
    books.maintenance.run_due()
    assert books.rows() == 5
    books.clock.advance(1)
    books.maintenance.run_due()
    assert books.rows() == 0


def test_a_clock_that_is_set_by_a_little_goes_on(books: LedgerTransaction) -> None:
    """NTP and naps move it by less than an hour."""
    books.ahead = -120.0
    books.record(1, age_days=RETENTION_DAYS + 1)
    books.maintenance.run_due()
    assert books.rows() == 0
    assert "jumped" not in books.reported[0]


def test_old_rows_are_looked_for_once_a_day(books: LedgerTransaction) -> None:
    """Of the UTC calendar: at the first look, and at the first one after each midnight."""
    books.maintenance.run_due()
    books.record(1, age_days=RETENTION_DAYS + 1)
    books.maintenance.run_due()
    assert books.rows() == 1
    books.clock.advance(DAY)
    books.maintenance.run_due()
    assert books.rows() == 0


def test_many_rows_go_in_batches(books: LedgerTransaction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand at most, with a pause after each, so that those who settle never wait for more than one."""
    left: list[int] = []

    def pause(_seconds: float) -> bool:
        left.append(books.rows())
        return False

    monkeypatch.setattr(books.maintenance._stop, "wait", pause)
    books.record(2 * BATCH + 500, age_days=RETENTION_DAYS + 1)
    books.maintenance.run_due()
    assert left == [BATCH + 500, 500, 0]


def test_upkeep_ends_between_two_batches(books: LedgerTransaction) -> None:
    """A closing service does not wait for the rest; the next one goes on."""
    books.record(2 * BATCH, age_days=RETENTION_DAYS + 1)
    books.maintenance.close()
    books.maintenance.run_due()
    assert books.rows() == BATCH
    books.new_upkeep().run_due()
    assert books.rows() == 0


def test_upkeep_works_by_itself(books: LedgerTransaction) -> None:
    """From start to close, in a thread."""
    books.record(1, age_days=RETENTION_DAYS + 1)
    maintenance = books.new_upkeep(check_seconds=0.001)
    maintenance.start()
    until(lambda: books.rows() == 0)
    maintenance.close()


class Reluctant(Ledger):
    """A ledger whose next `refusals` settlements fail."""

    refusals = 0

    def settle(self, *settlement: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise LedgerUnavailable
        super().settle(*settlement)  # type: ignore[arg-type]  # passed on as it came


def test_a_settlement_that_the_disk_refused_is_written_later(tmp_path: Path) -> None:
    """Once, with its true cost, which counts as spent from then on."""
    clock, spend = FakeClock(1_800_000_000.0), SpendMeter()
    drift = DriftMeter(lambda texts: [0] * len(texts))
    with closing(Reluctant(SQLiteEngine(tmp_path / "l.sqlite3", sync="normal"), clock=clock)) as ledger:
        recorder = CostRecorder(ledger, PriceTable.fixed(0.1, 0.4), TokenCounter(), spend, drift, clock=clock)
        maintenance = LedgerMaintenance(ledger, recorder, retention_days=1, report=lambda _: None, clock=clock)
        job = parse(TASK_BY_NAME["text"], b'{"prompt": "x"}', max_chars=10)
        entry = recorder.attempt(job, Caller("r-1", "10.0.0.1"), Route("model", "model"), number=1, seconds=30)
        answer = Answer("fine", "model", TokenUsage(10, 20))
        ledger.refusals = 2
        with pytest.raises(LedgerUnavailable):
            entry.settle(answer)
        maintenance.run_due()
        assert [row.status for row in ledger.export(0, 4e9)] == ["open"]
        maintenance.run_due()
        maintenance.run_due()
        assert [(row.status, row.total_cost) for row in ledger.export(0, 4e9)] == [("ok", 9_000)]
        assert spend.total() == 9_000
        assert_adds_up(ledger)
    drift.close()


def test_the_service_keeps_its_ledger(make_app: Callable[..., Api], clock: FakeClock) -> None:
    """With USAGE_RETENTION_DAYS; what people see of all time stays as it was."""
    app = make_app(usage_retention_days="2", admin_api_key="admin-secret")
    client, admin = app.test_client(), {"X-API-Key": "admin-secret"}
    client.post("/api/v1/generate/text", json={"prompt": "x"})
    before = client.get("/stats").json
    clock.advance(3 * DAY)
    app.service.maintenance.run_due()
    after = client.get("/stats").json
    assert before is not None
    assert after is not None
    assert after["overall_stats"] == before["overall_stats"]
    assert client.get("/api/v1/usage/export?format=jsonl", headers=admin).text == ""
