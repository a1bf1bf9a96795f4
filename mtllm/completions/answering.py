"""Getting an answer that is not stored: one model of the chain after the other, each with attempts of its own."""

from __future__ import annotations

from collections.abc import Callable

from mtllm.completions.attempts import Ask, Attempts
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.chain import ModelChain
from mtllm.completions.request import AnswerKeys, CompletionRequest
from mtllm.domain.completion import Completion, Route


class Answering:
    """Asks the models of a request's route, and stores the answer under the model that was asked."""

    def __init__(self, chain: ModelChain, keys: AnswerKeys, cache: CachePolicy, attempts: Attempts) -> None:
        self._chain = chain
        self._keys = keys
        self._cache = cache
        self._attempts = attempts

    def run(
        self,
        request: CompletionRequest,
        ask: Ask,
        *,
        retry_until: float,
        wait: Callable[[float], bool | None] | None = None,
        may_repeat: Callable[[], bool] | None = None,
    ) -> Completion:
        """Return the answer of the first model that gives one; what each attempt cost is on the request's receipt.

        `retry_until` (monotonic seconds), `wait` and `may_repeat` are the Retrier's. Raises the ApiError of the last
        attempt.
        """

        def ask_one(route: Route) -> Completion:
            if route is not request.route:
                request.route, request.key = route, self._keys.of(request.job, request.caller, route)
                if (stored := self._cache.look_up_again(request)) is not None:
                    return stored
            by = self._chain.deadline_of(route, retry_until)
            answer = self._attempts.run(request, ask, retry_until=by, wait=wait, may_repeat=may_repeat)
            self._chain.note_answer(route.model, answer.model)
            return self._cache.store(request, answer)

        return self._chain.follow(
            request.job, request.route, ask_one, deadline=retry_until, may_go_on=may_repeat or _always
        )


def _always() -> bool:
    return True
