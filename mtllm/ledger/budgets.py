"""What a caller is told whose request does not fit a budget."""

from __future__ import annotations

from datetime import datetime

from mtllm.domain.caller import Budget
from mtllm.domain.errors import BudgetExceeded, FieldError
from mtllm.domain.money import exact_usd
from mtllm.domain.periods import Calendar
from mtllm.ledger.records import BudgetState

RESERVED_SECONDS = 35.0
"""How long to wait for others' reservations: a call and its settlement take no longer by default."""

_ADJECTIVE = {"day": "daily", "month": "monthly"}


def refuse_call(
    budget: Budget, state: BudgetState, needed: int, reserved_by_open: int, at: float, calendar: Calendar
) -> BudgetExceeded:
    """Return the refusal of a call, with what would help: another request, a moment, or the next period.

    `reserved_by_open`: the part of the reservations that goes back when the calls under way have ended.
    """
    end = calendar.end(budget.period, at)
    kind = _ADJECTIVE[budget.period]
    wait: float | None = end - at
    why = f"The {kind} budget cannot cover this request"
    helps = f"it resets at {_moment(end, calendar)}, or lower max_output_tokens"
    if needed > budget.limit:
        wait = None
        why, helps = f"This request may cost more than the whole {kind} budget", "lower max_output_tokens"
    elif state.spent + state.reserved - reserved_by_open + needed <= budget.limit:
        wait = min(RESERVED_SECONDS, end - at)
        why = f"Requests under way have reserved what is left of the {kind} budget"
        helps = "try again when they have ended, or lower max_output_tokens"
    amounts = {"limit": budget.limit, "spent": state.spent, "reserved": state.reserved, "needed": needed}
    details = (
        FieldError("scope", budget.kind),
        FieldError("period", budget.period),
        *(FieldError(name, exact_usd(amount)) for name, amount in amounts.items()),
        FieldError("helps", helps),
    )
    return BudgetExceeded(f"{why}: {helps}.", retry_after=wait, details=details)


def _moment(end: float, calendar: Calendar) -> str:
    """Return when a period ends as a person reads it: 00:00 UTC, or the day too where it is not the next one."""
    moment = datetime.fromtimestamp(end, calendar.zone)
    return f"00:00 {calendar.zone} on {moment:%Y-%m-%d}"
