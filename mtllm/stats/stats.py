"""What /stats shows of the running process beside the documented keys: each part's own account, as JSON.

requests_by_task   finished task requests since the start: `paid`, `hit`, `shared`, `stale`, and `errors` by code
latency            `hit`, `miss` (waited for Gemini) and `own` (without Gemini and queue): `samples` (at most the last
                   1000), `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`
token_estimate     tiktoken beside Gemini: `samples` compared, `input_ratio` and `output_ratio` (estimate over report,
                   null before the first), `dropped` (not compared, for lack of time)
budget             `limit`, `spent`, `reserved` in dollars of this UTC day; null without DAILY_BUDGET_USD
breaker            `state` (closed, open, half-open), `consecutive_failures`, `retry_in_seconds`, `times_opened`
admission          places for requests that wait for Gemini: `in_use`, `places`; since the start `shed` (requests) and
                   `abandoned` (calls given up at their deadline, or with their stream's client)
last_errors        by code, the latest first, no 404: `code`, `count` since the start, and `latest`, at most 5, the
                   last one first: `timestamp`, `status`, `method`, `path`, `request_id`
caller             who asks: `key`, the name of the API key (null without one), and `admin`
service            `model`, `offline`, `in_flight` (requests, this one included), `draining`
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mtllm.domain.completion import Origin
from mtllm.domain.errors import RateLimited
from mtllm.domain.money import dollars
from mtllm.domain.times import rfc3339
from mtllm.http.lifecycle import Lifecycle
from mtllm.ledger.ledger import SERVICE_SCOPE
from mtllm.logs.writer import redact
from mtllm.security.access import ApiKey
from mtllm.stats.metrics import Metrics, RouteFigures
from mtllm.stats.recent import ErrorsOfCode, Percentiles, Recent
from mtllm.tasks import TASKS
from mtllm.wiring import Service

LONGEST_PATH = 200


def live(
    service: Service, lifecycle: Lifecycle, metrics: Metrics, recent: Recent, caller: ApiKey | None
) -> dict[str, Any]:
    """The keys of the module's table, for `caller`. Raises LedgerUnavailable where a budget cannot be read."""
    return {
        "requests_by_task": _requests_by_task(metrics),
        "latency": _latency(recent),
        "token_estimate": _token_estimate(service),
        "budget": _budget(service),
        "breaker": _breaker(service),
        "admission": _admission(service),
        "last_errors": [_errors_of_code(errors, service.settings.secrets) for errors in recent.errors()],
        "caller": {"key": caller.name if caller else None, "admin": caller is not None and caller.admin},
        "service": {
            "model": service.settings.gemini_model,
            "offline": service.settings.is_offline,
            "in_flight": lifecycle.in_flight,
            "draining": lifecycle.draining,
        },
    }


def limiter(service: Service, recent: Recent) -> dict[str, Any]:
    """What `rate_limit_stats` has beside its documented keys: the `limits` of callers without their own, `protected`
    (clients that are or just were at a limit), and `rejected` (requests answered with 429 since the start)."""
    return {
        "limits": [
            {"requests": limit.amount, "seconds": limit.window_seconds} for limit in service.settings.rate_limits
        ],
        "protected": service.rate_limit_cache.get_stats()["protected"],
        "rejected": sum(errors.count for errors in recent.errors() if errors.code == RateLimited.code),
    }


def _requests_by_task(metrics: Metrics) -> dict[str, dict[str, Any]]:
    routes = metrics.snapshot().routes
    requests: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        figures = {origin: routes.get((task.path, origin), RouteFigures()) for origin in Origin}
        answers = {
            origin.value: figures[origin].statuses.total() - figures[origin].codes.total()
            for origin in Origin
            if origin is not Origin.NONE
        }
        requests[task.name] = {**answers, "errors": sum((each.codes for each in figures.values()), Counter())}
    return requests


def _latency(recent: Recent) -> dict[str, Any]:
    latencies = recent.latencies()
    return {
        "hit": _milliseconds(latencies.hit),
        "miss": _milliseconds(latencies.miss),
        "own": _milliseconds(latencies.own),
    }


def _milliseconds(percentiles: Percentiles) -> dict[str, float]:
    return {
        "samples": percentiles.samples,
        "p50_ms": round(percentiles.p50 * 1000, 3),
        "p95_ms": round(percentiles.p95 * 1000, 3),
        "p99_ms": round(percentiles.p99 * 1000, 3),
        "max_ms": round(percentiles.longest * 1000, 3),
    }


def _token_estimate(service: Service) -> dict[str, Any]:
    drift = service.drift.snapshot()
    return {
        "samples": drift.samples,
        "input_ratio": drift.input_ratio,
        "output_ratio": drift.output_ratio,
        "dropped": drift.dropped,
    }


def _budget(service: Service) -> dict[str, float] | None:
    limit = service.settings.daily_budget_usd
    if limit is None:
        return None
    state = service.ledger.budget_state(SERVICE_SCOPE, service.clock())
    return {"limit": limit, "spent": dollars(state.spent), "reserved": dollars(state.reserved)}


def _breaker(service: Service) -> dict[str, Any]:
    breaker = service.breaker.snapshot()
    return {
        "state": breaker.state,
        "consecutive_failures": breaker.consecutive_failures,
        "retry_in_seconds": round(breaker.retry_in, 1),
        "times_opened": breaker.times_opened,
    }


def _admission(service: Service) -> dict[str, int]:
    state = service.admission.state()
    return {"in_use": state.in_use, "places": state.places, "shed": state.shed, "abandoned": state.abandoned}


def _errors_of_code(errors: ErrorsOfCode, secrets: tuple[str, ...]) -> dict[str, Any]:
    return {
        "code": errors.code,
        "count": errors.count,
        "latest": [
            {
                "timestamp": rfc3339(seen.timestamp),
                "status": seen.status,
                "method": seen.method,
                "path": redact(seen.path[:LONGEST_PATH], secrets),
                "request_id": redact(seen.request_id, secrets),
            }
            for seen in reversed(errors.latest)
        ],
    }
