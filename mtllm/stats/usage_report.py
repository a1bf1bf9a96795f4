"""Builds the body of /api/v1/usage from the ledger's sums."""

from __future__ import annotations

from datetime import tzinfo

from mtllm.domain.money import dollars
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import ExportRow, GroupBy, Ledger, Selection, UsageGroup
from mtllm.stats.schemas import AttemptOfRequest, AttemptsOfRequest, UsageOfGroup, UsageReport


def collect_usage(
    ledger: Ledger, from_: float, to: float, group_by: GroupBy, *, only: Selection, zone: tzinfo
) -> UsageReport:
    """Return the usage from `from_` until before `to` (epoch seconds). Raises LedgerUnavailable.

    `only`: what of it is summed. `zone`: where days and months begin.
    """
    groups = ledger.usage(from_, to, group_by, only=only, zone=zone)
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


def collect_attempts(ledger: Ledger, request_id: str) -> AttemptsOfRequest:
    """Return every attempt and hit of the requests with this id. Raises LedgerUnavailable."""
    return AttemptsOfRequest(request_id=request_id, attempts=list(map(_as_attempt, ledger.attempts_of(request_id))))


def _as_attempt(row: ExportRow) -> AttemptOfRequest:
    return AttemptOfRequest(
        timestamp=rfc3339(row.timestamp),
        attempt=row.attempt,
        task=row.task,
        client=row.client,
        requested_model=row.requested_model,
        model=row.model,
        fallback=row.fallback,
        tag=row.tag,
        status=row.status,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        total_cost=dollars(row.total_cost),
        reserved=dollars(row.reserved),
        saved=dollars(row.saved),
    )
