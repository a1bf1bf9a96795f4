"""The soak in its short form, and that it would notice."""

from __future__ import annotations

import pytest

from benchmarks import chaos
from benchmarks.chaos import LOST, Outcome, Report, Vitals
from mtllm.ledger.ledger import ExportRow


@pytest.mark.long
def test_the_service_survives_half_a_minute_of_chaos() -> None:
    """Every invariant holds, over two lives and with everything in them: answers, faults, streams, lost connections."""
    report = chaos.soak(30, seed=1)
    assert report.violations == []
    assert len(report.lives) == 2
    assert {outcome.status for outcome in report.outcomes} >= {200, 422, 502, 503, 504}
    assert report.statuses["ok"] > 50
    assert 0 < report.told <= report.booked


def outcome(status: int = 200, *, seconds: float = 0.1, told: int | None = 0, **rest: object) -> Outcome:
    facts = {"code": None, "streamed": False, "disturbed": False} | rest
    return Outcome("chaos-1", "question 1", status, seconds=seconds, told=told, **facts)  # type: ignore[arg-type]


def row(total_cost: int, request_id: str = "chaos-1") -> ExportRow:
    blank = dict.fromkeys(ExportRow._fields, 0) | {"key": None}
    return ExportRow(**blank | {"request_id": request_id, "total_cost": total_cost, "status": "ok"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "is_right"),
    [
        (outcome(), True),
        (outcome(503, code="overloaded"), True),
        (outcome(LOST, disturbed=True), True),
        (outcome(500, code="internal_error"), False),
        (outcome(200, code="internal_error", streamed=True), False),
        (outcome(LOST), False),
        (outcome(seconds=chaos.DEADLINE + 0.5), False),
        (outcome(seconds=chaos.LONGEST_STREAM + 0.2, streamed=True), True),
        (outcome(seconds=chaos.LONGEST_STREAM + 0.5, streamed=True), False),
    ],
)
def test_answers_that_break_a_promise_are_noticed(seen: Outcome, is_right: bool) -> None:
    """Defects, late answers, lost ones."""
    report = Report([seen])
    chaos._check_answers(report, slack=0.3)
    assert (report.violations == []) is is_right


@pytest.mark.parametrize(
    ("told", "booked", "calls", "is_right"),
    [
        (7, [7], ["question 1"], True),
        (7, [3, 4], ["question 1"] * 2, True),
        (None, [7], ["question 1"], True),
        (7, [], [], False),
        (7, [6], ["question 1"], False),
        (7, [7], ["question 1"] * 2, False),
        (7, [7], ["question 1", "question 2"], False),
    ],
)
def test_money_that_does_not_add_up_is_noticed(
    told: int | None, booked: list[int], calls: list[str], is_right: bool
) -> None:
    """An answer that is not in the ledger, a call that is not, an amount that differs."""
    report = Report([outcome(told=told)])
    chaos._check_money(report, [row(cost) for cost in booked], calls)
    assert (report.violations == []) is is_right


@pytest.mark.parametrize(
    ("after", "is_right"),
    [
        (Vitals(104.9, 20, 10), True),
        (Vitals(105.1, 20, 10), False),
        (Vitals(94.9, 20, 10), False),
        (Vitals(100, 26, 10), True),
        (Vitals(100, 27, 10), False),
        (Vitals(100, 20, 17), False),
    ],
)
def test_growth_is_noticed(after: Vitals, is_right: bool) -> None:
    """Of memory (5 MB either way), threads and descriptors, beyond those that are kept for later."""
    assert (list(chaos._grown(Vitals(100, 20, 10), after)) == []) is is_right
