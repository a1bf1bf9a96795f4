"""Completions: the instruction to a model, its answer, and the end of a request."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from mtllm.domain.errors import ApiError
from mtllm.domain.money import NOTHING, Charge, Receipt, TokenUsage
from mtllm.domain.thinking import ThinkingPlan

MOST_TOKENS = 2**31 - 1
"""The API's field for a limit of tokens is an int32."""


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


class Completion(NamedTuple):  # as for CacheHit
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
    route: Route | None = None
    """How the answer was come by; None where no model was chosen."""

    @property
    def fallback(self) -> FallbackReason | None:
        """Return why another model answered than the one that was asked for; None where none did."""
        if self.answer is None or self.route is None:
            return None
        return self.route.fallback_of(self.answer.model)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return the fields that the caller gave and the model did not use."""
        return self.route.ignored if self.route else ()

    @property
    def cached(self) -> bool:
        """Return whether the caller pays nothing for this answer."""
        return self.origin in _FREE


_FREE = (Origin.HIT, Origin.STALE, Origin.SHARED)  # no set: the hash of an enumeration costs more than three looks


class FinishReason(StrEnum):
    """Why a usable answer ended."""

    STOP = "stop"
    MAX_TOKENS = "max_tokens"


class Turn(NamedTuple):
    """One thing said in a conversation: by the user, or (`by_model`) by the model."""

    by_model: bool
    text: str


class Instruction(NamedTuple):  # fitted to a model at every request, which a NamedTuple makes three times as fast
    """The question to a model: everything about a request that changes the answer, and nothing else."""

    prompt: str
    temperature: float | None
    """None: not sent."""
    max_output_tokens: int
    system: str | None = None
    labels: tuple[str, ...] = ()
    """When not empty, the answer is constrained to exactly one of these."""
    thinking: ThinkingPlan | None = None
    """What the model is told of thinking; None: nothing."""
    turns: tuple[Turn, ...] = ()
    """What was said before the prompt."""
    json_schema: str | None = None
    """The answer is JSON that fits this schema (as JSON); empty: any JSON; None: text."""
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return all the words that are sent, for counting tokens."""
        said = (turn.text for turn in self.turns)
        schema = (self.json_schema,) if self.json_schema else ()
        return "\n".join((self.system or "", *said, self.prompt, *self.labels, *schema))

    @property
    def more(self) -> str:
        """Return what only few instructions have, for the key of the answer; empty where there is nothing of it."""
        if not (self.turns or self.stop) and self.json_schema is None and self.top_p is None and self.seed is None:
            return ""
        return json.dumps([self.turns, self.json_schema, self.top_p, self.seed, self.stop])


class Terms(NamedTuple):
    """How an instruction is said to one model at one level of thinking."""

    plan: ThinkingPlan | None = None
    sends_temperature: bool = True
    room: int = 0
    """Tokens that a limit of our own gets on top, for the thoughts."""
    output_limit: int = MOST_TOKENS

    def limit_with_room(self, tokens: int) -> int:
        """Return a limit of our own plus the room for the level's thoughts, at most what the model can give.

        A limit that the caller chose is not for this: it is sent as it is.
        """
        return min(tokens + self.room, self.output_limit)

    def limit_of(self, instruction: Instruction, *, own_limit: bool) -> int:
        """Return the limit that is sent; `own_limit`: it is ours and not the caller's, so it gets room."""
        limit = instruction.max_output_tokens
        return self.limit_with_room(limit) if own_limit else limit

    def fit(self, instruction: Instruction, *, own_limit: bool) -> Instruction:
        """Return the instruction as the model is told it: with a plan for its thoughts, and no idle temperature."""
        return instruction._replace(
            temperature=instruction.temperature if self.sends_temperature else None,
            max_output_tokens=self.limit_of(instruction, own_limit=own_limit),
            thinking=self.plan,
        )


AS_IS = Terms()
"""Those of a model of which nothing is known: it is told the instruction as it is."""


class FallbackReason(StrEnum):
    """Why an answer comes from another model than the one that was asked for."""

    UNAVAILABLE = "unavailable"
    """It is not served: unknown, retired, or closed to this key."""
    OVERLOADED = "overloaded"
    """429 or 503 after its own retries, or its circuit breaker is open."""
    QUOTA = "quota"
    """A day's quota is used up, or the balance."""
    TIMEOUT = "timeout"
    SWAPPED = "swapped"
    """Google let another model answer."""


def is_version_of(asked: str, answered: str) -> bool:
    """Return whether the model that answered is the one that was asked for, or a version of it: a longer name.

    So gemini-2.5-flash-lite-001 is gemini-2.5-flash-lite.
    """
    return answered == asked or answered.startswith(f"{asked}-")


class Route(NamedTuple):
    """One model that a request may be answered by: its name, and the terms in which it is told an instruction.

    `asked` is the model that was asked for, and `reason` why this one takes its place; None where it is the same.
    `others` may be asked next. `ignored` are fields of the caller's that this model does not use.
    """

    model: str
    asked: str
    terms: Terms = AS_IS
    reason: FallbackReason | None = None
    others: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def fallback_of(self, answered: str) -> FallbackReason | None:
        """Return why the model `answered` is not the one that was asked for; None where it is, or a version of it."""
        if is_version_of(self.asked, answered):
            return None
        return self.reason or FallbackReason.SWAPPED


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


def render_body(answer_field: str, said: object, answer: Answer, charge: Charge) -> bytes:
    """Return the JSON body of a 200, ready to send. The answer comes first; `StoredAnswer.text` relies on that."""
    usage = charge.amount.usage
    body: dict[str, Any] = {
        answer_field: said,
        "model": answer.model,
        "finish_reason": answer.finish_reason.value,
        "usage": {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "source": "tiktoken" if charge.estimated else "gemini",
        },
    }
    if usage.thinking:
        body["usage"]["thinking_tokens"] = usage.thinking
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

    def body_ignoring(self, fields: tuple[str, ...]) -> bytes:
        """Return the body for a caller of whose request `fields` were not used, which it says."""
        if not fields:
            return self.body
        return self.body.rstrip()[:-1] + b', "ignored": ' + json.dumps(fields).encode() + b"}\n"

    @property
    def text(self) -> str:
        """Return the answer itself, read from the body; a JSON value as JSON."""
        said = next(iter(json.loads(self.body).values()))
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


class CacheHit(NamedTuple):  # made at every hit, and a NamedTuple takes a third of the time of a frozen dataclass
    """An answer found in the cache."""

    answer: StoredAnswer
    age: float
    """Seconds since it was stored."""
    ttl: float
    """Seconds of freshness left; negative for a stale answer."""
