"""One completion: cache, single flight, admission, model, money, store. Knows no HTTP.

look up ── hit ───────────────────────────────────────────► booked as a hit
   │
place ── none free ──► Overloaded
   │
flight ── follow ──► the leader's result, shared
   │ lead (look once more)
breaker, then attempts: reserve ► call ► settle             in a thread of the pool, which outlives its caller
   │
store, land the flight
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from functools import partial

from mtllm.billing.recorder import ABANDONED, Charge, CostRecorder, OpenAttempt
from mtllm.completions.live_stream import LiveStream
from mtllm.completions.ports import AnswerCache, AnswerStream, Model
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, CacheControl, CacheHit, Completion, Origin, StoredAnswer
from mtllm.domain.errors import (
    Abandoned,
    ApiError,
    BudgetExceeded,
    ContentBlocked,
    Draining,
    InternalError,
    MaxOutputTokensTooSmall,
    NotCached,
    NotConfigured,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamTimeout,
    UpstreamUnavailable,
    caused_by,
)
from mtllm.domain.money import NOTHING, Receipt
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import CircuitBreaker
from mtllm.resilience.retry import Retrier
from mtllm.resilience.single_flight import SingleFlight
from mtllm.tasks import Job, rendered

ANSWER_GRACE_SECONDS = 0.1
"""A call is ended at its deadline; its caller waits so much longer for the settlement."""


@dataclass(frozen=True, slots=True)
class FlightResult:
    """What a flight brought, for its leader and its followers."""

    receipt: Receipt
    answer: StoredAnswer | None = None
    error: ApiError | None = None
    found: CacheHit | None = None
    """An answer that was stored between the leader's look-up and its flight."""
    kept: bool = False

    @property
    def shareable(self) -> CacheHit | None:
        """What followers get; None when the flight failed."""
        return self.found if self.answer is None else CacheHit(self.answer, 0.0, 0.0)

    @property
    def leaders_own(self) -> bool:
        """The leader failed for a reason that need not hold for its followers."""
        return isinstance(self.error, BudgetExceeded | NotConfigured)


@dataclass(slots=True)
class _Order:
    """One request on its way to Gemini: what is wanted, for whom, until when, and its receipt as attempts add up."""

    job: Job
    caller: Caller
    cache_control: CacheControl
    key: bytes
    deadline: float
    receipt: Receipt = NOTHING


class Completions:
    """Answers jobs, from the cache or from the model."""

    def __init__(
        self,
        model_name: str,
        model: Model | None,
        cache: AnswerCache,
        recorder: CostRecorder,
        *,
        admission: Admission,
        breaker: CircuitBreaker,
        retrier: Retrier,
        pool: Executor,
        key_scoped: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_name = model_name
        self._model = model
        self._cache = cache
        self._recorder = recorder
        self._admission = admission
        self._breaker = breaker
        self._retrier = retrier
        self._pool = pool
        self._key_scoped = key_scoped
        self._clock = clock
        self._monotonic = monotonic
        self._flights: SingleFlight[FlightResult] = SingleFlight()
        self._streams: set[LiveStream] = set()

    def close(self) -> None:
        """Give up the streams that are still under way; plain calls end with the model's connections."""
        for live in tuple(self._streams):
            live.cancel()

    def complete(self, job: Job, caller: Caller, cache_control: CacheControl, *, deadline: float) -> Completion:
        """The answer to `job`, or the error it ended with; never later than `deadline` (monotonic) and a moment."""
        key = self._key(job, caller)
        found = (
            None
            if cache_control.no_cache or cache_control.no_store
            else self._cache.look_up(key, max_age=cache_control.max_age)
        )
        if found is not None:
            return self._hit(job, caller, found)
        if cache_control.only_if_cached:
            return Completion(Origin.NONE, error=NotCached())
        order = _Order(job, caller, cache_control, key, deadline)
        try:
            return self._from_the_model(order)
        except ApiError as error:
            return self._stale_instead(order, Completion(Origin.NONE, error=error))

    def _look_up(self, key: bytes, asked: CacheControl) -> CacheHit | None:
        if asked.no_cache or asked.no_store:
            return None
        return self._cache.look_up(key, max_age=asked.max_age)

    def _key(self, job: Job, caller: Caller) -> bytes:
        return job.key(self._model_name, (caller.key or caller.client) if self._key_scoped else "")

    def _hit(self, job: Job, caller: Caller, found: CacheHit, origin: Origin = Origin.HIT) -> Completion:
        answer = found.answer
        self._recorder.book_hit(job, caller, answer, shared=origin is Origin.SHARED)
        return Completion(
            origin,
            Receipt(answer.input_tokens, answer.output_tokens),
            answer,
            saved=answer.cost,
            age=found.age,
            ttl=found.ttl,
        )

    def _stale_instead(self, order: _Order, failed: Completion) -> Completion:
        """An expired answer, if one may still serve and the failure is Gemini's; else the failure.

        What the failed attempts were billed is shown with the answer all the same.
        """
        cache_control = order.cache_control
        if not isinstance(failed.error, UpstreamFailure) or cache_control.no_store or cache_control.no_cache:
            return failed
        found = self._cache.look_up_stale(order.key)
        if found is None or (cache_control.max_age is not None and found.age > cache_control.max_age):
            return failed
        stale = self._hit(order.job, order.caller, found, Origin.STALE)
        return replace(stale, receipt=failed.receipt + stale.receipt)

    # One flight for identical requests

    def _from_the_model(self, order: _Order) -> Completion:
        while True:
            asked = self._monotonic()
            self._admission.enter()
            flight, leads = self._joined(order)
            if leads:
                return self._lead(order, flight)
            result = self._follow(order, flight)
            if not result.leaders_own:
                return self._shared(order, result, self._monotonic() - asked)

    def _joined(self, order: _Order) -> tuple[Future[FlightResult], bool]:
        if order.cache_control.no_store:  # leaves no trace, so nobody may follow it
            return Future(), True
        return self._flights.join(order.key)

    def _lead(self, order: _Order, flight: Future[FlightResult]) -> Completion:
        """Fly in the pool, so that the flight's life does not hang on this request's; its place goes with it."""
        try:
            self._pool.submit(self._fly, order, flight)
        except RuntimeError:  # closed between the edge's look and now
            self._land(order, flight, FlightResult(NOTHING, error=Draining()))
        result = self._waited(flight, order)
        if result.found is not None:
            self._cache.count_shared_hit()
            return self._hit(order.job, order.caller, result.found)
        completion = Completion(Origin.PAID, result.receipt, result.answer, result.error, kept=result.kept)
        return self._stale_instead(order, completion) if result.error else completion

    def _follow(self, order: _Order, flight: Future[FlightResult]) -> FlightResult:
        try:
            return self._waited(flight, order)
        finally:
            self._admission.leave()

    def _waited(self, flight: Future[FlightResult], order: _Order) -> FlightResult:
        """The result; past the deadline a failure, with what the attempts have cost `order` by then."""
        try:
            return flight.result(max(0.0, order.deadline + ANSWER_GRACE_SECONDS - self._monotonic()))
        except FutureTimeout:
            return FlightResult(order.receipt, error=UpstreamTimeout(breaks=True, maybe_billed=True))

    def _shared(self, order: _Order, result: FlightResult, waited: float) -> Completion:
        found = result.shareable
        if found is None:
            return self._stale_instead(order, Completion(Origin.NONE, error=result.error, queue_seconds=waited))
        self._cache.count_shared_hit(missed=not order.cache_control.no_cache)
        shared = self._hit(order.job, order.caller, found, Origin.SHARED)
        return replace(shared, queue_seconds=waited)

    def _fly(self, order: _Order, flight: Future[FlightResult]) -> None:
        self._land(order, flight, self._run_flight(order))

    def _land(self, order: _Order, flight: Future[FlightResult], result: FlightResult) -> None:
        self._admission.leave()
        if order.cache_control.no_store:
            flight.set_result(result)
        else:
            self._flights.land(order.key, result)

    def _run_flight(self, order: _Order) -> FlightResult:
        try:
            found = self._answered_meanwhile(order)
            if found is not None:
                return FlightResult(NOTHING, found=found)
            return self._bought(order)
        except ApiError as error:
            return FlightResult(order.receipt, error=error)
        except Exception as defect:  # a result is owed whatever happens; the edge logs the cause
            return FlightResult(order.receipt, error=caused_by(defect))

    def _answered_meanwhile(self, order: _Order) -> CacheHit | None:
        """Look once more: another flight may have landed between this one's look-up and its start."""
        if order.cache_control != CacheControl():
            return None
        found = self._cache.look_up_stale(order.key)
        return found if found is not None and found.ttl > 0 else None

    # Calls to the model, each on the books

    def _bought(self, order: _Order) -> FlightResult:
        answer, charge, text = self._watched(partial(self._repaired, order))
        stored = self._as_stored(order, answer, charge, text)
        return FlightResult(order.receipt, stored, kept=self._kept(order, stored))

    def _watched(self, call: Callable[[], _Bought]) -> _Bought:
        """Run `call` under the circuit breaker."""
        self._breaker.admit()
        try:
            bought = call()
        except UpstreamFailure as failure:
            self._breaker.failed(failure)
            if isinstance(failure, UpstreamUnavailable):  # whoever opened the breaker is to wait for it too
                failure.retry_after = max(failure.retry_after or 0.0, self._breaker.snapshot().retry_in)
            raise
        except (ContentBlocked, MaxOutputTokensTooSmall):
            self._breaker.succeeded()  # Gemini works; it is the content that does not
            raise
        except BaseException:
            self._breaker.withdrawn()  # nothing was learnt about Gemini
            raise
        self._breaker.succeeded()
        return bought

    def _repaired(self, order: _Order) -> _Bought:
        """Attempts with retries; an invalid answer is asked for again as often as the task allows."""
        for repairs_left in range(order.job.task.repairs, -1, -1):
            try:
                return self._retrier.run(
                    partial(self._attempt, order), deadline=order.deadline, made=order.receipt.attempts
                )
            except UpstreamInvalidAnswer:
                if not repairs_left or not self._retrier.allows_more_than(order.receipt.attempts):
                    raise
        raise AssertionError("unreachable: the last round returns or raises")

    def _attempt(self, order: _Order) -> _Bought:
        model = self._configured()
        entry = self._opened(order)
        try:
            answer = model.generate(order.job.instruction, deadline=order.deadline)
        except BaseException as failure:
            if isinstance(failure, UpstreamTimeout) and failure.maybe_billed:
                self._admission.count_abandoned()
            order.receipt += entry.fail_with(failure)
            raise
        return self._settled(order, entry, answer)

    def _configured(self) -> Model:
        if self._model is None:
            raise NotConfigured()
        return self._model

    def _opened(self, order: _Order) -> OpenAttempt:
        number = order.receipt.attempts + 1
        seconds = order.deadline - self._monotonic()
        return self._recorder.open(order.job, order.caller, self._model_name, number=number, seconds=seconds)

    def _settled(self, order: _Order, entry: OpenAttempt, answer: Answer) -> _Bought:
        text, failure = _read(order.job, answer)
        charge = entry.charge(order.job.instruction, answer)
        order.receipt += entry.settle(answer, charge, "ok" if failure is None else failure.code)
        if failure is not None:
            raise failure
        return answer, charge, text

    def _as_stored(self, order: _Order, answer: Answer, charge: Charge, text: str) -> StoredAnswer:
        return StoredAnswer(
            body=rendered(
                order.job.task, text, answer, charge.usage, estimated=charge.estimated, unpriced=charge.unpriced
            ),
            input_tokens=charge.usage.input,
            output_tokens=charge.usage.output,
            cost=charge.cost.total,
            model=answer.model,
            finish_reason=answer.finish_reason.value,
            stored_at=self._clock(),
        )

    def _kept(self, order: _Order, stored: StoredAnswer) -> bool:
        if order.cache_control.no_store:
            return False
        return self._cache.store(order.key, stored)

    # Streams: the same steps, with the answer passed on as it comes

    def stream(
        self, job: Job, caller: Caller, cache_control: CacheControl, *, deadline: float, gap: float
    ) -> LiveStream:
        """The answer to `job` as it comes; a stored one at once. `deadline` bounds the whole, `gap` each silence.

        A live stream keeps its place until Gemini's end of it is closed.
        """
        live = LiveStream(deadline + ANSWER_GRACE_SECONDS)
        key = self._key(job, caller)
        found = (
            None
            if cache_control.no_cache or cache_control.no_store
            else self._cache.look_up(key, max_age=cache_control.max_age)
        )
        if found is not None:
            live.end(self._hit(job, caller, found))
        elif cache_control.only_if_cached:
            live.end(Completion(Origin.NONE, error=NotCached()))
        else:
            self._start(live, _Order(job, caller, cache_control, key, deadline), gap)
        return live

    def _start(self, live: LiveStream, order: _Order, gap: float) -> None:
        try:
            self._admission.enter()
        except ApiError as error:
            live.end(Completion(Origin.NONE, error=error))
        else:
            self._streams.add(live)
            try:
                self._pool.submit(self._pump, live, order, gap)
            except RuntimeError:  # closed between the edge's look and now
                self._end(live, Completion(Origin.NONE, error=Draining()))

    def _pump(self, live: LiveStream, order: _Order, gap: float) -> None:
        try:
            result = self._streamed(live, order, gap)
        except ApiError as error:
            result = FlightResult(order.receipt, error=Abandoned() if live.cancelled.is_set() else error)
        except Exception as defect:  # the stream must end whatever happens; the edge logs the cause
            result = FlightResult(order.receipt, error=caused_by(defect))
        completion = Completion(Origin.PAID, result.receipt, result.answer, result.error, kept=result.kept)
        self._end(live, completion if live.begun else self._stale_instead(order, completion))

    def _end(self, live: LiveStream, completion: Completion) -> None:
        self._streams.discard(live)
        self._admission.leave()
        live.end(completion)

    def _streamed(self, live: LiveStream, order: _Order, gap: float) -> FlightResult:
        answer, charge, text = self._watched(partial(self._relayed, live, order, gap))
        stored = self._as_stored(order, answer, charge, text)
        return FlightResult(order.receipt, stored, kept=self._kept(order, stored))

    def _relayed(self, live: LiveStream, order: _Order, gap: float) -> _Bought:
        """Retried until the first delta; from then on the client has seen something, so an end is final."""
        first_by = min(order.deadline, self._monotonic() + gap)
        begin = partial(self._begun, live, order, gap, first_by)
        entry, source, first = self._retrier.run(begin, deadline=first_by, wait=live.cancelled.wait)
        try:
            if first is not None:
                live.pass_on(first)
                for delta in source:
                    live.pass_on(delta)
        except BaseException as failure:
            self._broken_off(live, order, entry, source, failure)
            raise
        finally:
            source.close()
        return self._settled(order, entry, source.answer)

    def _begun(self, live: LiveStream, order: _Order, gap: float, first_by: float) -> _Begun:
        """One attempt, as far as its first delta (None when it ended without any)."""
        if live.cancelled.is_set():
            raise Abandoned
        model = self._configured()
        entry = self._opened(order)
        source: AnswerStream | None = None
        try:
            source = model.stream(
                order.job.instruction,
                gap_seconds=gap,
                first_seconds=first_by - self._monotonic(),
                deadline=order.deadline,
            )
            live.fed_by(source)
            return entry, source, next(source, None)
        except BaseException as failure:
            self._broken_off(live, order, entry, source, failure)
            raise

    def _broken_off(
        self, live: LiveStream, order: _Order, entry: OpenAttempt, source: AnswerStream | None, failure: BaseException
    ) -> None:
        """Book an attempt that broke off: what came of it is paid for. Raises Abandoned when its client has left."""
        left = live.cancelled.is_set()
        known = failure if isinstance(failure, UpstreamFailure) else None
        status = ABANDONED if left else known.code if known else InternalError.code
        billed = known.maybe_billed if known else True
        if billed and (left or isinstance(failure, UpstreamTimeout)):
            self._admission.count_abandoned()
        came = None if source is None else source.partial_answer()
        if came is not None and (came.text or came.usage):
            order.receipt += entry.settle(came, entry.charge(order.job.instruction, came), status)
        else:
            order.receipt += entry.fail(status, maybe_billed=billed)
        if left:
            raise Abandoned from failure


_Bought = tuple[Answer, Charge, str]
_Begun = tuple[OpenAttempt, AnswerStream, str | None]


def _read(job: Job, answer: Answer) -> tuple[str, ApiError | None]:
    """The answer as the caller gets it, or why it cannot be passed on."""
    if answer.failure is not None:
        return "", answer.failure
    try:
        return job.task.read(job.instruction, answer), None
    except UpstreamInvalidAnswer as failure:
        return "", failure
