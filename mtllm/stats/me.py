"""/api/v1/me: a key's own view of itself, as `schemas.OwnView` describes and renders it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flask import Flask, Response

from mtllm.domain.caller import Budget
from mtllm.domain.limits import Limit
from mtllm.domain.money import dollars
from mtllm.domain.periods import Period
from mtllm.domain.times import rfc3339
from mtllm.http.exchange import Exchange, current_exchange
from mtllm.ledger.ledger import Ledger, Selection
from mtllm.stats import schemas
from mtllm.stats.body import respond
from mtllm.wiring import AnyLimiter, Budgets


@dataclass(frozen=True, kw_only=True)
class OwnViewSources:
    """The parts that know something of a caller."""

    ledger: Ledger
    limiter: AnyLimiter
    limits: tuple[Limit, ...]
    """Of keys that have none of their own."""
    budgets: Budgets
    models: Callable[[], tuple[str, ...]]
    clock: Callable[[], float]


def register(app: Flask, sources: OwnViewSources) -> None:
    """Add the route to `app`."""

    def me() -> Response:
        sources.ledger.flush()
        return respond(collect_own_view(sources, current_exchange()))

    app.add_url_rule("/api/v1/me", "me", me)


def collect_own_view(sources: OwnViewSources, exchange: Exchange) -> schemas.OwnView:
    """Return what the caller may do and has done. Raises LedgerUnavailable."""
    key = exchange.key
    bound = key is not None and not key.admin
    return schemas.OwnView(
        key=key.name if key else None,
        admin=key is not None and key.admin,
        expires=None if key is None or key.expires is None else rfc3339(key.expires),
        models=list((key.models if key else None) or sources.models()),
        rate_limits=list(_limits(sources, exchange)),
        budgets=[_budget(sources, budget) for budget in sources.budgets.of(key)],
        today=_usage(sources, "day", key.name if key and bound else None),
        this_month=_usage(sources, "month", key.name if key and bound else None),
    )


def _limits(sources: OwnViewSources, exchange: Exchange) -> Iterator[schemas.OwnLimit]:
    limits = exchange.limits(sources.limits)
    for limit, remaining in zip(limits, sources.limiter.remaining(exchange.account, limits), strict=True):
        yield schemas.OwnLimit(limit=limit.amount, window_seconds=limit.window_seconds, remaining=remaining)


def _budget(sources: OwnViewSources, budget: Budget) -> schemas.OwnBudget:
    now = sources.clock()
    state = sources.ledger.budget_state(budget.scope, now, budget.period)
    return schemas.OwnBudget(
        scope=budget.kind,
        period=budget.period,
        limit=dollars(budget.limit),
        spent=dollars(state.spent),
        reserved=dollars(state.reserved),
        ends_at=rfc3339(sources.ledger.calendar.end(budget.period, now)),
    )


def _usage(sources: OwnViewSources, period: Period, key: str | None) -> schemas.OwnUsage:
    now, calendar = sources.clock(), sources.ledger.calendar
    began = calendar.start(period, now)
    groups = sources.ledger.usage(began, now + 1, period, only=Selection(key=key), zone=calendar.zone)
    return schemas.OwnUsage(
        since=rfc3339(began),
        total_requests=sum(group.requests for group in groups),
        cached_requests=sum(group.cached_requests for group in groups),
        input_tokens=sum(group.input_tokens for group in groups),
        output_tokens=sum(group.output_tokens for group in groups),
        total_cost=dollars(sum(group.cost for group in groups)),
        cost_savings_from_cache=dollars(sum(group.saved for group in groups)),
    )
