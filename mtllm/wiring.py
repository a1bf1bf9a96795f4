"""The composition root: the settings become parts, and the parts become a service.

`build` is one list. Each entry makes a part and says how it starts, how it ends and what readiness asks of it; a new
part is one more entry. Nothing starts before `Service.open`, which the first request calls: threads, files and the
database belong to the process that serves, not to the one that imported (or forked).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import ParamSpec, TypeVar

from mtllm import process
from mtllm.billing.alerts import BudgetAlerts, Webhook
from mtllm.billing.counting import estimate_apart
from mtllm.billing.drift import DriftMeter
from mtllm.billing.maintenance import LedgerMaintenance
from mtllm.billing.prices import PriceTable, SpendMeter
from mtllm.billing.recorder import CostRecorder
from mtllm.billing.redis_spend import SharedSpend
from mtllm.billing.tokens import TokenCounter
from mtllm.caching.journal import ResponseJournal
from mtllm.caching.journal_file import JournalFile
from mtllm.caching.redis_tier import TieredCache
from mtllm.caching.responses import AnswerStore
from mtllm.completions.attempts import Attempts
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.chain import ModelChain, make_chain
from mtllm.completions.dry_run import DryRuns
from mtllm.completions.free_look import FreeLook
from mtllm.completions.request import AnswerKeys
from mtllm.completions.service import Completions, Waiting
from mtllm.domain.errors import QuotaExhausted
from mtllm.domain.money import NANO
from mtllm.domain.periods import Calendar
from mtllm.domain.times import find_zone
from mtllm.gemini.client import Gemini
from mtllm.ledger.ledger import SERVICE_SCOPE, Budget, Ledger, key_scope, open_ledger
from mtllm.logs.writer import RequestLogger
from mtllm.parts import OK, CheckResult, Parts, judge
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter
from mtllm.ratelimit.redis_limiter import SharedRateLimiter
from mtllm.redis_link import RedisLink
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import Breakers, CircuitBreaker
from mtllm.resilience.retry import Retrier, RetryBudget
from mtllm.security.access import LEAST_SECRET_CHARS, ApiKey, ClientResolver, KeyRing
from mtllm.security.bursts import BurstDetector
from mtllm.settings import Settings, SettingsError

DEFAULT_THREADS = 4
"""Threads that a server is taken to have which does not tell: as many as waitress has by default."""

LEAST_FREE_BYTES = 32 * 1024 * 1024
"""Less than this on the ledger's or the logs' disk, and they may soon fail to be written."""

Clock = Callable[[], float]
"""Returns seconds: since the epoch (`clock`), or since any moment (`monotonic`)."""

AnyCache = AnswerStore | TieredCache
"""The response cache of this process, or the one that it shares with others."""

AnyLimiter = RateLimiter | SharedRateLimiter
"""The limiter of this process, or the one that it shares with others."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts that an application is put together from, and the list that starts and ends them."""

    parts: Parts
    notices: Notices
    logger: RequestLogger
    keys: KeyRing
    clients: ClientResolver
    bursts: BurstDetector
    limiter_table: ClientTable
    limiter: AnyLimiter
    cache: AnyCache
    ledger: Ledger
    spend: SpendMeter
    redis: RedisLink | None
    drift: DriftMeter
    recorder: CostRecorder
    maintenance: LedgerMaintenance
    budgets: Budgets
    alerts: BudgetAlerts
    breakers: Breakers
    chain: ModelChain
    free_look: FreeLook
    admission: Admission
    completions: Completions
    dry_runs: DryRuns

    def open(self, threads: int) -> None:
        """Start every part for a server with so many threads; do nothing when already open."""
        self.parts.open(threads)

    def close(self) -> None:
        """End what still runs, and flush and close what outlives the process: answers, money, logs."""
        self.parts.close()

    def warnings(self) -> list[str]:
        """Return what whoever starts the service should know, a sentence each."""
        warnings = [message for _, message in self.notices.early]
        if self.keys.open:
            warnings.append(
                "No API keys are set, so whoever reaches this service may use it. Set API_KEYS or API_KEYS_FILE."
            )
        if self.keys.weak:
            warnings.append(
                f"A secret of fewer than {LEAST_SECRET_CHARS} characters can be guessed: {', '.join(self.keys.weak)}."
            )
        return warnings


def build(
    settings: Settings,
    *,
    clock: Clock = time.time,
    monotonic: Clock = time.monotonic,
    waiting: Waiting = contextlib.nullcontext,
) -> Service:
    """Return the service that `settings` describe. Starts nothing. Raises SettingsError.

    `waiting` surrounds each wait for Gemini in a server's thread.
    """
    parts = Parts()
    add = parts.add
    logger = add(_make_logger(settings), close=RequestLogger.close, checks={"logs": _check_logs})
    notices = add(Notices(logger), start=Notices.open)
    keys = _make_keys(settings, notices, clock)
    ledger = add(_open_ledger(settings, clock, monotonic), close=Ledger.close, checks={"ledger": _check_ledger})
    add((settings.data_dir, settings.log_dir), checks={"disk": _check_disk})
    limiter_table = ClientTable(settings.rate_limit_cache_size, monotonic=monotonic)
    journal = add(_make_journal(settings, notices, clock), close=ResponseJournal.close)
    own_cache = add(
        _make_cache(settings, journal, clock, monotonic), start=lambda cache, _threads: cache.restore(journal.load())
    )
    own_limiter = RateLimiter(limiter_table, monotonic=monotonic)
    limiter: AnyLimiter = own_limiter
    cache: AnyCache = own_cache
    spend = SpendMeter()
    redis = _make_redis(settings, notices)
    if redis is not None:
        limiter = SharedRateLimiter(redis, own_limiter, max_size=settings.rate_limit_cache_size, monotonic=monotonic)
        cache = _share_cache(settings, redis, own_cache, clock)
        redis.on_beat(cache.sync)
        redis.on_beat(SharedSpend(redis, spend).sync)
        add(redis, start=lambda link, _threads: link.open(), close=RedisLink.close, checks={"redis": _check_redis})
    counter = TokenCounter()
    drift = add(DriftMeter(estimate_apart), close=DriftMeter.close)
    recorder = CostRecorder(
        ledger,
        _load_prices(settings),
        counter,
        spend,
        drift,
        clock=clock,
        monotonic=monotonic,
        warn=notices.reporter("billed_past_bound"),
    )
    _note_missing_price(settings, recorder, notices, clock)
    maintenance = add(
        LedgerMaintenance(
            ledger,
            recorder,
            retention_days=settings.usage_retention_days,
            report=notices.reporter("ledger_upkeep"),
            clock=clock,
            monotonic=monotonic,
        ),
        start=lambda maintenance, _threads: maintenance.start(),
        close=LedgerMaintenance.close,
    )
    budgets = Budgets(settings)
    alerts = add(
        BudgetAlerts(
            ledger,
            lambda: budgets.all(keys.keys()),
            percents=settings.budget_alerts_percent,
            webhook=_make_webhook(settings),
            report=notices.reporter("budget_alert"),
            clock=clock,
        ),
        start=BudgetAlerts.start,
        close=BudgetAlerts.close,
    )
    admission = add(
        Admission(queue_seconds=settings.gemini_queue_seconds, monotonic=monotonic),
        start=lambda admission, threads: admission.resize(slots(settings, threads), threads),
    )
    workers = add(  # calls that were cut are settled while there is a ledger
        Workers(), start=lambda workers, threads: workers.open(slots(settings, threads)), close=Workers.shutdown
    )
    model = add(_make_model(settings), close=_close_model, checks={"backend": _check_model})
    chain = add(
        make_chain(settings, clock=clock, monotonic=monotonic, warn=notices.reporter("model_swapped")),
        checks={"model": check_chain},
    )
    breakers = add(Breakers(lambda: CircuitBreaker(monotonic=monotonic)), checks={"breaker": _check_breaker})
    stopping = threading.Event()
    attempts = Attempts(
        recorder,
        admission=admission,
        breakers=breakers,
        retrier=Retrier(
            max_attempts=settings.gemini_max_attempts,
            max_wait_seconds=settings.gemini_max_wait_seconds,
            budget=RetryBudget(monotonic=monotonic),
            monotonic=monotonic,
            wait=stopping.wait,
        ),
        clock=clock,
        monotonic=monotonic,
    )
    keys_of_answers = AnswerKeys(settings.cache_scope == "key", _answering_endpoint(settings))
    completions = Completions(
        chain,
        model,
        CachePolicy(cache, recorder),
        attempts,
        admission=admission,
        pool=workers,
        waiting=waiting,
        keys=keys_of_answers,
        monotonic=monotonic,
    )
    add(WarmUp(ledger, model), start=WarmUp.start)
    free_look = add(FreeLook(chain, model, monotonic=monotonic), start=FreeLook.start, close=FreeLook.close)

    def stop_calls(completions: Completions) -> None:
        stopping.set()
        completions.close()
        workers.shutdown(wait=False)

    add(completions, close=stop_calls)
    return Service(
        parts=parts,
        notices=notices,
        logger=logger,
        keys=keys,
        clients=ClientResolver(settings.trusted_proxies, notices.reporter("trusted_proxies")),
        bursts=BurstDetector(monotonic=monotonic),
        limiter_table=limiter_table,
        limiter=limiter,
        cache=cache,
        ledger=ledger,
        spend=spend,
        redis=redis,
        drift=drift,
        recorder=recorder,
        maintenance=maintenance,
        budgets=budgets,
        alerts=alerts,
        breakers=breakers,
        chain=chain,
        free_look=free_look,
        admission=admission,
        completions=completions,
        dry_runs=DryRuns(chain, model, keys_of_answers, cache, recorder, ledger, clock=clock, monotonic=monotonic),
    )


def slots(settings: Settings, threads: int) -> int:
    """Return how many calls to Gemini may run at once on a server with so many threads; by default half of them."""
    return settings.gemini_max_concurrency or max(1, threads // 2)


# Parts that belong to nobody else -------------------------------------------------------------------------------------


class Notices:
    """Logs what the parts report; what comes before the log has its thread and files is kept until then."""

    def __init__(self, logger: RequestLogger) -> None:
        self.early: list[tuple[str, str]] = []
        """What was reported so far and is not logged yet: event and message."""
        self._logger = logger
        self._is_open = False

    def report(self, event: str, message: str) -> None:
        """Log `message`, at once or when the service opens."""
        if self._is_open:
            self._logger.operational(event, message)
        else:
            self.early.append((event, message))

    def reporter(self, event: str) -> Callable[[str], None]:
        """Return a function that reports its message as `event`."""
        return lambda message: self.report(event, message)

    def open(self, _threads: int) -> None:
        """Log what was kept, and whatever comes from now on."""
        self._is_open = True
        while self.early:
            self.report(*self.early.pop(0))


class Budgets:
    """The budgets that requests must stay within: the service's own, and those of the caller's key."""

    def __init__(self, settings: Settings) -> None:
        self.of_all = tuple(
            _budgets(SERVICE_SCOPE, _nano(settings.daily_budget_usd), _nano(settings.monthly_budget_usd))
        )

    def all(self, keys: Iterable[ApiKey]) -> Iterator[Budget]:
        """Yield the service's budgets, and those of each of `keys`."""
        yield from self.of_all
        for key in keys:
            yield from _budgets(key_scope(key.name), key.daily_budget, key.monthly_budget)

    def of(self, key: ApiKey | None) -> tuple[Budget, ...]:
        """Return the budgets of a request of `key`."""
        if key is None or (key.daily_budget is None and key.monthly_budget is None):
            return self.of_all
        return (*self.of_all, *_budgets(key_scope(key.name), key.daily_budget, key.monthly_budget))


def _nano(usd: float | None) -> int | None:
    return None if usd is None else round(usd * NANO)


def _budgets(scope: str, daily: int | None, monthly: int | None) -> Iterator[Budget]:
    if daily is not None:
        yield Budget(scope, daily)
    if monthly is not None:
        yield Budget(scope, monthly, "month")


class Workers(Executor):
    """A pool of threads whose size is known only once the server is."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def open(self, size: int) -> None:
        """Take work from now on, in at most `size` threads."""
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="gemini")

    def submit(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have `work` done. Raises RuntimeError before `open` and after `shutdown`."""
        if self._pool is None:
            raise RuntimeError("the service has not been opened")
        return self._pool.submit(work, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work and, with `wait`, return when all that was taken is done."""
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)


class WarmUp:
    """Loads what is heavy before the first miss needs it. What fails here fails again, and is told, at its use."""

    def __init__(self, ledger: Ledger, model: Gemini | None) -> None:
        self._ledger = ledger
        self._model = model

    def start(self, _threads: int) -> None:
        """Load in a thread of its own."""
        threading.Thread(target=self._load, name="warm-up", daemon=True).start()

    def _load(self) -> None:
        with contextlib.suppress(Exception):
            self._ledger.prepare()
        if self._model is not None:
            with contextlib.suppress(Exception):
                self._model.warm_up()
        process.freeze()


# How parts are made ---------------------------------------------------------------------------------------------------


def _make_logger(settings: Settings) -> RequestLogger:
    return RequestLogger(
        settings.log_dir,
        max_bytes=settings.log_max_bytes,
        backup_count=settings.log_backup_count,
        retention_days=settings.log_retention_days,
        prompts=settings.log_prompts,
        slow_request_seconds=settings.slow_request_seconds,
        secrets=settings.secrets,
    )


def _make_keys(settings: Settings, notices: Notices, clock: Clock) -> KeyRing:
    return KeyRing(
        dict(settings.api_keys),
        settings.api_keys_file,
        settings.admin_api_key,
        clock=clock,
        on_problem=notices.reporter("api_keys_file"),
    )


def _make_webhook(settings: Settings) -> Webhook | None:
    if settings.budget_webhook_url is None:
        return None
    return Webhook(settings.budget_webhook_url, settings.budget_webhook_secret or "")


def _make_journal(settings: Settings, notices: Notices, clock: Clock) -> ResponseJournal:
    warn = notices.reporter("response_cache")
    file = JournalFile(
        settings.cache_dir,
        max_bytes=2 * settings.response_cache_max_bytes,
        stale_seconds=settings.response_cache_stale_seconds,
        clock=clock,
        warn=warn,
    )
    return ResponseJournal(file, warn=warn)


def _make_cache(settings: Settings, journal: ResponseJournal, clock: Clock, monotonic: Clock) -> AnswerStore:
    return AnswerStore(
        settings.response_cache_size,
        settings.response_cache_ttl_seconds,
        max_bytes=settings.response_cache_max_bytes,
        stale_seconds=settings.response_cache_stale_seconds,
        journal=journal,
        clock=clock,
        monotonic=monotonic,
    )


def _share_cache(settings: Settings, redis: RedisLink, own: AnswerStore, clock: Clock) -> TieredCache:
    return TieredCache(
        redis,
        own,
        ttl=settings.response_cache_ttl_seconds,
        stale_seconds=settings.response_cache_stale_seconds,
        clock=clock,
    )


def _answering_endpoint(settings: Settings) -> str:
    """Return the part of the cache key that says which server answers; the offline model is one on every port."""
    return "" if settings.is_offline else settings.gemini_api_endpoint or ""


def _make_model(settings: Settings) -> Gemini | None:
    if settings.google_api_key is None:
        return None
    return Gemini(
        api_key=settings.google_api_key,
        model=settings.gemini_model,
        endpoint=settings.gemini_api_endpoint,
        kind=settings.gemini_client,
        max_connections=settings.threads,
    )


def _close_model(model: Gemini | None) -> None:
    if model is not None:
        model.close()


def _open_ledger(settings: Settings, clock: Clock, monotonic: Clock) -> Ledger:
    try:
        return open_ledger(
            settings.ledger_location,
            sync=settings.ledger_sync,
            calendar=Calendar(find_zone(settings.budget_timezone) or UTC),
            clock=clock,
            monotonic=monotonic,
        )
    except ValueError as problem:
        raise SettingsError(str(problem)) from None


def _make_redis(settings: Settings, notices: Notices) -> RedisLink | None:
    if settings.redis_url is None:
        return None
    namespace = "mtllm-offline" if settings.is_offline else "mtllm"  # canned answers and costs stay apart
    try:
        return RedisLink(settings.redis_url, warn=notices.reporter("redis"), namespace=namespace)
    except ImportError:
        problem = "needs the redis package: pip install -r requirements-scale.txt"
    except ValueError:  # its text may quote a password
        problem = "is not a URL that redis understands"
    raise SettingsError(f"REDIS_URL: {problem}")


def _load_prices(settings: Settings) -> PriceTable:
    try:
        return PriceTable.in_force(
            settings.prices_file, settings.input_price_per_million, settings.output_price_per_million
        )
    except (OSError, ValueError) as problem:
        raise SettingsError(f"PRICES_FILE: {problem}") from None


def _note_missing_price(settings: Settings, recorder: CostRecorder, notices: Notices, clock: Clock) -> None:
    if recorder.price_of(settings.gemini_model, clock()) is None:
        notices.report(
            "unpriced_model",
            f"No price is known for the model {settings.gemini_model}: calls are recorded as unpriced, at $0,"
            " and refused where there is a budget. Add it to PRICES_FILE, or set both price settings.",
        )


# What readiness asks --------------------------------------------------------------------------------------------------


def _check_model(model: Gemini | None) -> CheckResult:
    return judge(model is not None, "no Gemini key: set GOOGLE_API_KEY or start with --offline")


def _check_ledger(ledger: Ledger) -> CheckResult:
    health = ledger.health()
    return judge(health.writable, f"cannot be written: {health.error}")


def _check_logs(logger: RequestLogger) -> CheckResult:
    health = logger.health()
    return judge(health.writable, f"cannot be written: {health.last_error}")


def _check_disk(folders: tuple[Path, ...]) -> CheckResult:
    try:
        free = min(map(process.free_bytes, folders))
    except OSError as problem:
        return judge(False, f"cannot be looked at: {problem.strerror}")
    return judge(free >= LEAST_FREE_BYTES, f"only {free} bytes are free")


def check_chain(chain: ModelChain) -> CheckResult:
    """Return whether a model of the chain is served to this key, as far as looks and calls have told."""
    first, answering = chain.standings()[0], chain.answering()
    refusal = answering.refusal
    if refusal is not None:
        fails = refusal.failure is not QuotaExhausted
        return CheckResult("fail" if fails else "degraded", f"{answering.model} {refusal.sentence}")
    if first.refusal is not None:
        return CheckResult("degraded", f"{first.model} {first.refusal.sentence}; {answering.model} answers")
    return OK


def _check_breaker(breakers: Breakers) -> CheckResult:
    state = breakers.snapshot().state
    return judge(state == "closed", f"{state}: Gemini is failing", otherwise="degraded")


def _check_redis(redis: RedisLink) -> CheckResult:
    alone = "does not answer in time: cache, limits and total are this process's own"
    return judge(redis.health().up, alone, otherwise="degraded")
