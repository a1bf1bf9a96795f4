"""/stats: the figures of the running service, as `schemas.Statistics` describes and renders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Flask, Response

from lru_cache import RateLimitCache
from mtllm.billing.prices import SpendMeter
from mtllm.billing.tokens import DriftMeter
from mtllm.http.exchange import current_exchange
from mtllm.http.lifecycle import Lifecycle
from mtllm.ledger.ledger import Ledger
from mtllm.redis_link import RedisLink
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import CircuitBreaker
from mtllm.settings import Settings
from mtllm.stats.body import respond
from mtllm.stats.metrics import Metrics
from mtllm.stats.recent import Recent
from mtllm.tasks import Task
from mtllm.wiring import AnyCache, Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSources:
    """The parts whose figures /stats shows."""

    settings: Settings
    tasks: Sequence[Task]
    clock: Clock
    ledger: Ledger
    cache: AnyCache
    limiter_table: RateLimitCache
    spend: SpendMeter
    redis: RedisLink | None
    drift: DriftMeter
    breaker: CircuitBreaker
    admission: Admission
    lifecycle: Lifecycle
    metrics: Metrics
    recent: Recent


def register(app: Flask, sources: StatsSources) -> None:
    """Add the routes to `app`."""

    def stats() -> Response:
        from mtllm.stats.statistics import collect_statistics  # loads the models: at the first request

        return respond(collect_statistics(sources, current_exchange().key))

    for path in ("/stats", "/api/v1/stats"):
        app.add_url_rule(path, f"stats:{path}", stats)
