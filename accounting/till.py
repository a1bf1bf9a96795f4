"""The till: one attempt at Gemini on the books, from its reservation to its settlement.

Tokens become money here and nowhere else. An attempt is on disk with an upper bound of its cost before Gemini is
called, and settled on disk before its answer goes anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from accounting.prices import Cost, Price, PriceTable, SpendMeter
from accounting.tokens import DriftMeter, TokenCounter
from errors import NotConfigured, UpstreamFailure
from ledger import Attempt, Budget, Hit, Ledger, Settlement
from lru_cache import StoredAnswer
from tasks import Answer, Instruction, Job, TokenUsage

SETTLING_SECONDS = 5.0
"""How long after its call's deadline a row may still be settled before it counts as unsettled."""

ABANDONED = "abandoned"
"""Status of an attempt that was given up while Gemini was still at it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose account a request runs. `client` is the name in ledger and logs; `key` the API key's name, if any."""

    request_id: str
    client: str
    key: str | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request has cost so far, over all its attempts: tokens, nano-dollars, attempts, seconds at Gemini."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_cost: int = 0
    output_cost: int = 0
    attempts: int = 0
    upstream_seconds: float = 0.0

    @property
    def total_cost(self) -> int:
        """Nano-dollars."""
        return self.input_cost + self.output_cost

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.input_cost + other.input_cost,
            self.output_cost + other.output_cost,
            self.attempts + other.attempts,
            self.upstream_seconds + other.upstream_seconds,
        )


NOTHING = Receipt()
"""The receipt of a request that has not come as far as an attempt."""


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


class Entry:
    """One attempt that is open in the ledger. Exactly one of `settle` and `fail` ends it."""

    def __init__(self, till: Till, row: int, model: str, budgeted: bool) -> None:
        self._till = till
        self._row = row
        self._model = model
        self._budgeted = budgeted
        self._started = till.monotonic()

    def settle(self, answer: Answer, charge: Charge, status: str) -> Receipt:
        """Write what the attempt came to; returns when it is on disk. Raises LedgerUnavailable when it cannot be."""
        usage, cost, price = charge.usage, charge.cost, charge.price
        self._till.ledger.settle(
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
        self._till.spend.add(cost.total)
        return Receipt(usage.input, usage.output, cost.input, cost.output, 1, self._elapsed())

    def fail(self, status: str, *, maybe_billed: bool) -> Receipt:
        """Write that the attempt brought nothing; a call that Gemini may bill keeps its reservation in the budget."""
        self._till.ledger.settle(self._row, Settlement(status=status, model=self._model, keep_reservation=maybe_billed))
        return Receipt(attempts=1, upstream_seconds=self._elapsed())

    def fail_with(self, failure: BaseException) -> Receipt:
        """`fail`, with status and doubt as `failure` tells them."""
        if not isinstance(failure, UpstreamFailure):
            return self.fail("internal_error", maybe_billed=True)
        return self.fail(failure.code, maybe_billed=failure.maybe_billed)

    def _elapsed(self) -> float:
        return self._till.monotonic() - self._started


class Till:
    """Opens entries, prices answers, books hits."""

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
    ) -> None:
        self.ledger = ledger
        self.spend = spend
        self.drift = drift
        self.monotonic = monotonic
        self._prices = prices
        self._counter = counter
        self._clock = clock

    def price_of(self, model: str) -> Price | None:
        """Today's (UTC) price of `model`; None when the table has none."""
        return self._prices.price_of(model, datetime.fromtimestamp(self._clock(), UTC).date())

    def open(self, job: Job, caller: Caller, model: str, *, number: int, seconds: float) -> Entry:
        """Put attempt `number` on disk with an upper bound of its cost, before Gemini is called.

        `seconds` is how long the call may take. Raises BudgetExceeded, LedgerUnavailable, or NotConfigured when a
        budget is set for a model without a price.
        """
        price = self.price_of(model)
        if price is None and caller.budgets:
            raise NotConfigured(f"A budget is set but {model} has no price: add it to the price table.")
        now = self._clock()
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
        return Entry(self, self.ledger.open(attempt, caller.budgets), model, bool(caller.budgets))

    def charge(self, instruction: Instruction, answer: Answer) -> Charge:
        """What `answer` costs: by Gemini's counts when it reported them, else by tiktoken's estimate."""
        usage = answer.usage
        if usage is None:
            usage = TokenUsage(self._counter.count_tokens(instruction.text), self._counter.count_tokens(answer.text))
        else:
            self.drift.observe(instruction.text, answer.text, usage.input, usage.output)
        price = self.price_of(answer.model)
        cost = price.cost(usage.input, usage.output, usage.cached_input) if price else Cost(0, 0)
        return Charge(usage, cost, price, estimated=answer.usage is None)

    def book_hit(self, job: Job, caller: Caller, answer: StoredAnswer) -> None:
        """Book an answer that cost nothing; written within a second, never waits."""
        self.ledger.record_hit(
            Hit(
                request_id=caller.request_id,
                timestamp=self._clock(),
                task=job.task.name,
                client=caller.client,
                model=answer.model,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                saved=answer.cost,
                key=caller.key,
            )
        )
