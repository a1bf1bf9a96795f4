"""The parts of a service whose figures are shown: each page is handed these and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtllm.billing.alerts import BudgetAlerts
from mtllm.billing.drift import DriftMeter
from mtllm.billing.prices import SpendMeter
from mtllm.billing.recorder import CostRecorder
from mtllm.completions.chain import ModelChain
from mtllm.http.lifecycle import Lifecycle
from mtllm.ledger.ledger import Ledger
from mtllm.logs.writer import RequestLogger
from mtllm.ratelimit.clients import ClientTable
from mtllm.redis_link import RedisLink
from mtllm.resilience.admission import Admission
from mtllm.resilience.breaker import Breakers
from mtllm.settings import Settings
from mtllm.stats.metrics import Metrics
from mtllm.stats.recent import Recent
from mtllm.tasks import Task
from mtllm.wiring import AnyCache, Clock


@dataclass(frozen=True, kw_only=True)
class StatsSources:
    """The parts whose figures /stats shows."""

    settings: Settings
    tasks: Sequence[Task]
    clock: Clock
    ledger: Ledger
    cache: AnyCache
    limiter_table: ClientTable
    spend: SpendMeter
    redis: RedisLink | None
    drift: DriftMeter
    chain: ModelChain
    recorder: CostRecorder
    breakers: Breakers
    admission: Admission
    lifecycle: Lifecycle
    metrics: Metrics
    recent: Recent


@dataclass(frozen=True, kw_only=True)
class MetricsSources:
    """The parts whose figures a scrape shows beside the observed requests."""

    tasks: Sequence[Task]
    daily_budget: float | None
    """Dollars; None without one."""
    monthly_budget: float | None
    alerts: BudgetAlerts
    clock: Clock
    observed: Metrics
    spend: SpendMeter
    lifecycle: Lifecycle
    cache: AnyCache
    limiter_table: ClientTable
    breakers: Breakers
    redis: RedisLink | None
    admission: Admission
    ledger: Ledger
    logger: RequestLogger
