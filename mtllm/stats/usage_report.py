"""Builds the body of /api/v1/usage from the ledger's sums."""

from __future__ import annotations

from mtllm.domain.money import dollars
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import GroupBy, Ledger, UsageGroup
from mtllm.stats.schemas import UsageOfGroup, UsageReport


def collect_usage(ledger: Ledger, from_: float, to: float, group_by: GroupBy) -> UsageReport:
    """Return the usage from `from_` until before `to` (epoch seconds). Raises LedgerUnavailable."""
    groups = ledger.usage(from_, to, group_by)
    return UsageReport(from_=rfc3339(from_), to=rfc3339(to), group_by=group_by, groups=list(map(_as_body, groups)))


def _as_body(group: UsageGroup) -> UsageOfGroup:
    return UsageOfGroup(
        key=group.key,
        total_requests=group.requests,
        cached_requests=group.cached_requests,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        total_cost=dollars(group.cost),
        cost_savings_from_cache=dollars(group.saved),
    )
