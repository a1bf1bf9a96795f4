"""Streamed completions: the same attempts as plain ones, with their deltas passed on as they come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from functools import partial

from mtllm.billing.recorder import OpenAttempt
from mtllm.completions.answering import Answering
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.live_stream import LiveStream
from mtllm.completions.ports import Model
from mtllm.completions.request import CompletionRequest, run_to_completion
from mtllm.domain.completion import Answer, Completion, Origin, Route
from mtllm.domain.errors import Abandoned, ApiError, Draining, may_be_billed
from mtllm.resilience.admission import Admission
from mtllm.tasks import Job


class Streaming:
    """Runs streams in the pool. Each keeps its slot until Gemini's end of it is closed. Nobody follows a stream."""

    def __init__(
        self,
        cache: CachePolicy,
        answering: Answering,
        *,
        admission: Admission,
        pool: Executor,
        monotonic: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._answering = answering
        self._admission = admission
        self._pool = pool
        self._monotonic = monotonic
        self._running: set[LiveStream] = set()

    def start(self, live: LiveStream, request: CompletionRequest, model: Model, gap: float) -> None:
        """Begin to answer `request` into `live`; `gap` bounds the seconds of each silence. Raises Overloaded."""
        live.queue_seconds = self._admission.enter(self._monotonic() + gap)
        self._running.add(live)
        try:
            self._pool.submit(self._pump, live, request, model, gap)
        except RuntimeError:  # closed between the edge's look and now
            self._end(live, Completion(Origin.NONE, error=Draining()))

    def close(self) -> None:
        """Give up the streams that are still under way."""
        for live in tuple(self._running):
            live.stop()

    def _pump(self, live: LiveStream, request: CompletionRequest, model: Model, gap: float) -> None:
        completion = run_to_completion(request, partial(self._relay, live, request, model, gap))
        completion = completion if live.begun else self._cache.use_stale(request, completion)
        self._end(live, completion._replace(queue_seconds=live.queue_seconds))

    def _end(self, live: LiveStream, completion: Completion) -> None:
        self._running.discard(live)
        self._admission.leave()
        live.end(completion)

    def _relay(self, live: LiveStream, request: CompletionRequest, model: Model, gap: float) -> Completion:
        """Ask until the first delta; from then on the client has seen something, so an end is final."""
        first_by = min(request.deadline, self._monotonic() + gap)
        try:
            if live.cancelled.is_set():
                raise _reason(live)
            return self._answering.run(
                request,
                partial(self._ask, live, request.job, model, request.deadline, gap),
                retry_until=first_by,
                wait=live.cancelled.wait,
                may_repeat=lambda: not live.begun,
            )
        except ApiError as error:
            if live.cancelled.is_set() and not isinstance(error, Abandoned | Draining):
                raise _reason(live) from error
            raise

    def _ask(
        self,
        live: LiveStream,
        job: Job,
        model: Model,
        deadline: float,
        gap: float,
        route: Route,
        first_by: float,
        attempt: OpenAttempt,
    ) -> Answer:
        try:
            source = model.stream(
                job.told(route.terms),
                gap_seconds=gap,
                first_seconds=first_by - self._monotonic(),
                deadline=deadline,
                model=route.model,
            )
            with closing(source):
                attempt.partial = source.partial_answer
                live.feed_from(source, route)
                for delta in source:
                    live.pass_on(delta)
        except BaseException as failure:
            if live.cancelled.is_set():
                raise _reason(live, maybe_billed=may_be_billed(failure)) from failure
            raise
        return source.answer


def _reason(live: LiveStream, *, maybe_billed: bool = False) -> ApiError:
    """Return why a stream was cancelled: its client has left, or the service ends."""
    return Draining(maybe_billed=maybe_billed) if live.stopped else Abandoned(maybe_billed=maybe_billed)
