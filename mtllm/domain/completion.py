"""How a request ended, and what its caller wished of the cache."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mtllm.domain.errors import ApiError
from mtllm.domain.money import NOTHING, Receipt, TokenUsage


@dataclass(frozen=True, slots=True)
class CacheControl:
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


class FinishReason(StrEnum):
    """Why a usable answer ended."""

    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a model is asked: everything about a request that changes the answer, and nothing else."""

    prompt: str
    temperature: float | None
    """None: not sent."""
    max_output_tokens: int
    system: str | None = None
    labels: tuple[str, ...] = ()
    """When not empty, the answer is constrained to exactly one of these."""

    @property
    def text(self) -> str:
        """All the words that are sent, for counting tokens."""
        return "\n".join((self.system or "", self.prompt, *self.labels))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from one call that Gemini completed.

    `usage` is None when Gemini reported none. `failure` says why the answer cannot be used (blocked, empty, cut before
    any text); the call may have been billed all the same. `model` is the one that answered.
    """

    text: str
    model: str
    usage: TokenUsage | None
    finish_reason: FinishReason = FinishReason.STOP
    failure: ApiError | None = None


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One answer as it is kept: ready to send, with what its headers and the ledger need."""

    body: bytes
    """The JSON body of the 200, ready to send."""
    input_tokens: int
    output_tokens: int
    cost: int
    """What it cost when it was bought, in nano-dollars."""
    model: str
    finish_reason: str
    stored_at: float
    """Epoch seconds."""


class CacheHit(NamedTuple):  # made at every hit, and a NamedTuple takes a third of the time of a frozen dataclass
    """An answer found in the cache."""

    answer: StoredAnswer
    age: float
    """Seconds since it was stored."""
    ttl: float
    """Seconds of freshness left; negative for a stale answer."""
