"""Dry runs: what a request would cost, before it is asked. Nothing is bought, stored, reserved or counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mtllm.billing.recorder import CostRecorder
from mtllm.completions.chain import ModelChain
from mtllm.completions.ports import AnswerCache, TokenCounting
from mtllm.completions.request import AnswerKeys
from mtllm.domain.caller import Budget, Caller
from mtllm.domain.completion import Instruction, Route
from mtllm.domain.errors import UpstreamFailure
from mtllm.domain.money import NO_COST, Cost
from mtllm.ledger.ledger import BudgetState, Ledger
from mtllm.tasks import Job

COUNT_SECONDS = 5.0
"""How long Gemini's count may take; past that, tiktoken estimates."""


@dataclass(frozen=True, slots=True)
class BudgetRoom:
    """The budget with the least room for a request, in nano-dollars, and whether the request fits."""

    budget: Budget
    state: BudgetState
    fits: bool


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a request would cost at most. `counted`: Gemini has counted the input; else tiktoken estimates.

    `cost` is nothing where the answer is stored, and unknown (`unpriced`) where the model has no price.
    """

    route: Route
    cached: bool
    input_tokens: int
    counted: bool
    max_output_tokens: int
    cost: Cost
    unpriced: bool
    room: BudgetRoom | None


class DryRuns:
    """Estimates requests as the chain would answer them now."""

    def __init__(
        self,
        chain: ModelChain,
        gemini: TokenCounting | None,
        keys: AnswerKeys,
        cache: AnswerCache,
        recorder: CostRecorder,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._gemini = gemini
        self._keys = keys
        self._cache = cache
        self._recorder = recorder
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic

    def estimate(self, job: Job, caller: Caller) -> CostEstimate:
        """Return what `job` would cost `caller` at most, by today's price of the model that would answer.

        Raises InvalidRequest for a model that the caller may not choose, LedgerUnavailable where a budget cannot be
        read.
        """
        route = self._chain.route(job, caller.models)
        instruction = job.told(route.terms)
        stored = self._cache.look_up_stale(self._keys.of(job, caller, route))
        cached = stored is not None and stored.ttl > 0
        tokens, counted = self._count(route.model, instruction)
        price = self._recorder.price_of(route.model, self._clock())
        bound = 0 if cached or price is None else price.bound(job.input_bound, instruction.max_output_tokens)
        return CostEstimate(
            route=route,
            cached=cached,
            input_tokens=tokens,
            counted=counted,
            max_output_tokens=instruction.max_output_tokens,
            cost=NO_COST if cached or price is None else price.cost(tokens, instruction.max_output_tokens),
            unpriced=price is None,
            room=self._least_room(caller, bound),
        )

    def _count(self, model: str, instruction: Instruction) -> tuple[int, bool]:
        """Return the tokens that go in, and whether Gemini has counted them."""
        if self._gemini is not None:
            try:
                deadline = self._monotonic() + COUNT_SECONDS
                return self._gemini.count_tokens(model, instruction, deadline=deadline), True
            except UpstreamFailure as failure:
                self._chain.note_refusal(model, failure)
        return self._recorder.estimate_input(instruction), False

    def _least_room(self, caller: Caller, bound: int) -> BudgetRoom | None:
        """Return the budget that is nearest to its limit; what fits is decided as at the reservation of a call."""
        rooms = [self._room(budget, bound) for budget in caller.budgets]
        return min(rooms, key=lambda room: room.budget.limit - sum(room.state), default=None)

    def _room(self, budget: Budget, bound: int) -> BudgetRoom:
        state = self._ledger.budget_state(budget.scope, self._clock(), budget.period)
        return BudgetRoom(budget, state, sum(state) + bound <= budget.limit)
