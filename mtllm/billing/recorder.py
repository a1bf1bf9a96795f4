"""The recorder: one attempt at Gemini on the books, from its reservation to its settlement.

Tokens become money here and nowhere else. An attempt is on disk with an upper bound of its cost before Gemini is
called, and settled on disk before its answer goes anywhere.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from mtllm.billing.prices import Price, PriceTable, SpendMeter
from mtllm.billing.tokens import DriftMeter, TokenCounter
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, Instruction, StoredAnswer
from mtllm.domain.errors import LedgerUnavailable, NotConfigured, UpstreamFailure
from mtllm.domain.money import Cost, Receipt, TokenUsage
from mtllm.ledger.ledger import ABANDONED as ABANDONED
from mtllm.ledger.ledger import Attempt, Hit, Ledger, Settlement
from mtllm.tasks import Job

SETTLING_SECONDS = 5.0
"""How long after its call's deadline a row may still be settled before it counts as unsettled."""

MOST_LATE = 1000
"""Settlements kept while the disk refuses them; with more, the oldest stay unsettled."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Charge:
    """What one answer costs. `estimated`: tokens are tiktoken's; `unpriced`: no price is known, the cost shows 0."""

    usage: TokenUsage
    cost: Cost
    price: Price | None
    estimated: bool

    @property
    def unpriced(self) -> bool:
        """No price is known for the model that answered."""
        return self.price is None


class OpenAttempt:
    """One attempt that is open in the ledger. Exactly one of `settle` and `fail` ends it."""

    def __init__(self, recorder: CostRecorder, row: int, attempt: Attempt, *, budgeted: bool) -> None:
        self._recorder = recorder
        self._row = row
        self._attempt = attempt
        self._budgeted = budgeted
        self._started = recorder.monotonic()

    def charge(self, instruction: Instruction, answer: Answer) -> Charge:
        """What `answer` costs by the prices of the day on which the attempt began."""
        return self._recorder.charge(instruction, answer, at=self._attempt.timestamp)

    def settle(self, answer: Answer, charge: Charge, status: str) -> Receipt:
        """Write what the attempt came to; returns when it is on disk. Raises LedgerUnavailable when it cannot be."""
        usage, cost, price = charge.usage, charge.cost, charge.price
        if self._budgeted and cost.total > self._attempt.reserved:
            self._recorder.warn(
                f"Gemini billed {cost.total} nano-dollars for a call that could cost {self._attempt.reserved} at most."
            )
        self._recorder.settle(
            self._row,
            Settlement(
                status=status,
                model=answer.model,
                input_tokens=usage.input,
                cached_input_tokens=usage.cached_input,
                output_tokens=usage.output,
                input_cost=cost.input,
                output_cost=cost.output,
                total_cost=cost.total,
                estimated=charge.estimated,
                unpriced=charge.unpriced,
                input_price=price.input if price else None,
                cached_input_price=price.cached_input if price else None,
                output_price=price.output if price else None,
                keep_reservation=charge.unpriced and self._budgeted,
            ),
        )
        return Receipt(usage.input, usage.output, cost.input, cost.output, 1, self._elapsed())

    def fail(self, status: str, *, maybe_billed: bool) -> Receipt:
        """Write that the attempt brought nothing; a call that Gemini may bill keeps its reservation in the budget."""
        settlement = Settlement(status=status, model=self._attempt.model, keep_reservation=maybe_billed)
        self._recorder.settle(self._row, settlement)
        return Receipt(attempts=1, upstream_seconds=self._elapsed())

    def fail_with(self, failure: BaseException) -> Receipt:
        """`fail`, with status and doubt as `failure` tells them."""
        if not isinstance(failure, UpstreamFailure):
            return self.fail("internal_error", maybe_billed=True)
        return self.fail(failure.code, maybe_billed=failure.maybe_billed)

    def _elapsed(self) -> float:
        return self._recorder.monotonic() - self._started


class CostRecorder:
    """Opens entries, prices answers, books hits. `warn` is told, in a sentence, what its operator should know."""

    def __init__(
        self,
        ledger: Ledger,
        prices: PriceTable,
        counter: TokenCounter,
        spend: SpendMeter,
        drift: DriftMeter,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        warn: Callable[[str], object] = logger.warning,
    ) -> None:
        self.spend = spend
        self.drift = drift
        self.monotonic = monotonic
        self.warn = warn
        self._ledger = ledger
        self._prices = prices
        self._counter = counter
        self._clock = clock
        self._late: deque[tuple[int, Settlement]] = deque(maxlen=MOST_LATE)

    def price_of(self, model: str, at: float) -> Price | None:
        """The price of `model` on the UTC day of `at`; None when the table has none."""
        return self._prices.price_of(model, datetime.fromtimestamp(at, UTC).date())

    def open(self, job: Job, caller: Caller, model: str, *, number: int, seconds: float) -> OpenAttempt:
        """Put attempt `number` on disk with an upper bound of its cost, before Gemini is called.

        `seconds` is how long the call may take. Raises BudgetExceeded, LedgerUnavailable, or NotConfigured when a
        budget is set for a model without a price.
        """
        now = self._clock()
        price = self.price_of(model, now)
        if price is None and caller.budgets:
            raise NotConfigured(f"A budget is set but {model} has no price: add it to the price table.")
        attempt = Attempt(
            request_id=caller.request_id,
            task=job.task.name,
            client=caller.client,
            model=model,
            timestamp=now,
            deadline=now + max(seconds, 0.0) + SETTLING_SECONDS,
            reserved=price.bound(job.input_bound, job.instruction.max_output_tokens) if price else 0,
            key=caller.key,
            number=number,
        )
        return OpenAttempt(self, self._ledger.open(attempt, caller.budgets), attempt, budgeted=bool(caller.budgets))

    def settle(self, row: int, settlement: Settlement) -> None:
        """Put the end of an attempt on disk. Raises LedgerUnavailable when it cannot be; `settle_late` tries again."""
        try:
            self._ledger.settle(row, settlement)
        except LedgerUnavailable:
            self._late.append((row, settlement))
            raise
        self.spend.add(settlement.total_cost)

    def settle_late(self) -> None:
        """Write the settlements that the disk refused. Raises LedgerUnavailable when it still does."""
        for _ in range(len(self._late)):
            self.settle(*self._late.popleft())

    def charge(self, instruction: Instruction, answer: Answer, *, at: float) -> Charge:
        """What `answer` to a call made `at` costs: by Gemini's counts when it reported them, else by tiktoken's.

        An estimate never exceeds the tokens that the call was allowed: that is all that Gemini can have generated.
        """
        usage = answer.usage
        if usage is None:
            generated = self._counter.count_tokens(answer.text)
            usage = TokenUsage(
                self._counter.count_tokens(instruction.text), min(generated, instruction.max_output_tokens)
            )
        else:
            self.drift.observe(instruction.text, answer.text, usage.input, usage.output)
        price = self.price_of(answer.model, at)
        cost = price.cost(usage.input, usage.output, usage.cached_input) if price else Cost(0, 0)
        return Charge(usage, cost, price, estimated=answer.usage is None)

    def book_hit(self, job: Job, caller: Caller, answer: StoredAnswer, *, shared: bool) -> None:
        """Book an answer that cost nothing (`shared`: with a request in flight); written within a second."""
        self._ledger.record_hit(
            Hit(
                request_id=caller.request_id,
                timestamp=self._clock(),
                task=job.task.name,
                client=caller.client,
                model=answer.model,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                saved=answer.cost,
                shared=shared,
                key=caller.key,
            )
        )
