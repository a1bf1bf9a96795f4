"""One completion: route, stored answer, single flight, admission, attempts. Knows no HTTP.

look up ── stored ─────────────────────────────────────────► booked as a hit
   │
flight ─── follow ──► the leader's completion, shared
   │ lead
slot, after a wait in line ── none came ──► Overloaded
   │ look up again
attempts: reserve ► call ► settle                            in a thread of the pool, which outlives its caller
   │                                                         the next model's, where the first is not served
   │
store, finish the flight                                     an error of Gemini's: a stale answer, if one may serve
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, nullcontext

from mtllm.completions.answering import Answering
from mtllm.completions.attempts import Attempts
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.chain import ModelChain
from mtllm.completions.live_stream import LiveStream
from mtllm.completions.ports import Model
from mtllm.completions.request import ANSWER_GRACE_SECONDS, AnswerKeys, CompletionRequest, run_to_completion
from mtllm.completions.streaming import Streaming
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, CacheControl, Completion, Origin, Route
from mtllm.domain.errors import ApiError, BudgetExceeded, Draining, NotConfigured, Overloaded, UpstreamTimeout
from mtllm.resilience.admission import Admission
from mtllm.resilience.single_flight import SingleFlight
from mtllm.tasks import Job

LEADERS_OWN = BudgetExceeded, NotConfigured, Overloaded
"""Errors of a leader that need not hold for its followers."""
LEAST_SECONDS = 1.0
"""The time of its own with which a follower asks anew when the leader's time was over."""

Waiting = Callable[[], AbstractContextManager[None]]
"""Makes the surroundings of a wait, in which the server's thread may be lent to somebody else."""


class Completions:
    """Answers jobs, from the cache or from the model. Without a model only what is stored is answered."""

    def __init__(
        self,
        chain: ModelChain,
        model: Model | None,
        cache: CachePolicy,
        attempts: Attempts,
        *,
        keys: AnswerKeys | None = None,
        admission: Admission,
        pool: Executor,
        waiting: Waiting = nullcontext,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._keys = keys = keys or AnswerKeys()
        self._model = model
        self._cache = cache
        self._answering = answering = Answering(chain, keys, cache, attempts)
        self._admission = admission
        self._pool = pool
        self._waiting = waiting
        self._monotonic = monotonic
        self._flights: SingleFlight[Completion] = SingleFlight()
        self._streaming = Streaming(cache, answering, admission=admission, pool=pool, monotonic=monotonic)

    def close(self) -> None:
        """Give up the streams that are still under way; plain calls end with the model's connections."""
        self._streaming.close()

    def complete(self, job: Job, caller: Caller, cache_control: CacheControl, *, deadline: float) -> Completion:
        """Return the answer to `job`, or the error it ended with, by `deadline` (monotonic seconds) and a moment."""
        request = self._request(job, caller, cache_control, deadline)
        completion = self._cache.look_up(request)
        if completion is not None:
            return completion
        try:
            with self._waiting():
                completion = self._lead_or_follow(request, self._bind_model())
        except ApiError as error:
            completion = Completion(Origin.NONE, error=error)
        return self._cache.use_stale(request, completion) if completion.error else completion

    def stream(
        self, job: Job, caller: Caller, cache_control: CacheControl, *, deadline: float, gap: float
    ) -> LiveStream:
        """Return the answer to `job` as it comes, a stored one at once.

        `deadline` (monotonic seconds) bounds the whole, `gap` the seconds of each silence.
        """
        request = self._request(job, caller, cache_control, deadline)
        live = LiveStream(deadline + ANSWER_GRACE_SECONDS)
        completion = self._cache.look_up(request)
        try:
            if completion is None:
                with self._waiting():
                    self._streaming.start(live, request, self._bind_model(), gap)
        except ApiError as error:
            completion = Completion(Origin.NONE, error=error)
        if completion is not None:
            live.end(completion)
        return live

    def _request(self, job: Job, caller: Caller, cache_control: CacheControl, deadline: float) -> CompletionRequest:
        route = self._chain.route(job, caller.models)
        return CompletionRequest(job, caller, cache_control, deadline, route, self._keys.of(job, caller, route))

    def _bind_model(self) -> Model:
        if self._model is None:
            raise NotConfigured()
        return self._model

    # One flight for identical requests

    def _lead_or_follow(self, request: CompletionRequest, model: Model) -> Completion:
        while True:
            began = self._monotonic()
            flight, leads = self._join(request)
            if leads:
                return self._lead(request, model, flight)
            with self._admission.follow():
                leaders = self._wait(request, flight)
            if not self._is_leaders_own(leaders.error, request):
                return self._cache.share(request, leaders, self._monotonic() - began)

    def _is_leaders_own(self, error: ApiError | None, request: CompletionRequest) -> bool:
        """Return whether a leader's error need not hold for its follower: who came later has time left."""
        if isinstance(error, UpstreamTimeout):
            return request.deadline - self._monotonic() >= LEAST_SECONDS
        return isinstance(error, LEADERS_OWN)

    def _join(self, request: CompletionRequest) -> tuple[Future[Completion], bool]:
        if request.cache_control.no_store:  # leaves no trace, so nobody may follow it
            return Future(), True
        return self._flights.join(request.flight_key)

    def _lead(self, request: CompletionRequest, model: Model, flight: Future[Completion]) -> Completion:
        """Let the pool do the work, so that the flight's life does not hang on this request's; its slot goes along."""
        try:
            queued = self._admission.enter(request.deadline)
        except ApiError as error:
            self._finish(request, flight, Completion(Origin.NONE, error=error))
            raise
        try:
            self._pool.submit(self._fly, request, model, flight)
        except RuntimeError:  # closed between the edge's look and now
            self._admission.leave()
            self._finish(request, flight, Completion(Origin.PAID, error=Draining()))
        completion = self._wait(request, flight)
        return completion._replace(queue_seconds=queued) if queued else completion

    def _wait(self, request: CompletionRequest, flight: Future[Completion]) -> Completion:
        """Return the flight's completion; past the deadline a failure, with what the request has cost by then."""
        try:
            return flight.result(max(0.0, request.deadline + ANSWER_GRACE_SECONDS - self._monotonic()))
        except FutureTimeout:
            timeout = UpstreamTimeout(breaks=True, maybe_billed=True)
            return Completion(Origin.PAID, request.receipt, error=timeout, route=request.route)

    def _fly(self, request: CompletionRequest, model: Model, flight: Future[Completion]) -> None:
        completion = run_to_completion(request, lambda: self._look_up_again_or_ask(request, model))
        self._admission.leave()
        self._finish(request, flight, completion)

    def _look_up_again_or_ask(self, request: CompletionRequest, model: Model) -> Completion:
        def ask(route: Route, by: float, _attempt: object) -> Answer:
            return model.generate(request.job.told(route.terms), deadline=by, model=route.model)

        completion = self._cache.look_up_again(request)
        if completion is not None:
            return completion
        return self._answering.run(request, ask, retry_until=request.deadline)

    def _finish(self, request: CompletionRequest, flight: Future[Completion], completion: Completion) -> None:
        if request.cache_control.no_store:
            flight.set_result(completion)
        else:
            self._flights.finish(request.flight_key, completion)
