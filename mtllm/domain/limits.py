"""Rate limits as values: a limit, and the verdict on one call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


_LIMIT = re.compile(
    r"\s*(?P<amount>[0-9]{1,9})\s*/\s*(?P<units>[0-9]{1,9})?\s*(?P<unit>second|minute|hour|day)s?\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` calls in any `window_seconds`."""

    amount: int
    window_seconds: int

    def __post_init__(self) -> None:
        if self.amount < 1 or self.window_seconds < 1:
            raise ValueError("a limit needs an amount and a window of at least 1")

    @property
    def name(self) -> str:
        """Return the name of this limit in the rate limit headers."""
        return f"{self.amount}-in-{self.window_seconds}"


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Parse limits, `N/[K ]unit` separated by `;`, such as `60/minute;1000/hour` or `5/3 seconds`.

    Units are second, minute, hour and day. An empty text means no limit. Raises ValueError, in words, naming the part
    that is none.
    """
    return tuple(map(_parse_limit, text.split(";"))) if text.strip() else ()


def _parse_limit(part: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    amount, units = (int(match["amount"]), int(match["units"] or 1)) if match else (0, 0)
    if match is None or amount < 1 or units < 1:
        raise ValueError(
            f"{part.strip()!r} is not a rate limit: write N/unit or N/K unit with whole numbers from 1 "
            "and second, minute, hour or day, for example 60/minute;1000/hour"
        )
    return Limit(amount, units * UNIT_SECONDS[match["unit"].lower()])


class Verdict(NamedTuple):  # and no dataclass, since every check makes one (benchmarks: parts_cache, rate limiters)
    """The outcome of one call, and its client's standing afterwards."""

    admitted: bool
    limit: Limit
    """The one with least remaining; for a rejected call the full one that frees up last."""
    remaining: int
    """Calls that `limit` would still admit now."""
    reset: float
    """Seconds until `remaining` next grows."""
    retry_after: float
    """Seconds after which the client is admitted if nothing else changed; 0.0 for an admitted call."""
    policy: tuple[Limit, ...]
    """All limits that the call was held to."""
