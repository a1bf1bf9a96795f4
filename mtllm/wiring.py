"""Everything behind the edge, put together: what the settings say becomes parts, and the parts become a service.

Nothing is opened before `open`, which the first request calls: threads, files and the database belong to the process
that serves, not to the one that imported (or forked).
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mtllm import process
from mtllm.billing.maintenance import LedgerMaintenance
from mtllm.billing.prices import PriceTable, SpendMeter
from mtllm.billing.recorder import CostRecorder
from mtllm.billing.redis_spend import SharedSpend
from mtllm.billing.tokens import DriftMeter, TokenCounter
from mtllm.caching.journal import ResponseJournal
from mtllm.caching.journal_file import JournalFile
from mtllm.caching.redis_tier import TieredCache
from mtllm.caching.responses import AnswerStore
from mtllm.completions.attempts import Attempts
from mtllm.completions.cache_policy import CachePolicy
from mtllm.completions.service import Completions
from mtllm.domain.money import NANO
from mtllm.gemini.client import Gemini
from mtllm.ledger.ledger import SERVICE_SCOPE, Budget, Ledger, key_scope, open_ledger
from mtllm.logs.writer import RequestLogger
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter
from mtllm.ratelimit.redis_limiter import SharedRateLimiter
from mtllm.redis_link import RedisLink
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import CircuitBreaker
from mtllm.resilience.retry import Retrier, RetryBudget
from mtllm.security.access import ApiKey, ClientResolver, KeyRing
from mtllm.security.bursts import BurstDetector
from mtllm.settings import Settings, SettingsError

DEFAULT_THREADS = 4
"""Threads that a server is taken to have which does not tell: as many as waitress has by default."""


class Service:
    """The parts of one service. Those that need the server's thread count exist once it is `open`."""

    completions: Completions
    admission: Admission

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.monotonic = monotonic
        self.threads: int | None = None
        self._early: list[tuple[str, str]] = []
        self.bursts = BurstDetector(monotonic=monotonic)
        self.logger = RequestLogger(
            settings.log_dir,
            max_bytes=settings.log_max_bytes,
            backup_count=settings.log_backup_count,
            retention_days=settings.log_retention_days,
            prompts=settings.log_prompts,
            slow_request_seconds=settings.slow_request_seconds,
            secrets=settings.secrets,
        )
        self.keys = KeyRing(
            dict(settings.api_keys),
            settings.api_keys_file,
            settings.admin_api_key,
            on_problem=self._reporter("api_keys_file"),
        )
        self.clients = ClientResolver(settings.trusted_proxies, self._reporter("trusted_proxies"))
        self.rate_limit_cache = ClientTable(settings.rate_limit_cache_size, monotonic=monotonic)
        own_limiter = RateLimiter(self.rate_limit_cache, monotonic=monotonic)
        self.limiter: RateLimiter | SharedRateLimiter = own_limiter
        warn_of_journal = self._reporter("response_cache")
        journal_file = JournalFile(
            settings.cache_dir,
            max_bytes=2 * settings.response_cache_max_bytes,
            stale_seconds=settings.response_cache_stale_seconds,
            clock=clock,
            warn=warn_of_journal,
        )
        self.journal = ResponseJournal(journal_file, warn=warn_of_journal)
        self.own_cache = AnswerStore(
            settings.response_cache_size,
            settings.response_cache_ttl_seconds,
            max_bytes=settings.response_cache_max_bytes,
            stale_seconds=settings.response_cache_stale_seconds,
            journal=self.journal,
            clock=clock,
            monotonic=monotonic,
        )
        self.cache: AnswerStore | TieredCache = self.own_cache
        self.ledger = _ledger(settings, clock, monotonic)
        self.spend = SpendMeter()
        self.redis = _redis(settings, self._reporter("redis"))
        if self.redis is not None:
            self.limiter = SharedRateLimiter(
                self.redis, own_limiter, max_size=settings.rate_limit_cache_size, monotonic=monotonic
            )
            self.cache = TieredCache(
                self.redis,
                self.own_cache,
                ttl=settings.response_cache_ttl_seconds,
                stale_seconds=settings.response_cache_stale_seconds,
                clock=clock,
            )
            self.redis.on_beat(self.cache.sync)
            self.redis.on_beat(SharedSpend(self.redis, self.spend).sync)
        self.counter = TokenCounter()
        self.drift = DriftMeter(self.counter.count_tokens)
        self.prices = _prices(settings)
        self.recorder = CostRecorder(
            self.ledger,
            self.prices,
            self.counter,
            self.spend,
            self.drift,
            clock=clock,
            monotonic=monotonic,
            warn=self._reporter("billed_past_bound"),
        )
        self.maintenance = LedgerMaintenance(
            self.ledger,
            self.recorder,
            retention_days=settings.usage_retention_days,
            report=self._reporter("ledger_upkeep"),
            clock=clock,
        )
        if self.recorder.price_of(settings.gemini_model, clock()) is None:
            self._report(
                "unpriced_model",
                f"No price is known for the model {settings.gemini_model}: calls are recorded as unpriced, at $0,"
                " and refused where there is a budget. Add it to PRICES_FILE, or set both price settings.",
            )
        self.breaker = CircuitBreaker(monotonic=monotonic)
        self.model = _model(settings)
        self._closing = threading.Event()
        self._service_budgets = _service_budgets(settings)
        self._opening = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def _reporter(self, event: str) -> Callable[[str], None]:
        return lambda message: self._report(event, message)

    def _report(self, event: str, message: str) -> None:
        """Log it; before `open`, keep it until then, since the log has a thread and files."""
        if self.is_open:
            self.logger.operational(event, message)
        else:
            self._early.append((event, message))

    def warnings(self) -> list[str]:
        """What whoever starts the service should know, a sentence each; also what went wrong while it was built."""
        told = [message for _, message in self._early]
        if self.keys.open:
            told.append(
                "No API keys are set, so whoever reaches this service may use it. Set API_KEYS or API_KEYS_FILE."
            )
        return told

    def places(self, threads: int) -> int:
        """How many requests may wait for Gemini on a server with so many threads.

        By default one thread is left for the rest, where there are two.
        """
        return self.settings.gemini_max_concurrency or max(1, threads - 1)

    @property
    def is_open(self) -> bool:
        """The parts that run (pool, cache from disk) are there."""
        return self.threads is not None

    def open(self, threads: int) -> None:
        """Start for a server with so many threads; does nothing when already open."""
        with self._opening:
            if self.is_open:
                return
            places = self.places(threads)
            self._pool = ThreadPoolExecutor(places, thread_name_prefix="gemini")
            self.admission = Admission(places)
            self.completions = self._completions(self._pool)
            self.own_cache.restore(self.journal.load())
            if self.redis is not None:
                self.redis.open()
            self.maintenance.start()
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
            atexit.register(self.close)  # a server that handles SIGTERM itself (gunicorn) ends its workers so
            self.threads = threads
            while self._early:
                self._report(*self._early.pop(0))

    def _completions(self, pool: ThreadPoolExecutor) -> Completions:
        attempts = Attempts(
            self.recorder,
            admission=self.admission,
            breaker=self.breaker,
            retrier=Retrier(
                max_attempts=self.settings.gemini_max_attempts,
                budget=RetryBudget(monotonic=self.monotonic),
                monotonic=self.monotonic,
                wait=self._closing.wait,
            ),
            clock=self.clock,
            monotonic=self.monotonic,
        )
        return Completions(
            self.settings.gemini_model,
            self.model,
            CachePolicy(self.cache, self.recorder),
            attempts,
            admission=self.admission,
            pool=pool,
            key_scoped=self.settings.cache_scope == "key",
            endpoint=_answering_endpoint(self.settings),
            monotonic=self.monotonic,
        )

    def _warm_up(self) -> None:
        """Load what is heavy before the first miss needs it. What fails here fails again, and is told, at its use."""
        with contextlib.suppress(Exception):
            self.ledger.prepare()
        if self.model is not None:
            with contextlib.suppress(Exception):
                self.model.warm_up()
        process.freeze()

    def budgets(self, key: ApiKey | None) -> tuple[Budget, ...]:
        """What a request of `key` must stay within."""
        if key is None or key.daily_budget is None:
            return self._service_budgets
        return (*self._service_budgets, Budget(key_scope(key.name), key.daily_budget))

    def close(self) -> None:
        """End what still runs, and flush and close what outlives the process: answers, money, logs."""
        atexit.unregister(self.close)
        self._closing.set()
        if self._pool is not None:
            self.completions.close()
            self._pool.shutdown(wait=False)
        with contextlib.ExitStack() as closing:  # last in, first out; one part's trouble does not keep the others open
            for part in (self.logger, self.ledger, self.journal, self.redis, self.drift):
                if part is not None:
                    closing.callback(part.close)
            if self._pool is not None:
                closing.callback(self.maintenance.close)
                closing.callback(self._pool.shutdown)  # calls that were cut are settled while there is a ledger
            if self.model is not None:
                closing.callback(self.model.close)


def _answering_endpoint(settings: Settings) -> str:
    """Return the part of the cache key that says which server answers; the offline model is one on every port."""
    return "" if settings.is_offline else settings.gemini_api_endpoint or ""


def _model(settings: Settings) -> Gemini | None:
    if settings.google_api_key is None:
        return None
    return Gemini(
        api_key=settings.google_api_key,
        model=settings.gemini_model,
        endpoint=settings.gemini_api_endpoint,
        kind=settings.gemini_client,
        max_connections=settings.threads,
    )


def _ledger(settings: Settings, clock: Callable[[], float], monotonic: Callable[[], float]) -> Ledger:
    try:
        return open_ledger(settings.ledger_location, sync=settings.ledger_sync, clock=clock, monotonic=monotonic)
    except ValueError as problem:
        raise SettingsError(f"The settings cannot be used:\n  {problem}") from None


def _redis(settings: Settings, warn: Callable[[str], None]) -> RedisLink | None:
    if settings.redis_url is None:
        return None
    try:  # canned answers and their costs stay apart from the real ones
        return RedisLink(settings.redis_url, warn=warn, namespace="mtllm-offline" if settings.is_offline else "mtllm")
    except ImportError:
        problem = "needs the redis package: pip install -r requirements-scale.txt"
    except ValueError:  # its text may quote a password
        problem = "is not a URL that redis understands"
    raise SettingsError(f"The settings cannot be used:\n  REDIS_URL: {problem}")


def _prices(settings: Settings) -> PriceTable:
    try:
        return PriceTable.in_force(
            settings.prices_file, settings.input_price_per_million, settings.output_price_per_million
        )
    except (OSError, ValueError) as problem:
        raise SettingsError(f"The settings cannot be used:\n  PRICES_FILE: {problem}") from None


def _service_budgets(settings: Settings) -> tuple[Budget, ...]:
    if settings.daily_budget_usd is None:
        return ()
    return (Budget(SERVICE_SCOPE, round(settings.daily_budget_usd * NANO)),)
