"""The ledger against a list: whatever happens in whatever order, its sums are those of the rows it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mtllm.domain.money import Amount, Charge, Cost, TokenUsage

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mtllm.domain.errors import BudgetExceeded
from mtllm.ledger.ledger import Attempt, Budget, BudgetState, GroupBy, Hit, Ledger, Settlement, Totals, key_scope
from tests.support.fakes import FakeClock
from tests.support.ledgers import NOON, PRICE, Database

HOUR, DAY = 3_600.0, 86_400.0
BACKWARDS_SECONDS = 12 * HOUR
"""How far the clock may step back; the minutes that pruning keeps allow for a day."""

LABEL_SECONDS = {"day": 86_400, "hour": 3_600, "minute": 60}

amounts = st.integers(0, 2_000)
words = st.sampled_from(["a", "b"])
statuses = st.sampled_from(["ok", "ok", "content_blocked", "upstream_error", "abandoned"])


@dataclass(slots=True)
class Row:
    """One row as the model knows it; `counts` are what it adds to the sums."""

    attempt: Attempt
    status: str = "open"
    model: str = ""
    reserved: int = 0
    counts: tuple[int, ...] = (0,) * 7
    pruned: bool = False
    row_id: int = 0

    @property
    def at(self) -> float:
        return self.attempt.timestamp


class LedgerMachine(RuleBasedStateMachine):
    """Random operations on a ledger and on a list of rows."""

    database_for_each: Callable[[], Database]

    @initialize()
    def start(self) -> None:
        self.database = self.database_for_each()
        self.clock = FakeClock(NOON + 0.25)
        self.latest = self.clock.now
        self.rows: list[Row] = []
        self.begin()

    def begin(self) -> None:
        self.ledger = Ledger(self.database.engine(), clock=self.clock)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()

    @rule(task=words, client=words, key=st.none() | words, bound=amounts, limit=st.none() | st.integers(0, 6_000))
    def open(self, task: str, client: str, key: str | None, bound: int, limit: int | None) -> None:
        now = self.clock.now
        attempt = Attempt("r", task, client, "asked", now, now + 30, bound, key)
        scope = "service" if key is None else key_scope(key)
        budgets = () if limit is None else (Budget(scope, limit),)
        fits = limit is None or sum(self.expected_budget(scope, now)) + bound <= limit
        try:
            row_id = self.ledger.open(attempt, budgets)
        except BudgetExceeded:
            assert not fits
        else:
            assert fits
            self.rows.append(Row(attempt, model="asked", reserved=bound, row_id=row_id))

    @precondition(lambda self: any(row.row_id for row in self.rows))
    @rule(data=st.data(), status=statuses, model=words, cost=amounts, unpriced=st.booleans(), keep=st.booleans())
    def settle(self, data: st.DataObject, status: str, model: str, cost: int, unpriced: bool, keep: bool) -> None:
        row = data.draw(st.sampled_from([row for row in self.rows if row.row_id]))
        end = Settlement(
            status, model, Charge(Amount(TokenUsage(cost, 2), Cost(cost)), None if unpriced else PRICE), keep
        )
        self.ledger.settle(row.row_id, end)
        if row.status in ("open", "unsettled") and not row.pruned:
            row.status, row.model = status, model
            row.reserved = max(0, row.reserved - cost) * keep
            row.counts = (int(status == "ok"), 0, cost, 2, cost, 0, int(unpriced))

    @rule(task=words, client=words, model=words, saved=amounts)
    def hit(self, task: str, client: str, model: str, saved: int) -> None:
        hit = Hit("h", self.clock.now, task, client, model, 3, 4, saved)
        self.ledger.record_hit(hit)
        attempt = Attempt("h", task, client, model, hit.timestamp, 0, 0)
        self.rows.append(Row(attempt, "hit", model, counts=(1, 1, 0, 0, 0, saved, 0)))

    @rule(seconds=st.one_of(st.floats(0, 90), st.sampled_from([HOUR, DAY, 40 * DAY]), st.floats(-BACKWARDS_SECONDS, 0)))
    def step_the_clock(self, seconds: float) -> None:
        now = max(self.clock.now + seconds, self.latest - BACKWARDS_SECONDS)
        self.clock.now = round(now, 6)
        self.latest = max(self.latest, self.clock.now)
        self.ledger.mark_unsettled(self.clock.now)
        for row in self.rows:
            if row.status == "open" and row.attempt.deadline < self.clock.now:
                row.status = "unsettled"

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.begin()

    @rule(age=st.sampled_from([-1.0, 60.0, HOUR, DAY]), batch=st.integers(1, 3))
    def prune(self, age: float, batch: int) -> None:
        self.ledger.flush()
        before = self.clock.now - age
        gone = [row for row in self.rows if row.at < before and row.status != "open" and not row.pruned]
        assert self.ledger.count_before(before) == len(gone)
        assert self.ledger.prune(before, batch) == len(gone)
        for row in gone:
            row.pruned = True

    @invariant()
    def totals_and_windows_agree(self) -> None:
        self.ledger.flush()
        assert self.ledger.totals() == Totals(*self.summed(self.rows))
        now = self.clock.now
        end = now // 60 * 60 + 60
        for hours in (1, 24, 720):
            start = (now - hours * HOUR) // 60 * 60
            within = [row for row in self.rows if start <= row.at < end]
            window = self.ledger.window(hours, now)
            assert tuple(getattr(window, name) for name in Totals.__slots__) == self.summed(within)

    @rule(
        group_by=st.sampled_from(["day", "hour", "minute", "task", "client", "model"]),
        back=st.floats(0, 3 * HOUR),
        length=st.floats(0, 2 * DAY),
    )
    def usage_agrees(self, group_by: GroupBy, back: float, length: float) -> None:
        from_, to = round(self.clock.now - back, 6), round(self.clock.now - back + length, 6)
        if any(row.pruned for row in self.rows):  # the ends are read from rows, so only whole hours are exact now
            from_, to = from_ // HOUR * HOUR, to // HOUR * HOUR
            if group_by == "minute":
                return
        expected: dict[str | int, tuple[int, ...]] = {}
        for row in self.rows:
            if from_ <= row.at < to and any(row.counts):
                label = self.label(row, group_by)
                expected[label] = self.added(expected.get(label, (0,) * 7), row.counts)
        groups = self.ledger.usage(from_, to, group_by)
        found = [tuple(getattr(group, name) for name in Totals.__slots__) for group in groups]
        assert found == [expected[label] for label in sorted(expected)]

    @invariant()
    def export_agrees(self) -> None:
        self.ledger.flush()
        rows = sorted((row for row in self.rows if not row.pruned), key=lambda row: row.at)
        found = [(row.timestamp, row.status, row.model, row.reserved, row.saved) for row in self.ledger.export(0, 4e9)]
        expected = [(row.at, row.status, row.model, row.reserved, row.counts[5]) for row in rows]
        assert sorted(found) == sorted(expected)
        assert [row[0] for row in found] == [row[0] for row in expected]

    @invariant()
    def budgets_agree(self) -> None:
        for scope in ("service", "key:a", "key:b"):
            assert self.ledger.budget_state(scope, self.clock.now) == self.expected_budget(scope, self.clock.now)

    def expected_budget(self, scope: str, at: float) -> BudgetState:
        rows = [row for row in self.rows if scope in row.attempt.scopes and row.at // DAY == at // DAY]
        return BudgetState(sum(row.counts[4] for row in rows), sum(row.reserved for row in rows))

    @staticmethod
    def label(row: Row, group_by: GroupBy) -> str | int:
        if group_by in LABEL_SECONDS:
            return int(row.at // LABEL_SECONDS[group_by])
        return row.model if group_by == "model" else str(getattr(row.attempt, group_by))

    @staticmethod
    def added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(sum, zip(one, other, strict=True)))

    def summed(self, rows: list[Row]) -> tuple[int, ...]:
        return tuple(sum(row.counts[index] for row in rows) for index in range(7))


@pytest.mark.parametrize(
    ("new_database", "examples"), [("sqlite", 20), ("postgres", 4)], indirect=["new_database"], ids=str
)
def test_the_ledger_is_a_list(new_database: Callable[[], Database], examples: int) -> None:
    """On either database, whatever happens in whatever order, totals, windows, usage, budgets and export agree."""

    class Machine(LedgerMachine):
        database_for_each = staticmethod(new_database)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
