"""Builds the body of /stats from the parts' own snapshots: one function for each of its keys."""

from __future__ import annotations

from collections import Counter

from mtllm.billing.prices import Price
from mtllm.completions.chain import ModelStanding
from mtllm.domain.completion import Origin
from mtllm.domain.errors import RateLimited
from mtllm.domain.money import dollars
from mtllm.domain.periods import Period
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import SERVICE_SCOPE, WindowUsage
from mtllm.logs.writer import redact
from mtllm.security.access import ApiKey
from mtllm.stats import schemas
from mtllm.stats.metrics import Observed, RouteFigures
from mtllm.stats.recent import DurationPercentiles, ErrorSeen
from mtllm.stats.sources import StatsSources

LONGEST_PATH = 200


def collect_statistics(sources: StatsSources, caller: ApiKey | None) -> schemas.Statistics:
    """Return the figures of this moment, for `caller`. Raises LedgerUnavailable where the ledger cannot be read."""
    sources.ledger.flush()
    latest = sources.recent.errors()  # before the counts, which then hold every error that is shown
    observed = sources.metrics.snapshot()
    statistics = schemas.Statistics(
        cache_stats=_cache(sources),
        usage_stats=_windows(sources),
        rate_limit_stats=_limiter(sources, observed),
        overall_stats=_all_time(sources),
        requests_by_task={task.name: _requests(observed, task.path) for task in sources.tasks},
        latency=_latency(sources),
        token_estimate=_estimate(sources),
        budget=_budget(sources, "day", sources.settings.daily_budget_usd),
        monthly_budget=_budget(sources, "month", sources.settings.monthly_budget_usd),
        models=_models(sources),
        fallbacks=[
            schemas.FallbackFigures(requested_model=asked, model=answered, reason=reason, answers=count)
            for (asked, answered, reason), count in sorted(observed.fallbacks.items())
        ],
        breaker=_breaker(sources),
        admission=_admission(sources),
        last_errors=[
            _errors(code, _visible(seen, caller), observed, sources.settings.secrets) for code, seen in latest.items()
        ],
        caller=schemas.CallerFigures(key=caller.name if caller else None, admin=caller is not None and caller.admin),
        service=schemas.ServiceFigures(
            model=sources.settings.gemini_model,
            offline=sources.settings.is_offline,
            in_flight=sources.lifecycle.in_flight,
            draining=sources.lifecycle.draining,
            admin_key=sources.settings.admin_api_key is not None,
        ),
    )
    if sources.redis is not None:
        health = sources.redis.health()
        statistics.redis_stats = schemas.RedisFigures(up=health.up, failures=health.failures, refused=health.refused)
    return statistics


def _cache(sources: StatsSources) -> schemas.CacheFigures:
    stats = sources.cache.get_stats()
    return schemas.CacheFigures(**stats, cache_hit_ratio=stats["hit_ratio"])


def _windows(sources: StatsSources) -> schemas.Windows:
    now = sources.clock()
    return schemas.Windows(
        last_hour=_window(sources.ledger.window(1, now)),
        last_24_hours=_window(sources.ledger.window(24, now)),
        last_30_days=_window(sources.ledger.window(720, now)),
    )


def _window(usage: WindowUsage) -> schemas.WindowFigures:
    return schemas.WindowFigures(
        period_hours=usage.hours,
        total_requests=usage.requests,
        cached_requests=usage.cached_requests,
        total_cost=dollars(usage.cost),
        cost_savings_from_cache=dollars(usage.saved),
        total_tokens=schemas.TokenSums(input=usage.input_tokens, output=usage.output_tokens),
    )


def _limiter(sources: StatsSources, observed: Observed) -> schemas.LimiterFigures:
    table = sources.limiter_table.get_stats()
    return schemas.LimiterFigures(
        cache_size=table["size"],
        max_size=table["max_size"],
        limits=[
            schemas.LimitFigures(requests=limit.amount, seconds=limit.window_seconds)
            for limit in sources.settings.rate_limits
        ],
        protected=table["protected"],
        rejected=observed.errors(RateLimited.code),
    )


def _all_time(sources: StatsSources) -> schemas.AllTimeFigures:
    totals = sources.ledger.totals()
    return schemas.AllTimeFigures(
        total_requests_all_time=totals.requests,
        cached_requests_all_time=totals.cached_requests,
        total_cost_all_time=dollars(totals.cost),
        total_tokens_all_time=schemas.TokenSums(input=totals.input_tokens, output=totals.output_tokens),
        cache_savings_all_time=dollars(totals.saved),
        unpriced_requests_all_time=totals.unpriced_requests,
        total_cost_since_start=dollars(sources.spend.total()),
    )


def _requests(observed: Observed, path: str) -> schemas.TaskFigures:
    routes = {origin: observed.routes.get((path, origin), RouteFigures()) for origin in Origin}
    answers = {origin: figures.statuses.total() - figures.codes.total() for origin, figures in routes.items()}
    return schemas.TaskFigures(
        paid=answers[Origin.PAID],
        hit=answers[Origin.HIT],
        shared=answers[Origin.SHARED],
        stale=answers[Origin.STALE],
        errors=sum((figures.codes for figures in routes.values()), Counter()),
    )


def _latency(sources: StatsSources) -> schemas.LatencyFigures:
    latencies = sources.recent.latencies()
    return schemas.LatencyFigures(
        hit=_milliseconds(latencies.hit), miss=_milliseconds(latencies.miss), own=_milliseconds(latencies.own)
    )


def _milliseconds(durations: DurationPercentiles) -> schemas.Percentiles:
    return schemas.Percentiles(
        samples=durations.samples,
        p50_ms=round(durations.p50 * 1000, 3),
        p95_ms=round(durations.p95 * 1000, 3),
        p99_ms=round(durations.p99 * 1000, 3),
        max_ms=round(durations.longest * 1000, 3),
    )


def _estimate(sources: StatsSources) -> schemas.EstimateFigures:
    drift = sources.drift.snapshot()
    return schemas.EstimateFigures(
        samples=drift.samples, input_ratio=drift.input_ratio, output_ratio=drift.output_ratio, dropped=drift.dropped
    )


def _budget(sources: StatsSources, period: Period, limit: float | None) -> schemas.BudgetPace | None:
    if limit is None:
        return None
    now, calendar = sources.clock(), sources.ledger.calendar
    state = sources.ledger.budget_state(SERVICE_SCOPE, now, period)
    spent, start, end = dollars(state.spent), calendar.start(period, now), calendar.end(period, now)
    used_up = start + (now - start) * limit / spent if spent else end
    return schemas.BudgetPace(
        limit=limit,
        spent=spent,
        reserved=dollars(state.reserved),
        ends_at=rfc3339(end),
        used_up_at=rfc3339(max(now, used_up)) if used_up < end else None,
    )


def _models(sources: StatsSources) -> list[schemas.ModelFigures]:
    answering = sources.chain.answering().model
    return [_model(sources, standing, answering) for standing in sources.chain.standings()]


def _model(sources: StatsSources, standing: ModelStanding, answering: str) -> schemas.ModelFigures:
    now = sources.clock()
    price, following = (
        sources.recorder.price_of(standing.model, now),
        sources.recorder.next_price_of(standing.model, now),
    )
    return schemas.ModelFigures(
        model=standing.model,
        answers=standing.model == answering,
        refusal=standing.refusal.sentence if standing.refusal else None,
        input_price=dollars(price.input) if price else None,
        output_price=dollars(price.output) if price else None,
        next_price=_next_price(following) if following else None,
    )


def _next_price(price: Price) -> schemas.NextPrice:
    return schemas.NextPrice(
        since=str(price.since), input_price=dollars(price.input), output_price=dollars(price.output)
    )


def _breaker(sources: StatsSources) -> schemas.BreakerFigures:
    breaker = sources.breakers.snapshot()
    return schemas.BreakerFigures(
        state=breaker.state,
        consecutive_failures=breaker.consecutive_failures,
        retry_in_seconds=round(breaker.retry_in, 1),
        times_opened=breaker.times_opened,
    )


def _admission(sources: StatsSources) -> schemas.AdmissionFigures:
    state = sources.admission.state()
    return schemas.AdmissionFigures(
        in_use=state.in_use,
        places=state.slots,
        queued=state.queued,
        waited=state.waited,
        shed=state.shed,
        abandoned=state.abandoned,
    )


def _errors(
    code: str, latest: tuple[ErrorSeen, ...], observed: Observed, secrets: tuple[str, ...]
) -> schemas.ErrorFigures:
    return schemas.ErrorFigures(
        code=code, count=observed.errors(code), latest=[_as_body(error, secrets) for error in reversed(latest)]
    )


def _visible(errors: tuple[ErrorSeen, ...], caller: ApiKey | None) -> tuple[ErrorSeen, ...]:
    """Return the errors that a caller may see: a key its own, the admin and a service without keys all."""
    if caller is None or caller.admin:
        return errors
    return tuple(error for error in errors if error.client == caller.name)


def _as_body(error: ErrorSeen, secrets: tuple[str, ...]) -> schemas.SeenError:
    return schemas.SeenError(
        timestamp=rfc3339(error.timestamp),
        status=error.status,
        method=error.method,
        path=redact(error.path[:LONGEST_PATH], secrets),
        request_id=redact(error.request_id, secrets),
    )
