"""Completions: the instruction to a model, its answer, and the end of a request."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from mtllm.domain.errors import ApiError
from mtllm.domain.money import NOTHING, Charge, Receipt, TokenUsage


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The caller's Cache-Control (RFC 9111, section 5.2.1)."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: float | None = None


NO_CACHE_CONTROL = CacheControl()


class Origin(enum.Enum):
    """The source of an answer."""

    HIT = "hit"
    STALE = "stale"
    SHARED = "shared"
    PAID = "paid"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one request: an answer or an error, and the receipt.

    For a hit the receipt has the stored answer's tokens and no costs; `saved` is what it would have cost
    (nano-dollars).
    `age` and `ttl` are seconds; a negative ttl is a stale answer's. `stored`: the answer was put into the cache.
    """

    origin: Origin
    receipt: Receipt = NOTHING
    answer: StoredAnswer | None = None
    error: ApiError | None = None
    saved: int = 0
    age: float = 0.0
    ttl: float = 0.0
    stored: bool = False
    queue_seconds: float = 0.0

    @property
    def cached(self) -> bool:
        """Return whether the caller pays nothing for this answer."""
        return self.origin in _FREE


_FREE = frozenset({Origin.HIT, Origin.STALE, Origin.SHARED})


class FinishReason(StrEnum):
    """Why a usable answer ended."""

    STOP = "stop"
    MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Instruction:
    """The question to a model: everything about a request that changes the answer, and nothing else."""

    prompt: str
    temperature: float | None
    """None: not sent."""
    max_output_tokens: int
    system: str | None = None
    labels: tuple[str, ...] = ()
    """When not empty, the answer is constrained to exactly one of these."""

    @property
    def text(self) -> str:
        """Return all the words that are sent, for counting tokens."""
        return "\n".join((self.system or "", self.prompt, *self.labels))


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one call that Gemini completed.

    `usage` is None when Gemini reported none. `failure` says why the answer cannot be used (blocked, empty, cut before
    any text); the call may have been billed all the same. `model` is the one that answered.
    """

    text: str
    model: str
    usage: TokenUsage | None
    finish_reason: FinishReason = FinishReason.STOP
    failure: ApiError | None = None


def render_body(answer_field: str, text: str, answer: Answer, charge: Charge) -> bytes:
    """Return the JSON body of a 200, ready to send. The answer comes first; `StoredAnswer.text` relies on that."""
    usage = charge.amount.usage
    body: dict[str, Any] = {
        answer_field: text,
        "model": answer.model,
        "finish_reason": answer.finish_reason.value,
        "usage": {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "source": "tiktoken" if charge.estimated else "gemini",
        },
    }
    if charge.estimated:
        body["estimated"] = True
    if charge.unpriced:
        body["unpriced"] = True
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One answer as it is kept: ready to send, with what its headers and the ledger need."""

    body: bytes
    """The JSON body of the 200, ready to send."""
    usage: TokenUsage
    cost: int
    """What it cost when it was bought, in nano-dollars."""
    model: str
    finish_reason: str
    stored_at: float
    """Epoch seconds."""

    @property
    def text(self) -> str:
        """Return the answer itself, read from the body."""
        return str(next(iter(json.loads(self.body).values())))


class CacheHit(NamedTuple):  # made at every hit, and a NamedTuple takes a third of the time of a frozen dataclass
    """An answer found in the cache."""

    answer: StoredAnswer
    age: float
    """Seconds since it was stored."""
    ttl: float
    """Seconds of freshness left; negative for a stale answer."""
