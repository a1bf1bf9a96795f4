"""The flow of one completion, below HTTP and above a model that does what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtllm.billing.drift import DriftMeter
from mtllm.billing.prices import PriceTable, SpendMeter
from mtllm.billing.recorder import CostRecorder
from mtllm.billing.tokens import TokenCounter
from mtllm.caching.responses import AnswerStore
from mtllm.completions.attempts import Attempts
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.chain import ModelChain
from mtllm.completions.service import Completions
from mtllm.domain.caller import Caller
from mtllm.domain.completion import Answer, CacheControl, CacheHit, Completion, Origin
from mtllm.domain.errors import (
    ApiError,
    BudgetExceeded,
    ContentBlocked,
    Overloaded,
    Retry,
    UpstreamError,
    UpstreamInvalidAnswer,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.domain.money import TokenUsage
from mtllm.ledger.ledger import Budget, Ledger, open_ledger
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import Breakers, CircuitBreaker
from mtllm.resilience.retry import Retrier, RetryBudget
from mtllm.tasks import TASK_BY_NAME, Job, parse
from tests.support.fakes import FakeClock, FakeModel
from tests.support.ledgers import until

PLACES = 8
NOTHING_SPECIAL = CacheControl()
USAGE = TokenUsage(input=10, output=20)
PRICE_OF_ONE = 10 * 100 + 20 * 400


class LateCache(AnswerStore):
    """Finds nothing at the first look, as if every answer were stored a moment later; looks again when `ready`."""

    ready: Callable[[], bool] = staticmethod(lambda: True)

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None:
        return None

    def look_up_stale(self, key: bytes) -> CacheHit | None:
        until(self.ready)
        return super().look_up_stale(key)


class House:
    """The flow with everything it needs, and short ways to ask it."""

    def __init__(
        self,
        folder: Path,
        clock: FakeClock,
        *,
        stale_seconds: float = 0,
        places: int = PLACES,
        cache: type[AnswerStore] = AnswerStore,
    ) -> None:
        self.clock = clock
        self.model = FakeModel(Answer("fine", "gemini-2.5-flash-lite", USAGE))
        self.ledger: Ledger = open_ledger(folder / "ledger.sqlite3", sync="normal", clock=clock, monotonic=clock)
        self.cache = cache(stale_seconds=stale_seconds, clock=clock, monotonic=clock)
        self.spend = SpendMeter()
        self.breakers = Breakers(lambda: CircuitBreaker(monotonic=clock))
        self.admission = Admission(places, threads=places + 1, monotonic=clock)
        self.pool = ThreadPoolExecutor(places)
        counter = TokenCounter()
        self.drift = DriftMeter(lambda texts: [0] * len(texts))
        prices = PriceTable.fixed(0.1, 0.4)
        recorder = CostRecorder(self.ledger, prices, counter, self.spend, self.drift, clock=clock, monotonic=clock)
        attempts = Attempts(
            recorder,
            admission=self.admission,
            breakers=self.breakers,
            retrier=Retrier(max_attempts=4, budget=RetryBudget(monotonic=clock), monotonic=clock, wait=clock.sleep),
            clock=clock,
            monotonic=clock,
        )
        self.flow = Completions(
            ModelChain((self.model.model,), clock=clock, monotonic=clock),
            self.model,
            CachePolicy(self.cache, recorder),
            attempts,
            admission=self.admission,
            pool=self.pool,
            monotonic=clock,
        )

    def ask(
        self,
        prompt: str = "hello",
        *,
        cache_control: CacheControl = NOTHING_SPECIAL,
        budgets: tuple[Budget, ...] = (),
        seconds: float = 30,
    ) -> Completion:
        caller = Caller("request", "client", budgets=budgets)
        return self.flow.complete(_text(prompt), caller, cache_control, deadline=self.clock() + seconds)

    def statuses(self) -> list[str]:
        self.ledger.flush()
        return [row.status for row in self.ledger.export(0, self.clock() + 86_400)]

    def close(self) -> None:
        self.model.gate.set()
        self.pool.shutdown()
        self.drift.close()
        self.ledger.close()


def _text(prompt: str) -> Job:
    return parse(TASK_BY_NAME["text"], f'{{"prompt": "{prompt}"}}'.encode(), max_chars=1000)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path, FakeClock())
    yield built
    built.close()


def _together(count: int, ask: Callable[[int], Completion]) -> list[Completion]:
    """`ask` in so many threads that start at once."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Completion:
        barrier.wait()
        return ask(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_a_miss_is_paid_and_a_repeat_is_free(house: House) -> None:
    """The receipt of the first has costs, that of the second tokens only."""
    paid, hit = house.ask(), house.ask()
    assert (paid.origin, paid.receipt.amount.cost.total, paid.stored) == (Origin.PAID, PRICE_OF_ONE, True)
    assert (hit.origin, hit.receipt.amount.cost.total, hit.saved) == (Origin.HIT, 0, PRICE_OF_ONE)
    assert hit.receipt.amount.usage.output == USAGE.output
    assert house.statuses() == ["ok", "hit"]


def test_identical_requests_in_flight_make_one_call(tmp_path: Path) -> None:
    """A hundred at once, one call; the others share its answer and count as hits."""
    house = House(tmp_path, FakeClock(), places=100)
    house.model.gate.clear()
    house.model.release_after_joined(lambda: house.admission.state().following == 99)
    completions = _together(100, lambda _: house.ask())
    house.close()
    assert len(house.model.calls) == 1
    origins = [completion.origin for completion in completions]
    assert (origins.count(Origin.PAID), origins.count(Origin.SHARED)) == (1, 99)
    assert (
        sum(completion.receipt.amount.cost.total for completion in completions) == PRICE_OF_ONE == house.spend.total()
    )
    assert house.cache.get_stats()["hits"] == 99


def test_followers_get_an_answer_that_was_stored_after_their_look(tmp_path: Path) -> None:
    """The leader looks once more and finds it: no call, and nobody goes without."""
    house = House(tmp_path, FakeClock(), cache=LateCache)
    house.ask()
    assert isinstance(house.cache, LateCache)
    house.cache.ready = lambda: house.admission.state().following == 2
    completions = _together(3, lambda _: house.ask())
    house.close()
    assert len(house.model.calls) == 1
    assert sorted(completion.origin.value for completion in completions) == ["hit", "shared", "shared"]
    assert all(completion.answer is not None for completion in completions)


def test_the_leaders_failure_is_shared(tmp_path: Path) -> None:
    """Followers get the error too, and Gemini is not asked again for them."""
    house = House(tmp_path, FakeClock())
    house.model.answer_with(UpstreamError(breaks=True))
    house.model.gate.clear()
    house.model.release_after_joined(lambda: house.admission.state().following == 3)
    completions = _together(4, lambda _: house.ask())
    house.close()
    assert len(house.model.calls) == 1
    assert {type(completion.error) for completion in completions} == {UpstreamError}


def test_a_follower_takes_over_when_the_leaders_own_budget_fails(tmp_path: Path) -> None:
    """A reason of the leader's own is not the followers'."""
    house = House(tmp_path, FakeClock(), places=2)
    poor = (Budget("key:poor", 1),)
    house.ledger.prepare()
    completions = _together(2, lambda number: house.ask(budgets=poor if number == 0 else ()))
    house.close()
    assert {type(completions[0].error), completions[0].origin} & {BudgetExceeded, Origin.SHARED, Origin.HIT}
    assert completions[1].answer is not None


def test_who_comes_late_to_a_slow_call_has_time_of_its_own(tmp_path: Path) -> None:
    """The end of the leader's time is the leader's own reason; the late follower asks anew with what it has left."""
    house = House(tmp_path, FakeClock(), places=2)
    house.model.answer_with(UpstreamTimeout(breaks=True, maybe_billed=True), Answer("fine", "m", USAGE))
    house.model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(house.ask, seconds=6)
        house.model.wait_for_calls(1)
        follower = pool.submit(house.ask, seconds=11)
        until(lambda: house.admission.state().following == 1)
        house.model.gate.set()
        assert isinstance(leader.result().error, UpstreamTimeout)
        assert (follower.result().origin, follower.result().error) == (Origin.PAID, None)
    house.close()


def test_who_came_with_the_leader_shares_the_end_of_its_time(tmp_path: Path) -> None:
    """Nobody begins a call that has no time left to be answered."""
    house = House(tmp_path, FakeClock(), places=2)
    house.model.answer_with(UpstreamTimeout(breaks=True, maybe_billed=True))
    house.model.gate.clear()
    house.model.release_after_joined(lambda: house.admission.state().following == 1)
    completions = _together(2, lambda _: house.ask(seconds=0.9))
    house.close()
    assert [type(completion.error) for completion in completions] == [UpstreamTimeout] * 2
    assert len(house.model.calls) == 1


def test_all_places_taken_is_overloaded_at_once(house: House) -> None:
    """Without a line, the rest are told so instead of waiting; hits are still served."""
    house.ask("known")
    house.model.gate.clear()
    with ThreadPoolExecutor(PLACES) as pool:
        waiting = [pool.submit(house.ask, f"slow {number}") for number in range(PLACES)]
        house.model.wait_for_calls(PLACES + 1)
        assert isinstance(house.ask("one more").error, Overloaded)
        assert house.ask("known").origin is Origin.HIT
        house.model.gate.set()
        assert {call.result().origin for call in waiting} == {Origin.PAID}
    assert house.admission.state().in_use == 0


@pytest.mark.parametrize(
    ("failure", "calls"),
    [
        (UpstreamUnavailable(retry=Retry.YES, breaks=True), 4),
        (UpstreamError(retry=Retry.ONCE, breaks=True), 2),
        (UpstreamError(retry=Retry.NEVER), 1),
    ],
)
def test_each_attempt_is_a_row(house: House, failure: ApiError, calls: int) -> None:
    """Retries are on the books one by one."""
    house.model.answer_with(*[failure] * 4)
    assert house.ask().error is failure
    assert house.statuses() == [failure.code] * calls


def test_a_blocked_answer_is_billed_and_not_kept(house: House) -> None:
    """Gemini charged for the prompt, so the caller is told and the ledger has it."""
    house.model.answer_with(Answer("", "gemini-2.5-flash-lite", TokenUsage(10, 0), failure=ContentBlocked()))
    blocked = house.ask()
    assert isinstance(blocked.error, ContentBlocked)
    assert blocked.receipt.amount.cost.total == 1000
    assert house.statuses() == ["content_blocked"]
    assert house.ask().origin is Origin.PAID


def test_a_label_outside_the_list_is_asked_for_once_more(house: House) -> None:
    """Then it is an error that has paid for both attempts; never an answer."""
    house.model.answer_with(*[Answer("neither", "gemini-2.5-flash-lite", USAGE)] * 2)
    job = parse(TASK_BY_NAME["classify"], b'{"text": "x", "categories": ["a", "b"]}', max_chars=100)
    completion = house.flow.complete(job, Caller("r", "c"), NOTHING_SPECIAL, deadline=house.clock() + 30)
    assert isinstance(completion.error, UpstreamInvalidAnswer)
    assert (completion.receipt.attempts, completion.receipt.amount.cost.total) == (2, 2 * PRICE_OF_ONE)


def test_without_reported_usage_the_cost_is_estimated(house: House) -> None:
    """By tiktoken, and marked."""
    house.model.answer_with(Answer("fine words", "gemini-2.5-flash-lite", None))
    answer = house.ask("hello world").answer
    assert answer is not None
    assert b'"estimated": true' in answer.body
    assert answer.usage.output == 2


def test_an_expired_answer_serves_while_gemini_fails(tmp_path: Path) -> None:
    """With RESPONSE_CACHE_STALE_SECONDS, marked by its negative time to live."""
    house = House(tmp_path, FakeClock(), stale_seconds=60)
    house.ask()
    house.clock.advance(1801)
    house.model.answer_with(UpstreamTimeout(breaks=True))
    stale = house.ask()
    house.close()
    assert (stale.origin, stale.ttl, stale.receipt.amount.cost.total) == (Origin.STALE, -1, 0)


@pytest.mark.parametrize(
    ("cache_control", "origin", "kept"),
    [
        (CacheControl(no_cache=True), Origin.PAID, True),
        (CacheControl(no_store=True), Origin.PAID, False),
        (CacheControl(max_age=5), Origin.PAID, True),
        (CacheControl(max_age=10), Origin.HIT, False),
        (CacheControl(only_if_cached=True), Origin.HIT, False),
    ],
)
def test_what_the_caller_wishes_of_the_cache(
    house: House, cache_control: CacheControl, origin: Origin, kept: bool
) -> None:
    """RFC 9111: an answer ten seconds old, asked for again."""
    house.ask()
    house.clock.advance(10)
    completion = house.ask(cache_control=cache_control)
    assert (completion.origin, completion.stored) == (origin, kept)


def test_only_if_cached_never_asks(house: House) -> None:
    """A miss is 504 `not_cached` and costs nothing."""
    completion = house.ask(cache_control=CacheControl(only_if_cached=True))
    assert completion.error is not None
    assert completion.error.code == "not_cached"
    assert house.model.calls == []


def test_the_caller_is_answered_at_the_deadline_and_the_call_still_counts(house: House) -> None:
    """A call that outlives its caller completes, is billed and stored, and holds its place until it ends."""
    house.model.gate.clear()
    late = house.ask(seconds=0.0)
    assert isinstance(late.error, UpstreamTimeout)
    assert house.admission.state().in_use == 1
    house.model.gate.set()
    house.pool.submit(lambda: None).result()
    house.model.finished.acquire(timeout=10)
    assert house.ask().cached or house.ask().cached


def test_a_breaker_that_is_open_answers_at_once(house: House) -> None:
    """After five failures in a row nobody asks Gemini, until the cool-down is over."""
    house.model.answer_with(*[UpstreamError(breaks=True)] * 5)
    for _ in range(5):
        house.ask()
    refused = house.ask()
    assert isinstance(refused.error, UpstreamUnavailable)
    assert len(house.model.calls) == 5
    house.clock.advance(refused.error.retry_after or 0)
    assert house.ask().origin is Origin.PAID


def test_a_defect_lands_the_flight(house: House) -> None:
    """An exception nobody foresaw is a 500 with its cause for the log, and the place is given back."""
    defect = RuntimeError("unforeseen")
    house.model.answer_with(defect)
    completion = house.ask()
    assert completion.error is not None
    assert (completion.error.status, completion.error.__cause__) == (500, defect)
    assert house.admission.state().in_use == 0
    assert house.statuses() == ["internal_error"]


def test_a_shared_answer_that_was_not_looked_up_takes_no_miss_back(tmp_path: Path) -> None:
    """Requests with no-cache that follow a flight are hits, and the figures stay possible ones."""
    house = House(tmp_path, FakeClock())
    house.model.gate.clear()
    house.model.release_after_joined(lambda: house.admission.state().following == 3)
    _together(4, lambda _: house.ask(cache_control=CacheControl(no_cache=True)))
    house.close()
    stats = house.cache.get_stats()
    assert (stats["hits"], stats["misses"], stats["hit_ratio"]) == (3, 0, 1.0)


@pytest.mark.parametrize(
    "cache_control", [CacheControl(no_cache=True), CacheControl(no_store=True), CacheControl(max_age=5)]
)
def test_a_failure_brings_no_answer_that_its_caller_declined(house: House, cache_control: CacheControl) -> None:
    """What Cache-Control rules out, it rules out on Gemini's bad days too."""
    house.ask()
    house.clock.advance(10)
    house.model.answer_with(UpstreamError(breaks=True))
    assert isinstance(house.ask(cache_control=cache_control).error, UpstreamError)


def test_whoever_opens_the_breaker_is_told_to_wait_for_it(house: House) -> None:
    """The fifth failure in a row carries the breaker's seconds."""
    house.model.answer_with(*(UpstreamUnavailable(breaks=True, retry_after=1) for _ in range(5)))
    waits = [house.ask().error for _ in range(5)]
    assert [error.retry_after for error in waits if error] == [1, 1, 1, 1, 10]


def test_a_probe_that_never_asked_leaves_its_turn_to_the_next(house: House) -> None:
    """A budget that is used up says nothing about Gemini."""
    house.model.answer_with(*[UpstreamError(breaks=True)] * 5)
    for _ in range(5):
        house.ask()
    house.clock.advance(10)
    assert isinstance(house.ask(budgets=(Budget("key:poor", 1),)).error, BudgetExceeded)
    assert house.ask().origin is Origin.PAID


def test_repairs_stay_within_the_attempts_that_a_request_may_make(house: House) -> None:
    """Three lost calls and one wrong label are four attempts, and that is all."""
    lost = UpstreamUnavailable(retry=Retry.YES, breaks=True)
    house.model.answer_with(lost, lost, lost, Answer("neither", "gemini-2.5-flash-lite", USAGE))
    job = parse(TASK_BY_NAME["classify"], b'{"text": "x", "categories": ["a", "b"]}', max_chars=100)
    completion = house.flow.complete(job, Caller("r", "c"), NOTHING_SPECIAL, deadline=house.clock() + 3000)
    assert isinstance(completion.error, UpstreamInvalidAnswer)
    assert completion.receipt.attempts == 4


def test_an_answer_that_is_not_kept_is_not_called_stored(tmp_path: Path) -> None:
    """With a time to live of 0, nothing is."""
    house = House(tmp_path, FakeClock())
    house.cache._default_ttl = 0
    assert house.ask().stored is False
    house.close()


def test_a_closed_pool_is_draining(house: House) -> None:
    """The place is given back and the flight lands."""
    house.pool.shutdown()
    completion = house.ask()
    assert completion.error is not None
    assert completion.error.code == "draining"
    assert house.admission.state().in_use == 0
