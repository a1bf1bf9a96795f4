"""The models that the emulator plays: served or not, thinking or not, answered by another.

    PlayedModel      one model, as data
    parse_model      "NAME=closed,level" -> PlayedModel
    refuse_model     the error with which a model meets a call
    count_thoughts   what a model spends on thinking

The states and Google's sentences are those of 2026: see docs/emulator.md for where each was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from mtllm.emulator.bodies import ThinkingWish
from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.replies import (
    PER_DAY,
    PER_MINUTE,
    STATUS_NAMES,
    bad_request,
    failure,
    quota_failure,
    retry_info,
)


class ModelState(Enum):
    """How a model meets a call that asks for an answer; only CLOSED and RETIRED refuse countTokens too."""

    SERVED = "served"
    CLOSED = "closed"
    """404: only for who used it before. It is listed all the same."""
    RETIRED = "retired"
    """404, and it is not listed."""
    OVERLOADED = "overloaded"
    """503: too many ask it."""
    LIMITED = "limited"
    """429: the quota of the minute is used up; RetryInfo says how long."""
    EXHAUSTED = "exhausted"
    """429: the quota of the day is used up."""
    UNPAID = "unpaid"
    """429: the prepaid balance is empty."""


class ThinkingKind(Enum):
    """How a request says how much a model is to think."""

    UNKNOWN = "unknown"
    """The model does not think and takes any thinkingConfig without a word."""
    BUDGET = "budget"
    """By `thinkingBudget`: 0 for none, -1 for as much as it likes, or a number of tokens."""
    LEVEL = "level"
    """By `thinkingLevel`; a `thinkingBudget` is refused."""


LEVEL_TOKENS: Mapping[str, int] = {"MINIMAL": 16, "LOW": 64, "MEDIUM": 256, "HIGH": 1024}
"""What the emulator's models spend on thoughts at each level."""

DYNAMIC_TOKENS = LEVEL_TOKENS["MEDIUM"]
"""What a budget model spends when it may choose, at most."""

_SMALLEST_BUDGET, _LARGEST_BUDGET = 512, 24_576
"""Of gemini-2.5-flash-lite (https://ai.google.dev/gemini-api/docs/thinking)."""


@dataclass(frozen=True, slots=True)
class PlayedModel:
    """One model that the emulator plays."""

    name: str
    state: ModelState = ModelState.SERVED
    successor: str = ""
    """The model that the refusal of a closed one recommends."""
    answered_by: str = ""
    """What `modelVersion` says, when it is not the model's own name."""
    thinking: ThinkingKind = ThinkingKind.UNKNOWN
    levels: tuple[str, ...] = tuple(LEVEL_TOKENS)
    """The thinking levels that it takes, least first."""
    default_level: str = "MEDIUM"
    default_budget: int = 0
    retry_delay: str = "7s"
    """What RetryInfo says while it is LIMITED."""


_ROLES: Mapping[str, Mapping[str, Any]] = {
    **{state.value: {"state": state} for state in ModelState},
    "budget": {"thinking": ThinkingKind.BUDGET},
    "level": {"thinking": ThinkingKind.LEVEL},
    "gemini4": {"thinking": ThinkingKind.LEVEL, "levels": ("LOW", "MEDIUM", "HIGH"), "default_level": "HIGH"},
}

ROLE_NAMES = (*_ROLES, "swapped:OTHER")
"""What `parse_model` understands behind the equals sign."""


def parse_model(text: str) -> PlayedModel:
    """Return the model that "NAME=ROLE[,ROLE]" describes, such as "gemini-2.5-flash-lite=closed".

    "NAME=swapped:OTHER" is answered by OTHER. Raises ValueError, with the roles that there are.
    """
    name, separator, roles = text.partition("=")
    if not name or not separator:
        raise ValueError(f"{text!r} is not of the form NAME=ROLE, such as gemini-2.5-flash-lite=closed")
    model = PlayedModel(name.removeprefix("models/"))
    for role in roles.split(","):
        word, _, other = role.strip().partition(":")
        if word == "swapped" and other:
            model = replace(model, answered_by=other)
        elif word in _ROLES and not other:
            model = replace(model, **_ROLES[word])
        else:
            raise ValueError(f"{role!r} is no role of a model; there are {', '.join(ROLE_NAMES)}")
    return model


def refuse_model(model: PlayedModel, call: GeminiCall) -> dict[str, Any] | None:
    """Return the error document with which a model meets a call, None when it answers."""
    if model.state is ModelState.RETIRED:
        return not_found(model, call)
    if call.method == "getModel":
        return None  # Google describes closed models like any other: a look there proves nothing
    if model.state is ModelState.CLOSED:
        return closed(model)
    if call.method == "countTokens":
        return None
    if model.state is not ModelState.SERVED:
        return _MAKE_REFUSAL[model.state](model)
    problem = _refuse_thinking(model, call.thinking)
    return invalid_argument(problem) if problem else None


def not_found(model: PlayedModel, call: GeminiCall) -> dict[str, Any]:
    """Return the error for a model that is no more, or never was."""
    method = call.method if call.method != "getModel" else "generateContent"
    return _error(
        404,
        f"models/{model.name} is not found for API version {call.version}, or is not supported for {method}. "
        "Call ModelService.ListModels to see the list of available models and their supported methods.",
    )


def closed(model: PlayedModel) -> dict[str, Any]:
    """Return the error for a model that only its old users may ask."""
    newer = f"models/{model.successor}" if model.successor else "a newer model"
    return _error(
        404,
        f"This model models/{model.name} is no longer available to new users. Please update your code to use {newer} "
        "for the latest features and improvements.",
    )


def overloaded(_model: PlayedModel) -> dict[str, Any]:
    """Return the error of a model that too many ask."""
    return _error(503, "The model is overloaded. Please try again later.")


def limited(model: PlayedModel, delay: str = "") -> dict[str, Any]:
    """Return the error for a minute's quota that is used up; `delay` as RetryInfo has it."""
    delay = delay or model.retry_delay
    return _quota_error(model, PER_MINUTE, delay)


def exhausted(model: PlayedModel) -> dict[str, Any]:
    """Return the error for a day's quota that is used up; Google names a short delay all the same."""
    return _quota_error(model, PER_DAY, "34.074824224s")


def unpaid(_model: PlayedModel) -> dict[str, Any]:
    """Return the error for a prepaid balance that is empty."""
    return _error(
        429,
        "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to manage your "
        "project and billing.",
    )


_MAKE_REFUSAL: Mapping[ModelState, Callable[[PlayedModel], dict[str, Any]]] = {
    ModelState.OVERLOADED: overloaded,
    ModelState.LIMITED: limited,
    ModelState.EXHAUSTED: exhausted,
    ModelState.UNPAID: unpaid,
}


def invalid_argument(problem: str) -> dict[str, Any]:
    """Return the error for a request that is itself wrong."""
    return _error(400, problem, bad_request(problem))


def _quota_error(model: PlayedModel, quota_id: str, delay: str) -> dict[str, Any]:
    message = (
        "You exceeded your current quota, please check your plan and billing details. "
        f"* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, "
        f"model: {model.name}\nPlease retry in {delay}."
    )
    return _error(429, message, quota_failure(quota_id, model.name), retry_info(delay))


def _error(code: int, message: str, *details: Mapping[str, Any]) -> dict[str, Any]:
    return failure(code, STATUS_NAMES[code], message, *details)


def _refuse_thinking(model: PlayedModel, wish: ThinkingWish) -> str:
    if model.thinking is ThinkingKind.UNKNOWN:
        return ""
    if wish.budget is not None and wish.level is not None:
        return "You can only set only one of thinking budget and thinking level."
    if model.thinking is ThinkingKind.LEVEL:
        return _refuse_level(model, wish)
    if wish.level is not None:
        return "Thinking level is not supported for this model."
    budget = wish.budget
    if budget is None or budget in (-1, 0) or _SMALLEST_BUDGET <= budget <= _LARGEST_BUDGET:
        return ""
    return (
        f"The thinking budget {budget} is invalid. "
        f"Please choose a value between {_SMALLEST_BUDGET} and {_LARGEST_BUDGET}."
    )


def _refuse_level(model: PlayedModel, wish: ThinkingWish) -> str:
    if wish.budget is not None:
        return "Thinking budget is not supported for this model. Please use thinking level instead."
    if wish.level is not None and wish.level not in model.levels:
        return (
            f"Thinking level {wish.level} is not supported for this model. Please use one of {', '.join(model.levels)}."
        )
    return ""


def count_thoughts(model: PlayedModel, wish: ThinkingWish) -> int:
    """Return the tokens that the model spends on thinking, before a limit of the call cuts them."""
    if model.thinking is ThinkingKind.LEVEL:
        return LEVEL_TOKENS.get(wish.level or model.default_level, 0)
    if model.thinking is ThinkingKind.UNKNOWN:
        return 0
    budget = model.default_budget if wish.budget is None else wish.budget
    return DYNAMIC_TOKENS if budget < 0 else min(budget, DYNAMIC_TOKENS)
