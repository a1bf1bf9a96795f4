"""Renders the observed requests and the state of every part as Prometheus metric families.

Names follow prometheus.io/docs/practices/naming: base units, `_total` on counters. Labels are routes, tasks, statuses,
origins, error codes and models: each from a list of ours or capped, never an address, a key or an id.

A scrape waits for nothing: it takes the parts' own snapshots, and reads the ledger's sums only while it is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mtllm.domain.errors import ApiError, LedgerUnavailable, RateLimited
from mtllm.domain.money import dollars
from mtllm.ledger.ledger import SERVICE_SCOPE
from mtllm.resilience.breaker import State
from mtllm.stats.metrics import BUCKETS, Histogram, Observed
from mtllm.stats.sources import MetricsSources
from mtllm.tasks import Task


def _codes(kind: type[ApiError]) -> Iterator[str]:
    for each in kind.__subclasses__():
        yield from _codes(each)
        if getattr(each, "status", 0) >= 500 and hasattr(each, "code"):
            yield each.code


FAILURES = tuple(sorted(_codes(ApiError)))
"""The codes of failures that are not the caller's: every task shows them from the start, since a rate does not see the
step from nothing to 1."""

_BOUNDS = (*map(str, BUCKETS), "+Inf")
BREAKER_STATES = get_args(State)


class Exposition:
    """Renders the page, with a registry of its own, so that nothing else of the process shows up in it."""

    def __init__(self, sources: MetricsSources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ServiceCollector(sources))
        ProcessCollector(registry=self._registry)

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type: OpenMetrics where `accept` asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class ServiceCollector(Collector):
    """One service's families, made anew at every scrape."""

    def __init__(self, sources: MetricsSources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield every family, in the order of the page."""
        observed = self._sources.observed.snapshot()
        yield from _requests(observed, self._sources.tasks)
        yield from _money(observed)
        yield _counter("spend_usd", "Dollars spent, as in X-Cost-Overall", dollars(self._sources.spend.total()))
        lifecycle = self._sources.lifecycle
        yield _gauge("requests_in_flight", "Requests not yet closed, streams included", lifecycle.in_flight)
        yield _gauge("draining", "1 while the process is shutting down", lifecycle.draining)
        yield from self._cache()
        yield from self._limiter(observed)
        yield _fallbacks(observed)
        yield from self._breaker()
        yield from self._redis()
        yield from self._admission()
        yield _counter("budget_alerts", "Percentages of budgets that were told", self._sources.alerts.told)
        yield _counter("budget_alert_posts_failed", "POSTs of them not taken", self._sources.alerts.failed_posts)
        yield from self._ledger()
        yield from self._log()

    def _cache(self) -> Iterator[Metric]:
        stats = self._sources.cache.get_stats()
        yield _gauge("cache_entries", "Answers kept", stats["size"])
        yield _gauge("cache_max_entries", "Answers kept at most", stats["max_size"])
        yield _gauge("cache_bytes", "Memory that the kept answers take", stats["bytes"])
        yield _gauge("cache_max_bytes", "Memory that they may take", stats["max_bytes"] or 0)
        yield _counter("cache_hits", "Requests answered from the cache or by one in flight", stats["hits"])
        yield _counter("cache_misses", "Requests that were not", stats["misses"])
        yield _counter("cache_evictions", "Answers that had to go for others", stats["evictions"])
        yield _counter("cache_expirations", "Answers that were found past their time", stats["expirations"])

    def _limiter(self, observed: Observed) -> Iterator[Metric]:
        stats = self._sources.limiter_table.get_stats()
        rejected = sum(figures.codes[RateLimited.code] for figures in observed.routes.values())
        yield _gauge("limiter_clients", "Clients in the table", stats["size"])
        yield _gauge("limiter_max_clients", "Clients that the table holds at most", stats["max_size"])
        yield _gauge("limiter_protected_clients", "Clients that are, or just were, at a limit", stats["protected"])
        yield _counter("limiter_evictions", "Clients that had to go for others", stats["evictions"])
        yield _counter("limiter_rejections", "Requests answered with 429", rejected)

    def _redis(self) -> Iterator[Metric]:
        redis = self._sources.redis
        if redis is not None:
            health = redis.health()
            yield _gauge("redis_up", "1 while Redis answers in time", health.up)
            yield _counter("redis_failures", "Questions that Redis did not answer in time", health.failures)
            yield _counter("redis_refused", "Questions not asked, because Redis was away", health.refused)

    def _breaker(self) -> Iterator[Metric]:
        breaker = self._sources.breakers.snapshot()
        states = GaugeMetricFamily("mtllm_breaker_state", "1 for the state that holds", labels=["state"])
        for state in BREAKER_STATES:
            states.add_metric([state], state == breaker.state)
        yield states
        yield _gauge("breaker_consecutive_failures", "Failed requests in a row", breaker.consecutive_failures)
        yield _counter("breaker_opened", "How often it opened", breaker.times_opened)

    def _admission(self) -> Iterator[Metric]:
        state = self._sources.admission.state()
        yield _gauge("admission_places", "Calls to Gemini that may run at once", state.slots)
        yield _gauge("admission_in_use", "Calls to Gemini under way", state.in_use)
        yield _gauge("admission_queued", "Requests that wait for a slot", state.queued)
        yield _counter("admission_waited", "Requests that got a slot after a wait", state.waited)
        yield _counter("admission_shed", "Requests refused because no slot came free in time", state.shed)
        yield _counter("admission_abandoned", "Calls given up while Gemini was still at them", state.abandoned)

    def _ledger(self) -> Iterator[Metric]:
        health = self._sources.ledger.health()
        yield _gauge("ledger_writable", "1 while the ledger can be written", health.writable)
        yield _gauge("ledger_lag_seconds", "How long the oldest hit has been waiting for the disk", health.lag_seconds)
        yield _gauge("ledger_queued_hits", "Hits that wait for the disk", health.queued_hits)
        yield _counter("ledger_dropped_hits", "Hits lost because the disk was gone for too long", health.dropped_hits)
        if health.writable:
            try:
                families = [*self._totals(), *self._budget()]
            except LedgerUnavailable:
                return
            yield from families

    def _totals(self) -> Iterator[Metric]:
        """Yield the ledger's sums, as gauges: processes that share a ledger all show the same, so don't add them up."""
        totals = self._sources.ledger.totals()
        yield _gauge("ledger_cost_usd", "Dollars paid, all time", dollars(totals.cost))
        yield _gauge("ledger_saved_usd", "Dollars that cached answers did not cost, all time", dollars(totals.saved))
        yield _gauge("ledger_requests", "Answers given, all time, cached ones included", totals.requests)
        yield _gauge("ledger_cached_requests", "Answers that cost nothing, all time", totals.cached_requests)
        yield _gauge("ledger_unpriced_requests", "Paid calls without a known price", totals.unpriced_requests)
        tokens = GaugeMetricFamily("mtllm_ledger_tokens", "Tokens of paid calls, all time", labels=["kind"])
        tokens.add_metric(["input"], totals.input_tokens)
        tokens.add_metric(["output"], totals.output_tokens)
        yield tokens

    def _budget(self) -> Iterator[Metric]:
        now, ledger = self._sources.clock(), self._sources.ledger
        if (limit := self._sources.daily_budget) is not None:
            day = ledger.budget_state(SERVICE_SCOPE, now)
            yield _gauge("budget_limit_usd", "Most that all requests of a day may cost", limit)
            yield _gauge("budget_spent_usd", "Dollars paid today", dollars(day.spent))
            yield _gauge("budget_reserved_usd", "Dollars reserved today for calls not settled", dollars(day.reserved))
        if (limit := self._sources.monthly_budget) is not None:
            month = ledger.budget_state(SERVICE_SCOPE, now, "month")
            yield _gauge("monthly_budget_limit_usd", "Most that all requests of a month may cost", limit)
            yield _gauge("monthly_budget_spent_usd", "Dollars paid this month", dollars(month.spent))
            yield _gauge("monthly_budget_reserved_usd", "Dollars reserved this month", dollars(month.reserved))

    def _log(self) -> Iterator[Metric]:
        health = self._sources.logger.health()
        yield _gauge("log_writable", "1 while the log files can be written", health.writable)
        yield _gauge("log_queued_events", "Events that wait for the disk", health.queued)
        yield _counter("log_dropped_events", "Events that found the queue full", health.dropped)
        yield _counter("log_failed_writes", "Lines that a file did not take", health.failed_writes)


def _requests(observed: Observed, tasks: Sequence[Task]) -> Iterator[Metric]:
    by = ["route", "origin"]
    requests = CounterMetricFamily("mtllm_requests", "Finished requests", labels=["route", "status", "origin"])
    errors = CounterMetricFamily("mtllm_errors", "Requests that ended in an error", labels=["route", "code"])
    attempts = CounterMetricFamily("mtllm_upstream_attempts", "Calls to Gemini, retries included", labels=["route"])
    duration = HistogramMetricFamily("mtllm_request_duration_seconds", "From first byte in to last byte out", labels=by)
    own = HistogramMetricFamily("mtllm_own_duration_seconds", "The same without Gemini and queue", labels=by)
    upstream = HistogramMetricFamily("mtllm_upstream_duration_seconds", "At Gemini, retries included", labels=by)
    codes = {(task.path, code): 0 for task in tasks for code in FAILURES}
    calls = {task.path: 0 for task in tasks}
    for (route, origin), figures in sorted(observed.routes.items(), key=lambda item: (item[0][0], item[0][1].value)):
        for status, count in sorted(figures.statuses.items()):
            requests.add_metric([route, str(status), origin.value], count)
        for code, count in figures.codes.items():
            codes[route, code] = codes.get((route, code), 0) + count
        if figures.attempts:
            calls[route] = calls.get(route, 0) + figures.attempts
        for family, histogram in ((duration, figures.duration), (own, figures.own), (upstream, figures.upstream)):
            _add_histogram(family, [route, origin.value], histogram)
    for (route, code), count in sorted(codes.items()):
        errors.add_metric([route, code], count)
    for route, count in calls.items():
        attempts.add_metric([route], count)
    yield from (requests, errors, attempts, duration, own, upstream)


def _add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    below, buckets = 0, []
    for bound, count in zip(_BOUNDS, histogram.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    if below:
        family.add_metric(labels, buckets, histogram.total)


def _money(observed: Observed) -> Iterator[Metric]:
    by = ["task", "model", "kind"]
    tokens = CounterMetricFamily("mtllm_tokens", "Tokens of paid calls", labels=by)
    cost = CounterMetricFamily("mtllm_cost_usd", "Dollars that finished requests cost", labels=by)
    saved = CounterMetricFamily("mtllm_saved_usd", "Dollars that cached answers did not cost", labels=by[:2])
    for (task, model), money in sorted(observed.money.items()):
        tokens.add_metric([task, model, "input"], money.paid.usage.input)
        tokens.add_metric([task, model, "output"], money.paid.usage.output)
        cost.add_metric([task, model, "input"], dollars(money.paid.cost.input))
        cost.add_metric([task, model, "output"], dollars(money.paid.cost.output))
        saved.add_metric([task, model], dollars(money.saved))
    yield from (tokens, cost, saved)


def _fallbacks(observed: Observed) -> Metric:
    by = ["requested_model", "model", "reason"]
    family = CounterMetricFamily("mtllm_fallbacks", "Answers by another model than the one asked for", labels=by)
    for (asked, answered, reason), count in sorted(observed.fallbacks.items()):
        family.add_metric([asked, answered, reason.value], count)
    return family


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mtllm_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"mtllm_{name}", meaning, value=value)
