"""The cost recorder: it writes one call to Gemini to the ledger, first its reservation, then its settlement.

Tokens become money here and nowhere else. An attempt is on disk with an upper bound of its cost before Gemini is
called, and settled on disk before its answer goes anywhere.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from mtllm.billing.drift import DriftMeter
from mtllm.billing.prices import Price, PriceTable, SpendMeter
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, Instruction, Route, StoredAnswer
from mtllm.domain.errors import (
    Abandoned,
    ApiError,
    Draining,
    InternalError,
    LedgerUnavailable,
    NotConfigured,
    UpstreamFailure,
    may_be_billed,
)
from mtllm.domain.money import NO_COST, NOTHING, Amount, Charge, Receipt, TokenUsage
from mtllm.ledger.ledger import Ledger
from mtllm.ledger.records import OK, Attempt, Hit, Settlement
from mtllm.tasks import Job

SETTLING_SECONDS = 5.0
"""How long after its call's deadline a row may still be settled before it counts as unsettled."""

MOST_LATE = 1000
"""Settlements kept while the disk refuses them; with more, the oldest stay unsettled."""

logger = logging.getLogger(__name__)


class OpenAttempt:
    """One attempt at Gemini on the books, as a context manager.

    `settle` ends it with what came; an exception that leaves the block before that ends it as failed.
    """

    receipt: Receipt = NOTHING
    """What the attempt has cost, once it has ended."""

    def __init__(
        self,
        recorder: CostRecorder,
        row: int,
        attempt: Attempt,
        instruction: Instruction,
        route: Route,
        *,
        budgeted: bool,
    ) -> None:
        self._recorder = recorder
        self._row = row
        self._attempt = attempt
        self._instruction = instruction
        self._route = route
        self._budgeted = budgeted
        self._ended = False
        self._started = recorder.monotonic()
        self.partial: Callable[[], Answer] | None = None
        """Set for a stream: returns the part of the answer that has come. It is charged when the stream breaks off."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, failure: BaseException | None, _traceback: object) -> None:
        if failure is not None and not self._ended:
            self._fail(failure)

    def settle(self, answer: Answer, failure: ApiError | None = None) -> Charge:
        """Write what the attempt came to and return what it costs, by the prices of the day on which it began.

        `failure` is why the answer cannot be used, if so. Returns when it is on disk. Raises LedgerUnavailable when it
        cannot be written.
        """
        return self._settle_as(OK if failure is None else failure.code, answer, maybe_more=False)

    def _settle_as(self, status: str, answer: Answer, *, maybe_more: bool) -> Charge:
        """Settle with `answer`. `maybe_more`: Gemini may bill more than came, so the rest stays reserved."""
        charge = self._recorder.charge(self._instruction, answer, at=self._attempt.timestamp)
        cost = charge.amount.cost.total
        if self._budgeted and cost > self._attempt.reserved:
            self._recorder.warn(
                f"Gemini billed {cost} nano-dollars for a call that could cost {self._attempt.reserved} at most."
            )
        keep = maybe_more or (charge.unpriced and self._budgeted)
        fallback = self._route.fallback_of(answer.model) or ""
        self._end(Settlement(status, answer.model, charge, keep_reservation=keep, fallback=fallback))
        return charge

    def _fail(self, failure: BaseException) -> None:
        """Write that the attempt failed, with what came of a stream; what may be billed keeps its reservation."""
        status = failure.code if isinstance(failure, UpstreamFailure | Abandoned | Draining) else InternalError.code
        partial = None if self.partial is None else self.partial()
        if partial is not None and (partial.text or partial.usage):
            self._settle_as(status, partial, maybe_more=may_be_billed(failure))
        else:
            self._end(Settlement(status, self._attempt.model, keep_reservation=may_be_billed(failure)))

    def _end(self, settlement: Settlement) -> None:
        self._ended = True  # a settlement that the disk refuses is written later, never another in its place
        self._recorder.settle(self._row, settlement)
        self.receipt = Receipt(settlement.amount, 1, self._recorder.monotonic() - self._started)


class CostRecorder:
    """Opens attempts, prices answers, books hits. `warn` is told, in a sentence, what its operator should know."""

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
        """Return the price of `model` on the UTC day of `at`; None when the table has none."""
        return self._prices.price_of(model, datetime.fromtimestamp(at, UTC).date())

    def next_price_of(self, model: str, at: float) -> Price | None:
        """Return the price of `model` that begins after the UTC day of `at`; None where no change is dated."""
        return self._prices.next_price_of(model, datetime.fromtimestamp(at, UTC).date())

    def attempt(self, job: Job, caller: Caller, route: Route, *, number: int, seconds: float) -> OpenAttempt:
        """Put attempt `number` on disk with an upper bound of its cost, before Gemini is called.

        `seconds` is how long the call may take. Raises BudgetExceeded, LedgerUnavailable, or NotConfigured when a
        budget is set for a model without a price.
        """
        now = self._clock()
        model, instruction = route.model, job.told(route.terms)
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
            reserved=price.bound(job.input_bound, instruction.max_output_tokens) if price else 0,
            key=caller.key,
            number=number,
            requested_model=route.asked,
            fallback=route.reason or "",
            tag=caller.tag,
        )
        row = self._ledger.open(attempt, caller.budgets)
        return OpenAttempt(self, row, attempt, instruction, route, budgeted=bool(caller.budgets))

    def settle(self, row: int, settlement: Settlement) -> None:
        """Put the end of an attempt on disk. Raises LedgerUnavailable when it cannot be; `settle_late` tries again."""
        try:
            self._ledger.settle(row, settlement)
        except LedgerUnavailable:
            self._late.append((row, settlement))
            raise
        self.spend.add(settlement.amount.cost.total)

    def settle_late(self) -> None:
        """Write the settlements that the disk refused. Raises LedgerUnavailable when it still does."""
        for _ in range(len(self._late)):
            self.settle(*self._late.popleft())

    def charge(self, instruction: Instruction, answer: Answer, *, at: float) -> Charge:
        """Return what `answer` to a call made `at` costs: by Gemini's counts where it reported them, else estimated.

        An estimate never exceeds the tokens that the call was allowed: that is all that Gemini can have generated.
        """
        usage = answer.usage
        if usage is None:
            generated = self._counter.estimate_tokens(answer.text)
            usage = TokenUsage(
                self._counter.estimate_tokens(instruction.text), min(generated, instruction.max_output_tokens)
            )
        else:
            self.drift.observe(instruction.text, answer.text, usage.input, usage.output)
        price = self.price_of(answer.model, at)
        cost = price.cost(usage.input, usage.output, usage.cached_input) if price else NO_COST
        return Charge(Amount(usage, cost), price, estimated=answer.usage is None)

    def estimate_input(self, instruction: Instruction) -> int:
        """Return tiktoken's estimate of the tokens that an instruction is."""
        return self._counter.estimate_tokens(instruction.text)

    def book_hit(self, job: Job, caller: Caller, answer: StoredAnswer, route: Route, *, shared: bool) -> None:
        """Book an answer that cost nothing (`shared`: with a request in flight); written within a second."""
        self._ledger.record_hit(
            Hit(
                request_id=caller.request_id,
                timestamp=self._clock(),
                task=job.task.name,
                client=caller.client,
                model=answer.model,
                input_tokens=answer.usage.input,
                output_tokens=answer.usage.output,
                saved=answer.cost,
                shared=shared,
                key=caller.key,
                requested_model=route.asked,
                fallback=route.fallback_of(answer.model) or "",
                tag=caller.tag,
            )
        )
