"""How a request ended, and what its caller wished of the cache."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from accounting.till import NOTHING, Receipt
from errors import ApiError
from lru_cache import StoredAnswer


@dataclass(frozen=True, slots=True)
class CacheWishes:
    """What the caller's Cache-Control asks (RFC 9111, section 5.2.1)."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: float | None = None


class Origin(enum.Enum):
    """Where an answer came from."""

    HIT = "hit"
    STALE = "stale"
    SHARED = "shared"
    PAID = "paid"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Completion:
    """How one request ended: an answer or an error, and what it cost.

    For a hit the receipt has the stored answer's tokens and no costs; `saved` is what it would have cost
    (nano-dollars).
    `age` and `ttl` are seconds; a negative ttl is a stale answer's. `kept`: the answer was stored.
    """

    origin: Origin
    receipt: Receipt = NOTHING
    answer: StoredAnswer | None = None
    error: ApiError | None = None
    saved: int = 0
    age: float = 0.0
    ttl: float = 0.0
    kept: bool = False
    queue_seconds: float = 0.0

    @property
    def cached(self) -> bool:
        """The caller pays nothing for this answer."""
        return self.origin in _FREE


_FREE = frozenset({Origin.HIT, Origin.STALE, Origin.SHARED})
