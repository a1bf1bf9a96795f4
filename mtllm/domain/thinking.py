"""How much a model may think before it answers, in the words of this service."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ThinkingLevel(StrEnum):
    """One of the four levels that a caller can ask for, least first."""

    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @property
    def rank(self) -> int:
        """Its place in the order, 0 for the least."""
        return _ORDER.index(self)


_ORDER = tuple(ThinkingLevel)


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """What is sent for a level: `level` or `budget`, the other is None. `room` is the tokens its thoughts may need."""

    level: ThinkingLevel | None
    budget: int | None
    room: int
