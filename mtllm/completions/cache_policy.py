"""The cache policy: it decides which stored answers a request may have, and books each use as a hit."""

from __future__ import annotations

from mtllm.billing.recorder import CostRecorder
from mtllm.completions.ports import AnswerCache
from mtllm.completions.request import CompletionRequest
from mtllm.domain.completion import NO_CACHE_CONTROL, CacheHit, Completion, Origin, Route, StoredAnswer
from mtllm.domain.errors import NotCached, UpstreamFailure
from mtllm.domain.money import Amount, Receipt


class CachePolicy:
    """Applies Cache-Control (RFC 9111, section 5.2.1) to the response cache."""

    def __init__(self, cache: AnswerCache, recorder: CostRecorder) -> None:
        self._cache = cache
        self._recorder = recorder

    def look_up(self, request: CompletionRequest) -> Completion | None:
        """Return the stored answer, NotCached where only a stored one is wanted, or None: the model must be asked."""
        asked = request.cache_control
        if not (asked.no_cache or asked.no_store):
            found = self._cache.look_up(request.key, max_age=asked.max_age)
            if found is not None:
                return self._hit(request, found, Origin.HIT)
        return Completion(Origin.NONE, error=NotCached(), route=request.route) if asked.only_if_cached else None

    def look_up_again(self, request: CompletionRequest) -> Completion | None:
        """Return the answer that another flight has stored between this request's look-up and its own flight."""
        if request.cache_control != NO_CACHE_CONTROL:
            return None
        found = self._cache.look_up_stale(request.key)
        if found is None or found.ttl <= 0:
            return None
        self._cache.count_shared_hit()
        return self._hit(request, found, Origin.HIT)

    def store(self, request: CompletionRequest, answer: StoredAnswer) -> Completion:
        """Store an answer that was paid for, unless the request forbids it, and return the completion."""
        stored = not request.cache_control.no_store and self._cache.store(request.key, answer)
        return Completion(Origin.PAID, request.receipt, answer, stored=stored, route=request.route)

    def share(self, request: CompletionRequest, leaders: Completion, waited: float) -> Completion:
        """Return what a follower gets of its leader's completion after `waited` seconds: the answer for free."""
        if leaders.answer is None:
            return Completion(Origin.NONE, error=leaders.error, queue_seconds=waited, route=leaders.route)
        self._cache.count_shared_hit(missed=not request.cache_control.no_cache)
        found = CacheHit(leaders.answer, leaders.age, leaders.ttl)
        route = (leaders.route or request.route)._replace(ignored=request.route.ignored)
        return self._hit(request, found, Origin.SHARED, route)._replace(queue_seconds=waited)

    def use_stale(self, request: CompletionRequest, failed: Completion) -> Completion:
        """Return an expired answer in place of a failure of Gemini's, or `failed` where none may serve.

        What the failed attempts were billed is shown with the answer all the same.
        """
        asked = request.cache_control
        if not isinstance(failed.error, UpstreamFailure) or asked.no_store or asked.no_cache:
            return failed
        found = self._cache.look_up_stale(request.flight_key)
        if found is None or (asked.max_age is not None and found.age > asked.max_age):
            return failed
        stale = self._hit(request, found, Origin.STALE)
        return stale._replace(receipt=failed.receipt + stale.receipt)

    def _hit(
        self, request: CompletionRequest, found: CacheHit, origin: Origin, route: Route | None = None
    ) -> Completion:
        route = route or request.route
        answer = found.answer
        self._recorder.book_hit(request.job, request.caller, answer, route, shared=origin is Origin.SHARED)
        receipt = Receipt(Amount(answer.usage))
        return Completion(origin, receipt, answer, saved=answer.cost, age=found.age, ttl=found.ttl, route=route)
