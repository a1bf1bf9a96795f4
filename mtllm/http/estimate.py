"""The body of a dry run."""

from __future__ import annotations

import json
from typing import Any

from mtllm.completions.dry_run import BudgetRoom, CostEstimate
from mtllm.domain.money import dollars


def render_estimate(estimate: CostEstimate) -> bytes:
    """Return the JSON of a dry run; dollars are exact as printed."""
    body: dict[str, Any] = {
        "dry_run": True,
        "model": estimate.route.model,
        "cached": estimate.cached,
        "input_tokens": estimate.input_tokens,
        "source": "gemini" if estimate.counted else "tiktoken",
        "max_output_tokens": estimate.max_output_tokens,
        "cost": {
            "input": dollars(estimate.cost.input),
            "output_max": dollars(estimate.cost.output),
            "total_max": dollars(estimate.cost.total),
            "nanodollars_max": estimate.cost.total,
        },
        "budget": None if estimate.room is None else _budget(estimate.room),
    }
    if estimate.unpriced:
        body["unpriced"] = True
    return json.dumps(body).encode() + b"\n"


def _budget(room: BudgetRoom) -> dict[str, Any]:
    return {
        "scope": room.budget.kind,
        "period": room.budget.period,
        "limit": dollars(room.budget.limit),
        "spent": dollars(room.state.spent),
        "reserved": dollars(room.state.reserved),
        "fits": room.fits,
    }
