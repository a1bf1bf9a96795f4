"""Calls to one model, each on the books:  circuit breaker ► retries ► repairs ► one attempt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from mtllm.billing.recorder import CostRecorder, OpenAttempt
from mtllm.completions.request import CompletionRequest
from mtllm.domain.completion import Answer, Route, StoredAnswer, render_body
from mtllm.domain.errors import (
    Abandoned,
    ApiError,
    ContentBlocked,
    Draining,
    MaxOutputTokensTooSmall,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import Breakers, CircuitBreaker
from mtllm.resilience.retry import Retrier, run_with_repairs
from mtllm.tasks import Job

Ask = Callable[[Route, float, OpenAttempt], Answer]
"""Puts the question to a route's model, once, by a deadline (monotonic seconds). Raises UpstreamFailure."""


class Attempts:
    """Asks a model until it has answered or no further attempt can help. Safe to share between threads."""

    def __init__(
        self,
        recorder: CostRecorder,
        *,
        admission: Admission,
        breakers: Breakers,
        retrier: Retrier,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._admission = admission
        self._breakers = breakers
        self._retrier = retrier
        self._clock = clock
        self._monotonic = monotonic

    def run(
        self,
        request: CompletionRequest,
        ask: Ask,
        *,
        retry_until: float,
        wait: Callable[[float], bool | None] | None = None,
        may_repeat: Callable[[], bool] | None = None,
    ) -> StoredAnswer:
        """Return the answer of the request's model, ready to store; what each attempt cost is on its receipt.

        `retry_until` (monotonic seconds), `wait` and `may_repeat` are the Retrier's. Raises the ApiError of the last
        attempt.
        """
        attempt = partial(self._attempt, request, ask, retry_until)
        before = request.receipt.attempts
        retry = partial(
            self._retrier.run,
            attempt,
            deadline=retry_until,
            wait=wait,
            may_repeat=may_repeat,
            patience=self._retrier.patience(),
        )
        with self._guard(self._breakers.of(request.route.model)):
            return self._repair(request, retry, lambda: request.receipt.attempts - before, may_repeat)

    @contextmanager
    def _guard(self, breaker: CircuitBreaker) -> Iterator[None]:
        """Let the circuit breaker admit what is done inside, and learn from how it ends."""
        breaker.admit()
        try:
            yield
        except UpstreamFailure as failure:
            breaker.record_failure(failure)
            if isinstance(failure, UpstreamUnavailable):  # whoever opened the breaker is to wait for it too
                failure.retry_after = max(failure.retry_after or 0.0, breaker.snapshot().retry_in)
            raise
        except (ContentBlocked, MaxOutputTokensTooSmall):
            breaker.record_success()  # Gemini works; it is the content that does not
            raise
        except BaseException:
            breaker.withdraw()  # nothing was learnt about Gemini
            raise
        breaker.record_success()

    def _repair(
        self,
        request: CompletionRequest,
        retry: Callable[..., StoredAnswer],
        count_made: Callable[[], int],
        may_repeat: Callable[[], bool] | None,
    ) -> StoredAnswer:
        """Make attempts with retries; ask again for an invalid answer as often as the task allows."""

        def may_repair() -> bool:
            return (may_repeat is None or may_repeat()) and self._retrier.allows_more_than(count_made())

        return run_with_repairs(lambda: retry(made=count_made()), request.job.task.repairs, may_repair=may_repair)

    def _attempt(self, request: CompletionRequest, ask: Ask, by: float) -> StoredAnswer:
        with self._open(request) as attempt:
            answer = ask(request.route, by, attempt)
            text, failure = _read(request.job, answer)
            charge = attempt.settle(answer, failure)
        if failure is not None:
            raise failure
        task = request.job.task
        return StoredAnswer(
            body=render_body(task.answer_field, json.loads(text) if task.answers_json else text, answer, charge),
            usage=charge.amount.usage,
            cost=charge.amount.cost.total,
            model=answer.model,
            finish_reason=answer.finish_reason.value,
            stored_at=self._clock(),
        )

    @contextmanager
    def _open(self, request: CompletionRequest) -> Iterator[OpenAttempt]:
        """Put one attempt on the books, and what it came to on the request's receipt."""
        attempt = self._recorder.attempt(
            request.job,
            request.caller,
            request.route,
            number=request.receipt.attempts + 1,
            seconds=request.deadline - self._monotonic(),
        )
        try:
            with attempt:
                try:
                    yield attempt
                except (Abandoned, Draining, UpstreamTimeout) as failure:
                    if failure.maybe_billed:
                        self._admission.count_abandoned()
                    raise
        finally:
            request.receipt += attempt.receipt


def _read(job: Job, answer: Answer) -> tuple[str, ApiError | None]:
    """Return the answer as the caller gets it, or why it cannot be passed on."""
    if answer.failure is not None:
        return "", answer.failure
    try:
        return job.task.read(job.instruction, answer), None
    except (MaxOutputTokensTooSmall, UpstreamInvalidAnswer) as failure:
        return "", failure
