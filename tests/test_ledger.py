"""The ledger below HTTP, one thread at a time: what is recorded, how it is summed, refused, read and removed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest

from mtllm.domain.errors import BudgetExceeded, LedgerUnavailable
from mtllm.domain.money import Amount, Charge, TokenUsage
from mtllm.domain.periods import Calendar
from mtllm.ledger import group_commit
from mtllm.ledger.budgets import RESERVED_SECONDS
from mtllm.ledger.engine import Engine
from mtllm.ledger.ledger import (
    Budget,
    BudgetState,
    GroupBy,
    Ledger,
    LedgerTooNew,
    Selection,
    Settlement,
    Totals,
    UsageGroup,
    key_scope,
    open_ledger,
)
from mtllm.ledger.transaction import MIGRATIONS, migrate
from tests.support.fakes import FakeClock
from tests.support.ledgers import (
    ATTEMPT,
    CHARGE,
    HIT,
    NOON,
    SETTLEMENT,
    Database,
    FaultyEngine,
    assert_adds_up,
    attempt,
    settlement,
    until,
)

HOUR, DAY = 3600, 86_400
MIDNIGHT = NOON - 12 * HOUR

only_sqlite = pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


@pytest.fixture
def engine(database: Database) -> FaultyEngine:
    return FaultyEngine(database.engine())


@pytest.fixture
def ledger(engine: FaultyEngine, clock: FakeClock) -> Iterator[Ledger]:
    ledger = Ledger(engine, clock=clock)
    yield ledger
    engine.gate.set()
    ledger.close()


def paid(ledger: Ledger, at: float = NOON, cost: int = 300, key: str | None = None) -> int:
    row_id = ledger.open(attempt(at, key=key))
    ledger.settle(row_id, settlement(cost))
    return row_id


class TestConstruction:
    def test_nothing_exists_before_the_first_use(self, tmp_path: Path) -> None:
        """Making a ledger writes no file, and closing an unused one writes none either."""
        ledger = open_ledger(tmp_path / "deep" / "ledger.sqlite3")
        assert ledger.health().writable
        ledger.close()
        assert list(tmp_path.iterdir()) == []

    def test_prepare_makes_the_file_and_its_folder(self, tmp_path: Path) -> None:
        """The database and missing folders come into being with `prepare`."""
        ledger = open_ledger(tmp_path / "deep" / "ledger.sqlite3", sync="normal")
        ledger.prepare()
        assert (tmp_path / "deep" / "ledger.sqlite3").exists()
        ledger.close()

    def test_in_memory(self) -> None:
        """ ":memory:" behaves like a file and leaves nothing behind."""
        ledger = open_ledger(":memory:")
        paid(ledger)
        assert ledger.totals().cost == 300
        ledger.close()

    def test_a_forgotten_ledger_writes_its_last_hits(self, database: Database) -> None:
        """Garbage collection closes a ledger as `close` does."""
        ledger = open_ledger(database.location)
        ledger.record_hit(HIT)
        del ledger
        gc.collect()
        again = open_ledger(database.location)
        assert again.totals().cached_requests == 1
        again.close()


class TestAttempts:
    def test_an_open_attempt_is_on_disk(self, ledger: Ledger, database: Database) -> None:
        """When `open` returns, another connection sees the row and its reservation."""
        ledger.open(ATTEMPT)
        [row] = database.rows("SELECT status, reserved, total_cost FROM entries")
        assert row == ("open", 1_000, 0)

    def test_a_settled_attempt(self, ledger: Ledger) -> None:
        """Settling fills in the row, counts it in the totals and frees the reservation."""
        row_id = ledger.open(replace(ATTEMPT, key="team", number=2))
        ledger.settle(
            row_id,
            Settlement("ok", "model-b", replace(CHARGE, estimated=True)),
        )
        [row] = ledger.export(NOON, NOON + 1)
        assert row._asdict() == {
            "request_id": "r-1",
            "timestamp": NOON,
            "task": "text",
            "client": "10.0.0.1",
            "model": "model-b",
            "status": "ok",
            "cached": False,
            "input_tokens": 10,
            "output_tokens": 5,
            "input_cost": 100,
            "output_cost": 200,
            "total_cost": 300,
            "saved": 0,
            "attempt": 2,
            "cached_input_tokens": 2,
            "reserved": 0,
            "shared": False,
            "estimated": True,
            "unpriced": False,
            "input_price": 7,
            "cached_input_price": 8,
            "output_price": 9,
            "key": "team",
            "requested_model": "model-a",
            "fallback": "",
            "tag": "",
        }
        assert ledger.totals() == Totals(1, 0, 10, 5, 300, 0, 0)
        assert ledger.budget_state("service", NOON) == BudgetState(300, 0)
        assert ledger.budget_state(key_scope("team"), NOON) == BudgetState(300, 0)

    def test_a_failed_attempt_costs_but_completes_nothing(self, ledger: Ledger) -> None:
        """An error's cost and tokens count; it is not a completed request."""
        ledger.settle(ledger.open(ATTEMPT), replace(SETTLEMENT, status="content_blocked"))
        assert ledger.totals() == Totals(0, 0, 10, 5, 300, 0, 0)
        assert_adds_up(ledger)

    def test_settling_twice_counts_once(self, ledger: Ledger) -> None:
        """The first settlement stands, whatever a second one says."""
        row_id = paid(ledger)
        ledger.settle(row_id, settlement(999))
        assert ledger.totals().cost == 300
        assert_adds_up(ledger)

    def test_settling_what_does_not_exist_counts_nothing(self, ledger: Ledger) -> None:
        """An unknown id is ignored."""
        ledger.settle(42, SETTLEMENT)
        assert ledger.totals() == Totals()

    def test_unpriced_requests_are_counted(self, ledger: Ledger) -> None:
        """A model without a price costs 0 and is counted as unpriced."""
        ledger.settle(ledger.open(ATTEMPT), Settlement("ok", "odd", Charge(Amount(TokenUsage(10, 5)), None)))
        assert ledger.totals() == Totals(1, 0, 10, 5, 0, 0, 1)
        assert_adds_up(ledger)

    def test_an_open_row_past_its_deadline_becomes_unsettled(self, ledger: Ledger) -> None:
        """Its bound keeps counting against the day; its cost is 0; rows within their deadline are left alone."""
        ledger.open(ATTEMPT)
        assert ledger.mark_unsettled(ATTEMPT.deadline) == 0
        assert ledger.mark_unsettled(ATTEMPT.deadline + 0.001) == 1
        assert ledger.mark_unsettled(ATTEMPT.deadline + 0.001) == 0
        [row] = ledger.export(NOON, NOON + 1)
        assert (row.status, row.total_cost, row.reserved) == ("unsettled", 0, 1_000)
        assert ledger.budget_state("service", NOON) == BudgetState(0, 1_000)
        assert_adds_up(ledger)

    def test_a_late_settlement_still_counts(self, ledger: Ledger) -> None:
        """An unsettled row that is settled after all moves to its real cost."""
        row_id = ledger.open(ATTEMPT)
        ledger.mark_unsettled(NOON + HOUR)
        ledger.settle(row_id, SETTLEMENT)
        assert ledger.totals().cost == 300
        assert ledger.budget_state("service", NOON) == BudgetState(300, 0)
        assert_adds_up(ledger)

    def test_the_writer_marks_by_itself(self, engine: FaultyEngine, clock: FakeClock) -> None:
        """What a killed process left open is marked at the next start, by the clock that was passed in."""
        first = Ledger(engine, clock=clock)
        first.open(ATTEMPT)
        first.close()
        clock.advance(HOUR)
        second = Ledger(engine, clock=clock)
        second.prepare()
        [row] = second.export(0, 4e9)
        second.close()
        assert row.status == "unsettled"

    def test_a_kept_reservation_counts_beside_the_cost(self, ledger: Ledger) -> None:
        """When Gemini may have billed more than is known, the reservation stays."""
        ledger.settle(ledger.open(ATTEMPT), Settlement("upstream_timeout", "model-a", keep_reservation=True))
        assert ledger.budget_state("service", NOON) == BudgetState(0, 1_000)
        [row] = ledger.export(NOON, NOON + 1)
        assert (row.status, row.reserved) == ("upstream_timeout", 1_000)
        assert_adds_up(ledger)

    def test_an_absurd_value_is_an_error_of_its_own(self, ledger: Ledger, database: Database) -> None:
        """A value that no database can hold fails alone; the ledger stays writable."""
        with pytest.raises(database.absurd):
            ledger.open(attempt(reserved=2**70))
        assert ledger.health().writable
        paid(ledger)
        assert_adds_up(ledger)


class TestHits:
    def test_a_hit(self, ledger: Ledger) -> None:
        """A hit costs nothing and counts as cached and as savings; its tokens are in the row, not in the sums."""
        ledger.record_hit(HIT._replace(shared=True, key="team"))
        ledger.flush()
        [row] = ledger.export(NOON, NOON + 1)
        assert (row.status, row.cached, row.shared, row.total_cost, row.saved) == ("hit", True, True, 0, 300)
        assert (row.input_tokens, row.output_tokens, row.key, row.attempt) == (10, 5, "team", 0)
        assert ledger.totals() == Totals(1, 1, 0, 0, 0, 300, 0)
        assert_adds_up(ledger)

    def test_hits_reach_the_disk_by_themselves(self, ledger: Ledger) -> None:
        """Without flush, close or traffic a hit is written, and the lag goes back to zero."""
        ledger.record_hit(HIT)
        until(lambda: ledger.totals().cached_requests == 1, seconds=5)
        until(lambda: ledger.health().lag_seconds == 0)

    def test_many_hits(self, ledger: Ledger) -> None:
        """More hits than a batch takes are all written, in order."""
        count = group_commit.MAX_HITS * 2 + 7
        for number in range(count):
            ledger.record_hit(HIT._replace(request_id=str(number)))
        ledger.flush()
        assert [row.request_id for row in ledger.export(0, 4e9)] == [str(number) for number in range(count)]
        assert ledger.totals().cached_requests == count

    def test_close_writes_all_hits(self, engine: FaultyEngine) -> None:
        """However many batches that takes."""
        ledger = Ledger(engine)
        for _ in range(group_commit.MAX_HITS * 3):
            ledger.record_hit(HIT)
        ledger.close()
        again = Ledger(engine)
        assert again.totals().cached_requests == group_commit.MAX_HITS * 3
        again.close()

    def test_a_hit_that_cannot_be_written_takes_no_other_along(self, ledger: Ledger) -> None:
        """It is dropped and counted; its neighbours are written."""
        for request_id in ("a", "\ud800", "b"):
            ledger.record_hit(HIT._replace(request_id=request_id))
        ledger.flush()
        assert [row.request_id for row in ledger.export(0, 4e9)] == ["a", "b"]
        assert ledger.health().dropped_hits == 1
        assert_adds_up(ledger)


class TestBudgets:
    BUDGET = (Budget("service", 2_500),)

    def test_refused_when_the_day_cannot_cover_it(self, ledger: Ledger) -> None:
        """Reservations of open rows count; a refused attempt leaves no trace and says what would help."""
        ledger.open(ATTEMPT, self.BUDGET)
        ledger.open(ATTEMPT, self.BUDGET)
        with pytest.raises(BudgetExceeded) as refused:
            ledger.open(attempt(NOON + 0.5), self.BUDGET)
        assert refused.value.retry_after == RESERVED_SECONDS
        assert "under way" in refused.value.message
        assert [(detail.field, detail.message) for detail in refused.value.details] == [
            ("scope", "service"),
            ("period", "day"),
            ("limit", "0.000002500"),
            ("spent", "0.000000000"),
            ("reserved", "0.000002000"),
            ("needed", "0.000001000"),
            ("helps", "try again when they have ended, or lower max_output_tokens"),
        ]
        assert len(list(ledger.export(0, 4e9))) == 2
        assert_adds_up(ledger)

    def test_a_spent_day_comes_back_at_midnight(self, ledger: Ledger) -> None:
        """What is spent, or kept for calls that may have been billed, does not come back before."""
        paid(ledger, cost=1_000)
        ledger.settle(ledger.open(ATTEMPT), Settlement("upstream_timeout", "model-a", keep_reservation=True))
        with pytest.raises(BudgetExceeded) as refused:
            ledger.open(attempt(NOON + 0.5), self.BUDGET)
        assert refused.value.retry_after == 12 * HOUR - 0.5

    def test_what_no_day_can_hold_is_promised_no_time(self, ledger: Ledger) -> None:
        """The bound alone is above the limit: another request helps, and no wait."""
        with pytest.raises(BudgetExceeded, match="max_output_tokens") as refused:
            ledger.open(attempt(reserved=2_501), self.BUDGET)
        assert refused.value.retry_after is None
        assert_adds_up(ledger)

    def test_exactly_the_limit_fits(self, ledger: Ledger) -> None:
        """spent + reserved + this <= limit."""
        paid(ledger, cost=1_500)
        ledger.open(ATTEMPT, self.BUDGET)
        with pytest.raises(BudgetExceeded):
            ledger.open(attempt(reserved=1), self.BUDGET)

    def test_settling_gives_the_rest_back(self, ledger: Ledger) -> None:
        """Only the real cost counts once it is known."""
        for _ in range(5):
            row_id = ledger.open(ATTEMPT, self.BUDGET)
            ledger.settle(row_id, SETTLEMENT)
        assert ledger.budget_state("service", NOON) == BudgetState(1_500, 0)

    def test_a_new_day_starts_empty(self, ledger: Ledger) -> None:
        """The UTC day of the attempt is the one that pays, though it is settled on the next."""
        row_id = ledger.open(attempt(MIDNIGHT - 0.001, reserved=2_500), self.BUDGET)
        ledger.open(attempt(MIDNIGHT, reserved=2_500), self.BUDGET)
        ledger.settle(row_id, SETTLEMENT)
        assert ledger.budget_state("service", MIDNIGHT - 1) == BudgetState(300, 0)
        assert ledger.budget_state("service", MIDNIGHT) == BudgetState(0, 2_500)

    def test_keys_have_days_of_their_own(self, ledger: Ledger) -> None:
        """One key's budget does not touch another's; the service's counts both."""
        budgets = {key: (Budget("service", 2_000), Budget(key_scope(key), 1_000)) for key in "ab"}
        ledger.open(attempt(key="a"), budgets["a"])
        with pytest.raises(BudgetExceeded):
            ledger.open(attempt(key="a"), budgets["a"])
        ledger.open(attempt(key="b"), budgets["b"])
        with pytest.raises(BudgetExceeded):
            ledger.open(attempt(reserved=1), (Budget("service", 2_000),))

    def test_spending_before_the_budget_was_set_counts(self, ledger: Ledger) -> None:
        """A budget that is introduced during the day knows what the day has cost."""
        paid(ledger, cost=2_000, key="a")
        with pytest.raises(BudgetExceeded):
            ledger.open(attempt(key="a"), (Budget(key_scope("a"), 2_500),))

    def test_a_budget_of_nothing(self, ledger: Ledger) -> None:
        """A limit of 0 refuses whatever costs anything."""
        with pytest.raises(BudgetExceeded):
            ledger.open(attempt(reserved=1), (Budget("service", 0),))
        ledger.open(attempt(reserved=0), (Budget("service", 0),))


class TestWindowsAndUsage:
    def test_windows_are_whole_minutes_at_most_one_too_many(self, ledger: Ledger) -> None:
        """A row is in the window while its age is below it, and out a minute later at the latest."""
        paid(ledger, NOON)
        for seconds, counted in ((0, 1), (HOUR - 1, 1), (HOUR, 1), (HOUR + 60, 0), (-60, 0)):
            assert ledger.window(1, NOON + seconds).requests == counted

    @pytest.mark.parametrize("hours", [1, 24, 720])
    @pytest.mark.parametrize("minute", [0, 1, 59])
    def test_windows_add_up_minutes_and_hours(self, ledger: Ledger, hours: int, minute: int) -> None:
        """One row at each side of both edges, and some within, wherever the window falls within its hours."""
        now = NOON + minute * 60 + 30
        start = now - 30 - hours * HOUR
        for at in (start - 1, start, start + HOUR / 2, now - 1800, now, now + 31):
            paid(ledger, at, cost=1)
        usage = ledger.window(hours, now)
        assert (usage.hours, usage.cost, usage.requests) == (hours, 4, 4)

    def test_usage_is_exact_to_the_microsecond(self, ledger: Ledger) -> None:
        """`from` is included, `to` is not, within minutes and across hours."""
        for at in (NOON - 0.000001, NOON, NOON + 2 * HOUR, NOON + 3 * HOUR + 1.5):
            paid(ledger, at, cost=1)
        assert cost(ledger.usage(NOON, NOON + 3 * HOUR + 1.5, "task")) == {"text": 2}
        assert cost(ledger.usage(NOON - 0.000001, NOON + 3 * HOUR + 1.500001, "task")) == {"text": 4}
        assert cost(ledger.usage(NOON, NOON + 0.5, "task")) == {"text": 1}
        assert ledger.usage(NOON + 1, NOON + 0.5, "task") == []

    def test_usage_by_group(self, ledger: Ledger) -> None:
        """Each grouping names its groups, in order; hits and paid calls are told apart."""
        paid(ledger, NOON)
        ledger.settle(
            ledger.open(replace(ATTEMPT, task="code", client="b", timestamp=NOON + DAY)),
            replace(SETTLEMENT, model="m-2"),
        )
        ledger.record_hit(HIT._replace(timestamp=NOON + DAY + 60))
        ledger.flush()
        keys = {
            group_by: [group.key for group in ledger.usage(NOON - DAY, NOON + 2 * DAY, group_by)]
            for group_by in ("day", "hour", "minute", "task", "client", "model")
        }
        assert keys == {
            "day": ["2027-01-15", "2027-01-16"],
            "hour": ["2027-01-15T12:00:00Z", "2027-01-16T12:00:00Z"],
            "minute": ["2027-01-15T12:00:00Z", "2027-01-16T12:00:00Z", "2027-01-16T12:01:00Z"],
            "task": ["code", "text"],
            "client": ["10.0.0.1", "b"],
            "model": ["m-2", "model-a"],
        }
        assert ledger.usage(NOON, NOON + 2 * DAY, "task") == [
            UsageGroup(1, 0, 10, 5, 300, 0, 0, key="code"),
            UsageGroup(2, 1, 10, 5, 300, 300, 0, key="text"),
        ]

    def test_rows_that_cost_and_completed_nothing_make_no_group(self, ledger: Ledger) -> None:
        """Whether it is read from rows or from sums, a group of zeros is left out."""
        ledger.settle(ledger.open(ATTEMPT), Settlement("upstream_error", "model-a"))
        ledger.open(ATTEMPT)
        assert ledger.usage(NOON - HOUR, NOON + HOUR, "task") == []
        assert ledger.usage(NOON, NOON + 1, "task") == []

    def test_totals_survive_a_restart(self, engine: FaultyEngine) -> None:
        """Everything is read from the file."""
        first = Ledger(engine)
        paid(first)
        first.record_hit(HIT)
        first.close()
        second = Ledger(engine)
        assert second.totals() == Totals(2, 1, 10, 5, 300, 300, 0)
        assert_adds_up(second)
        second.close()


class TestExportAndPrune:
    def test_export_is_in_order_of_time(self, ledger: Ledger) -> None:
        """By timestamp, then id, whatever the order of writing; chunks neither repeat nor skip rows of equal time."""
        for number in range(1_203):
            ledger.record_hit(HIT._replace(request_id=str(number), timestamp=NOON + number % 2))
        ledger.flush()
        ids = [int(row.request_id) for row in ledger.export(NOON, NOON + 2)]
        assert ids == sorted(range(1_203), key=lambda number: (number % 2, number))

    def test_an_abandoned_export_harms_nothing(self, ledger: Ledger) -> None:
        """A reader that stops half-way, or never starts, leaves the ledger as it was."""
        for _ in range(3):
            paid(ledger)
        rows = ledger.export(0, 4e9)
        next(rows)
        rows.close()  # type: ignore[attr-defined]  # an iterator of ours is a generator
        ledger.export(0, 4e9)
        paid(ledger)
        assert_adds_up(ledger)

    def test_prune_keeps_every_total(self, ledger: Ledger) -> None:
        """Rows go in batches, oldest first; totals, windows, whole-hour usage and budgets stay."""
        for number in range(25):
            paid(ledger, NOON + number, cost=1)
        before = (ledger.totals(), ledger.window(24, NOON + 60), ledger.usage(NOON, NOON + HOUR, "client"))
        assert ledger.count_before(NOON + 22) == 22
        removed: list[int] = []
        assert ledger.prune(NOON + 22, batch=10, progress=removed.append) == 22
        assert removed == [10, 20, 22]
        assert ledger.count_before(NOON + 22) == 0
        assert [row.timestamp for row in ledger.export(0, 4e9)] == [NOON + 22, NOON + 23, NOON + 24]
        assert before == (ledger.totals(), ledger.window(24, NOON + 60), ledger.usage(NOON, NOON + HOUR, "client"))

    def test_prune_spares_open_rows(self, ledger: Ledger) -> None:
        """What is still running can be settled afterwards, and an id is never given to another row."""
        row_id = ledger.open(ATTEMPT)
        newest = paid(ledger)
        assert ledger.prune(NOON + 1) == 1
        assert ledger.open(ATTEMPT) > newest
        ledger.settle(row_id, SETTLEMENT)
        assert ledger.totals().cost == 600

    def test_prune_removes_minutes_that_no_window_needs(self, ledger: Ledger, database: Database) -> None:
        """Single minutes are kept for 31 days at least, hours for ever."""
        paid(ledger, NOON - 32 * DAY)
        paid(ledger, NOON - 30 * DAY)
        ledger.prune(NOON)
        assert database.rows("SELECT COUNT(*) FROM rollups WHERE span = 60") == [(1,)]
        assert ledger.window(720, NOON).requests == 1
        assert cost(ledger.usage(0, NOON, "task")) == {"text": 600}


class TestBadDays:
    @only_sqlite
    def test_a_full_disk_refuses_paid_work_and_heals(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """Real SQLITE_FULL: no row without its commit, hits wait, and everything goes on when there is room again."""
        paid(ledger)
        engine.full = True
        with pytest.raises(LedgerUnavailable):
            ledger.open(replace(ATTEMPT, request_id="x" * 200_000))
        ledger.record_hit(HIT)
        with pytest.raises(LedgerUnavailable):
            ledger.open(replace(ATTEMPT, request_id="x" * 200_000))
        assert_adds_up(ledger)
        engine.full = False
        paid(ledger)
        ledger.flush()
        assert (ledger.totals().cost, ledger.totals().cached_requests) == (600, 1)
        assert ledger.health().writable
        assert_adds_up(ledger)

    def test_hits_wait_while_the_disk_is_gone(self, ledger: Ledger, engine: FaultyEngine, database: Database) -> None:
        """Health says so; nothing is lost when it comes back, without any traffic."""
        ledger.prepare()
        engine.fault = database.gone
        ledger.record_hit(HIT)
        until(lambda: not ledger.health().writable)
        health = ledger.health()
        assert (health.error, health.queued_hits, health.dropped_hits) == (type(database.gone).__name__, 1, 0)
        assert health.lag_seconds > 0
        engine.fault = None
        until(lambda: ledger.health().writable)
        assert (ledger.health().queued_hits, ledger.totals().cached_requests) == (0, 1)

    def test_an_unwritable_ledger_heals_without_any_traffic(
        self, ledger: Ledger, engine: FaultyEngine, database: Database
    ) -> None:
        """A service taken out of rotation for an unwritable ledger notices by itself that it is writable again."""
        engine.fault = database.gone
        with pytest.raises(LedgerUnavailable):
            ledger.open(ATTEMPT)
        engine.fault = None
        until(lambda: ledger.health().writable)

    def test_too_many_hits_are_dropped_and_counted(
        self, ledger: Ledger, engine: FaultyEngine, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The queue is bounded; what does not fit is counted."""
        monkeypatch.setattr(group_commit, "MAX_QUEUED_HITS", 3)
        ledger.prepare()
        engine.fault = database.gone
        with pytest.raises(LedgerUnavailable):
            ledger.flush()
        for _ in range(5):
            ledger.record_hit(HIT)
        until(lambda: ledger.health().queued_hits == 3)
        assert ledger.health().dropped_hits == 2
        engine.fault = None
        ledger.flush()
        assert ledger.totals().cached_requests == 3

    def test_hits_that_close_cannot_write_are_counted(self, engine: FaultyEngine, database: Database) -> None:
        """Closing never hangs on a disk that is gone."""
        ledger = Ledger(engine)
        ledger.prepare()
        engine.fault = database.gone
        ledger.record_hit(HIT)
        ledger.close()
        assert ledger.health().dropped_hits == 1

    def test_a_failed_commit_is_no_settlement(self, ledger: Ledger, engine: FaultyEngine, database: Database) -> None:
        """The caller learns of it; the row stays open and can be settled again."""
        row_id = ledger.open(ATTEMPT)
        engine.fault = database.gone
        with pytest.raises(LedgerUnavailable):
            ledger.settle(row_id, SETTLEMENT)
        engine.fault = None
        assert ledger.totals().cost == 0
        ledger.settle(row_id, SETTLEMENT)
        assert ledger.totals().cost == 300

    def test_a_hanging_disk_does_not_hang_the_caller(self, ledger: Ledger, engine: FaultyEngine) -> None:
        """After a while the operation is given up; one that had not begun by then never happens."""
        ledger.prepare()
        engine.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            pending = pool.submit(ledger.open, ATTEMPT)
            engine.held.wait(10)
            engine.patience_seconds = 0.1
            waiting = pool.submit(ledger.open, ATTEMPT)
            with pytest.raises(LedgerUnavailable):
                waiting.result()
            until(lambda: ledger.health().error == group_commit.HANGS)
            with pytest.raises(LedgerUnavailable):
                ledger.open(ATTEMPT)
            engine.gate.set()
            pending.result()
        engine.patience_seconds = 10.0
        ledger.flush()
        assert ledger.health().writable
        assert len(list(ledger.export(0, 4e9))) == 1

    def test_a_read_that_fails_is_unavailable(self, ledger: Ledger, engine: FaultyEngine, database: Database) -> None:
        """What makes the database unreadable comes out as our error; a mistake of ours as itself."""
        ledger.prepare()
        engine.reading_fault = database.gone
        with pytest.raises(LedgerUnavailable):
            ledger.totals()
        engine.reading_fault = database.mistake
        with pytest.raises(type(database.mistake), match="syntax"):
            ledger.totals()
        engine.reading_fault = None
        assert ledger.totals() == Totals()

    def test_a_connection_that_cannot_roll_back_is_replaced(
        self, ledger: Ledger, engine: FaultyEngine, database: Database
    ) -> None:
        """After a failure within a failure the next operation starts afresh."""
        ledger.prepare()
        engine.rollback_fault = database.gone
        with pytest.raises(database.absurd):
            ledger.open(attempt(reserved=2**70))
        engine.rollback_fault = None
        paid(ledger)
        assert_adds_up(ledger)

    def test_a_closed_ledger_refuses(self, ledger: Ledger) -> None:
        """After close, operations and reads are refused, hits dropped; closing again does nothing."""
        paid(ledger)
        ledger.close()
        ledger.close()
        for use in (lambda: ledger.open(ATTEMPT), ledger.totals, ledger.flush):
            with pytest.raises(LedgerUnavailable):
                use()
        ledger.record_hit(HIT)
        assert ledger.health().dropped_hits == 1

    def test_a_corrupt_file_is_unavailable(self, tmp_path: Path) -> None:
        """A file that is no database is reported, not overwritten."""
        path = tmp_path / "ledger.sqlite3"
        path.write_bytes(b"not a database" * 1_000)
        ledger = open_ledger(path)
        for use in (lambda: ledger.open(ATTEMPT), ledger.totals):
            with pytest.raises(LedgerUnavailable):
                use()
        ledger.close()
        assert path.read_bytes() == b"not a database" * 1_000


class TestMonths:
    """Budgets of a calendar month, in a zone, beside those of the day."""

    def test_days_add_up_to_their_month(self, ledger: Ledger) -> None:
        """What the first of the month cost is missing on the last; the next month begins anew."""
        first, last, following = (
            datetime(*day, 12, tzinfo=UTC).timestamp() for day in ((2026, 11, 1), (2026, 11, 30), (2026, 12, 1))
        )
        month = Budget("service", 3000, "month")
        row = ledger.open(attempt(first, reserved=2500), (month,))
        with pytest.raises(BudgetExceeded) as refused:
            ledger.open(attempt(last, reserved=1000), (month,))
        assert ("period", "month") in [(detail.field, detail.message) for detail in refused.value.details]
        ledger.settle(row, settlement(2500))
        with pytest.raises(BudgetExceeded, match=r"monthly budget.*resets at 00:00 UTC on 2026-12-01") as refused:
            ledger.open(attempt(last, reserved=1000), (month,))
        assert refused.value.retry_after == 12 * HOUR
        ledger.open(attempt(last, reserved=500), (month,))
        ledger.open(attempt(following, reserved=3000), (month,))
        assert ledger.budget_state("service", last, "month") == BudgetState(2500, 500)
        assert ledger.budget_state("service", last) == BudgetState(0, 500)

    def test_the_tighter_of_day_and_month_refuses(self, ledger: Ledger) -> None:
        """Each says its own period."""
        day, month = Budget("service", 1000), Budget("service", 1500, "month")
        ledger.settle(ledger.open(attempt(NOON - DAY, reserved=900), (day, month)), settlement(900))
        with pytest.raises(BudgetExceeded, match="monthly"):
            ledger.open(attempt(NOON, reserved=700), (day, month))
        with pytest.raises(BudgetExceeded, match="daily"):
            ledger.open(attempt(NOON, reserved=1100), (day, Budget("service", 9000, "month")))

    def test_requests_at_once_never_pass_it(self, ledger: Ledger) -> None:
        """Fifty at a time, of which ten fit."""
        budget = Budget("service", 1000, "month")

        def ask(_: int) -> bool:
            try:
                ledger.open(attempt(NOON, reserved=100), (budget,))
            except BudgetExceeded:
                return False
            return True

        with ThreadPoolExecutor(50) as pool:
            assert sum(pool.map(ask, range(50))) == 10
        assert ledger.budget_state("service", NOON, "month") == BudgetState(0, 1000)

    def test_a_zone_decides_on_which_day_a_call_counts(self, engine: FaultyEngine) -> None:
        """Half past eleven in the evening of 30 November (UTC) is December in Berlin."""
        late = datetime(2026, 11, 30, 23, 30, tzinfo=UTC).timestamp()
        ledger = Ledger(engine, calendar=Calendar(ZoneInfo("Europe/Berlin")))
        row = ledger.open(attempt(late, reserved=100))
        assert ledger.budget_state("service", late + HOUR, "month") == BudgetState(0, 100)
        assert ledger.budget_state("service", late - HOUR, "month") == BudgetState(0, 0)
        ledger.settle(row, settlement(100))
        with pytest.raises(BudgetExceeded, match="resets at 00:00 Europe/Berlin on 2026-12-02"):
            ledger.open(attempt(late, reserved=1), (Budget("service", 100),))
        ledger.close()


class TestGroups:
    """Sums by whom, what for, and when."""

    def test_are_made_by_key_tag_and_model_asked_for(self, ledger: Ledger) -> None:
        """Paid calls and hits alike; the rows at the ends of the range and the sums between agree."""
        asked = replace(ATTEMPT, key="alice", tag="news", requested_model="asked", fallback="unavailable")
        for one in (asked, replace(asked, tag=""), ATTEMPT):
            ledger.settle(ledger.open(one), SETTLEMENT)
        ledger.record_hit(HIT._replace(key="alice", tag="news", requested_model="asked"))
        ledger.flush()
        day = (ATTEMPT.timestamp - 86_400, ATTEMPT.timestamp + 86_400)
        count = {by: {group.key: group.requests for group in ledger.usage(*day, by)} for by in ("tag", "key")}
        assert count == {"tag": {"": 2, "news": 2}, "key": {"": 1, "alice": 3}}
        assert {group.key for group in ledger.usage(*day, "requested_model")} == {"asked", ATTEMPT.model}

    def test_of_one_key_hold_what_it_used(self, ledger: Ledger) -> None:
        """By whatever group, minutes too."""
        for key in ("alice", "bob", None):
            ledger.settle(ledger.open(replace(ATTEMPT, key=key)), SETTLEMENT)
        day = (ATTEMPT.timestamp - 86_400, ATTEMPT.timestamp + 86_400)
        for by in get_args(GroupBy):
            assert sum(group.requests for group in ledger.usage(*day, by, only=Selection(key="alice"))) == 1, by
            assert sum(group.requests for group in ledger.usage(*day, by)) == 3, by

    def test_of_days_and_months_begin_where_the_zone_says(self, ledger: Ledger) -> None:
        """Half past eleven in the evening of 30 November (UTC) is 1 December in Berlin."""
        late = datetime(2026, 11, 30, 23, 30, tzinfo=UTC).timestamp()
        ledger.settle(ledger.open(replace(ATTEMPT, timestamp=late, deadline=late + 1)), SETTLEMENT)
        berlin = ZoneInfo("Europe/Berlin")
        for by, here, there in (("day", "2026-11-30", "2026-12-01"), ("month", "2026-11", "2026-12")):
            assert [group.key for group in ledger.usage(0, late + 86_400, by)] == [here]  # type: ignore[arg-type]
            assert [group.key for group in ledger.usage(0, late + 86_400, by, zone=berlin)] == [there]  # type: ignore[arg-type]

    def test_of_one_request_are_its_attempts(self, ledger: Ledger) -> None:
        """In order, found by its id."""
        for number in (1, 2):
            ledger.settle(ledger.open(replace(ATTEMPT, number=number)), SETTLEMENT)
        ledger.settle(ledger.open(replace(ATTEMPT, request_id="another")), SETTLEMENT)
        assert [row.attempt for row in ledger.attempts_of(ATTEMPT.request_id)] == [1, 2]


class TestSchema:
    NEXT = (*MIGRATIONS, ("ALTER TABLE entries ADD COLUMN colour TEXT", "UPDATE entries SET colour = 'red'"))

    def test_a_newer_ledger_is_refused_in_words(self, engine: FaultyEngine) -> None:
        """Both versions are named, the file is left alone, and readiness knows."""
        self.migrate_to(engine, self.NEXT)
        ledger = Ledger(engine)
        for use in (ledger.prepare, lambda: ledger.open(ATTEMPT), ledger.totals):
            with pytest.raises(
                LedgerTooNew, match=f"schema version {len(self.NEXT)}, this program knows {len(MIGRATIONS)}"
            ):
                use()
        assert ledger.health().error == "LedgerTooNew"
        ledger.close()

    def test_an_older_ledger_is_migrated(self, engine: FaultyEngine, database: Database) -> None:
        """Rows survive; migrating twice changes nothing."""
        ledger = Ledger(engine)
        paid(ledger)
        ledger.close()
        self.migrate_to(engine, self.NEXT)
        self.migrate_to(engine, self.NEXT)
        assert database.rows("SELECT colour, total_cost FROM entries") == [("red", 300)]
        assert database.rows("SELECT version FROM schema_version") == [(len(self.NEXT),)]

    def test_a_migration_that_fails_changes_nothing(self, engine: FaultyEngine, database: Database) -> None:
        """All statements of a migration happen, or none."""
        self.migrate_to(engine, MIGRATIONS)
        with pytest.raises(type(database.mistake), match="syntax"):
            self.migrate_to(engine, (*self.NEXT[:-1], (*self.NEXT[-1], "NONSENSE")))
        assert database.rows("SELECT version FROM schema_version") == [(len(MIGRATIONS),)]
        with pytest.raises(Exception, match="colour"):
            database.rows("SELECT colour FROM entries")

    def test_a_ledger_of_the_first_version_keeps_its_sums(self, engine: FaultyEngine, database: Database) -> None:
        """Of what was asked for only the answer's model is known; of the keys, what the rows tell of each client."""
        self.migrate_to(engine, MIGRATIONS[:1])
        counts = "requests, cached_requests, input_tokens, output_tokens, cost, saved, unpriced_requests"
        connection = engine.connect()
        connection.begin()
        for client, key in (("alice", "alice"), ("10.0.0.1", None)):
            connection.execute(
                "INSERT INTO entries (at, deadline, request_id, attempt, task, client, key_name, model, status,"
                " total_cost) VALUES (?, 0, 'r', 1, 'text', ?, ?, 'm', 'ok', 100)",
                (int(NOON) * 1_000_000, client, key),
            )
            connection.execute(
                f"INSERT INTO usage_hours (start, task, client, model, {counts}) VALUES (?, 'text', ?, 'm', 1, 0, 1, 1,"
                " 100, 0, 0)",
                (int(NOON) // 3600 * 3600, client),
            )
        connection.commit()
        connection.close()
        ledger = Ledger(engine)
        for group_by, expected in (
            ("requested_model", {"m": 200}),
            ("tag", {"": 200}),
            ("key", {"": 100, "alice": 100}),
            ("client", {"10.0.0.1": 100, "alice": 100}),
        ):
            assert cost(ledger.usage(0, NOON + 86_400, group_by)) == expected, group_by  # type: ignore[arg-type]
        assert {row.requested_model for row in ledger.export(0, NOON + 86_400)} == {"m"}
        ledger.close()

    @staticmethod
    def migrate_to(engine: Engine, migrations: tuple[tuple[str, ...], ...]) -> None:
        connection = engine.connect()
        try:
            migrate(engine, connection, migrations)
        finally:
            connection.close()


def cost(groups: list[UsageGroup]) -> dict[str, int]:
    return {group.key: group.cost for group in groups}
