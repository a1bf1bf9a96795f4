"""One attempt on the books: however its block is left, the ledger knows how it ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mtllm.billing.drift import DriftMeter
from mtllm.billing.prices import PriceTable, SpendMeter
from mtllm.billing.recorder import CostRecorder, OpenAttempt
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, Route
from mtllm.domain.errors import Abandoned, ApiError, ContentBlocked, UpstreamError, UpstreamTimeout
from mtllm.domain.money import Amount, Cost, TokenUsage
from mtllm.ledger.ledger import Ledger, open_ledger
from mtllm.ledger.records import ExportRow
from mtllm.tasks import TASK_BY_NAME, parse
from tests.support.fakes import FakeClock

USAGE = TokenUsage(10, 20)
COST = Cost(1_000, 8_000)
ANSWER = Answer("fine", "model", USAGE)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    opened = open_ledger(":memory:", clock=FakeClock())
    yield opened
    opened.close()


@pytest.fixture
def attempt(ledger: Ledger) -> Iterator[OpenAttempt]:
    """An attempt that has just been opened, at 0.1 and 0.4 dollars per million tokens."""
    clock, counter = FakeClock(), TokenCounter()
    drift = DriftMeter(lambda texts: [0] * len(texts))
    prices = PriceTable.fixed(0.1, 0.4)
    recorder = CostRecorder(ledger, prices, counter, SpendMeter(), drift, clock=clock, monotonic=clock)
    job = parse(TASK_BY_NAME["text"], b'{"prompt": "x"}', max_chars=10)
    yield recorder.attempt(job, Caller("r-1", "10.0.0.1"), Route("model", "model"), number=1, seconds=30)
    drift.close()


def row_of(ledger: Ledger) -> ExportRow:
    [row] = ledger.export(0, 4e9)
    return row


def test_settling_charges_the_answer(ledger: Ledger, attempt: OpenAttempt) -> None:
    """Charge, receipt and row say the same; leaving the block then adds nothing."""
    with attempt:
        charge = attempt.settle(ANSWER)
    row = row_of(ledger)
    assert charge.amount == attempt.receipt.amount == Amount(USAGE, COST)
    assert (row.status, row.total_cost, row.reserved, attempt.receipt.attempts) == ("ok", COST.total, 0, 1)


def test_an_answer_that_cannot_be_used_is_charged_too(ledger: Ledger, attempt: OpenAttempt) -> None:
    """Its row has the code of the reason; what is raised afterwards changes it no more."""
    attempt.settle(ANSWER, ContentBlocked())
    with pytest.raises(ContentBlocked), attempt:
        raise ContentBlocked
    assert (row_of(ledger).status, row_of(ledger).total_cost) == ("content_blocked", COST.total)


@pytest.mark.parametrize(
    ("failure", "status", "keeps_reservation"),
    [
        (UpstreamError(), "upstream_error", False),
        (UpstreamTimeout(maybe_billed=True), "upstream_timeout", True),
        (Abandoned(), "abandoned", False),
        (Abandoned(maybe_billed=True), "abandoned", True),
        (RuntimeError("a defect"), "internal_error", True),
        (KeyboardInterrupt(), "internal_error", True),
    ],
)
def test_leaving_by_an_exception_books_the_failure(
    ledger: Ledger, attempt: OpenAttempt, failure: BaseException, status: str, keeps_reservation: bool
) -> None:
    """It costs nothing that is known; what Gemini may bill keeps its reservation."""
    with pytest.raises(type(failure)), attempt:
        raise failure
    row = row_of(ledger)
    assert (row.status, row.total_cost, row.reserved > 0) == (status, 0, keeps_reservation)
    assert (attempt.receipt.attempts, attempt.receipt.amount) == (1, Amount())


@pytest.mark.parametrize("failure", [UpstreamError(maybe_billed=True), Abandoned(maybe_billed=True)])
def test_what_came_of_a_broken_stream_is_charged(ledger: Ledger, attempt: OpenAttempt, failure: ApiError) -> None:
    """By the usage that Gemini had reported until then."""
    attempt.partial = lambda: ANSWER
    with pytest.raises(type(failure)), attempt:
        raise failure
    assert (row_of(ledger).status, row_of(ledger).total_cost) == (failure.code, COST.total)
    assert attempt.receipt.amount.cost == COST


@pytest.mark.parametrize(
    ("failure", "keeps"),
    [
        (UpstreamError(maybe_billed=True), True),
        (UpstreamTimeout(maybe_billed=True), True),
        (Abandoned(maybe_billed=True), True),
        (UpstreamError(), False),
    ],
)
def test_a_broken_stream_keeps_the_rest_of_its_reservation(
    ledger: Ledger, attempt: OpenAttempt, failure: ApiError, keeps: bool
) -> None:
    """Its cost is known, what Gemini may bill beyond it is not: cost and reservation together are the bound."""
    bound = row_of(ledger).reserved
    attempt.partial = lambda: ANSWER
    with pytest.raises(type(failure)), attempt:
        raise failure
    row = row_of(ledger)
    assert row.total_cost + row.reserved == (bound if keeps else COST.total)
    assert bound > COST.total
