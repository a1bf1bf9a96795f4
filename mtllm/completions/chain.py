"""The model chain: which models may answer a request, which of them is asked, and when the next one is.

asked ── served ─────────────► its answer
  │ known not to be served, or failed for one of the reasons in `fall_back_on`
next model of the chain ──► ...                              the last one's error is the request's

A model that was found not to be served is passed over until a free look (`free_look`) or the end of a quarter of an
hour brings it back. Nothing here asks Gemini.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TypeVar

from mtllm.domain.completion import FallbackReason, Route, is_version_of
from mtllm.domain.errors import (
    ApiError,
    FieldError,
    InvalidRequest,
    ModelUnavailable,
    QuotaExhausted,
    UpstreamAuthFailed,
    UpstreamFailure,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.domain.thinking import ThinkingLevel
from mtllm.gemini.models import ModelFacts, ModelTable
from mtllm.settings import OFFLINE_PREFIX, Settings, SettingsError
from mtllm.tasks import Job

FORGET_SECONDS = 900.0
"""A refusal that no free look has renewed for so long is forgotten, and the model is asked again."""

_DAY = 86_400

LEAST_SECONDS = 1.0
"""With less than this left before the deadline, no further model is asked."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last refusal that a model met: by which failure, in which fixed words of Google's, when (monotonic)."""

    failure: type[UpstreamFailure]
    words: tuple[str, ...]
    at: float

    @property
    def sentence(self) -> str:
        """Return why the model does not answer, for an operator."""
        words = f" ({', '.join(self.words)})" if self.words else ""
        return f"{_IN_WORDS.get(self.failure, 'does not answer')}{words}"


_IN_WORDS: Mapping[type[UpstreamFailure], str] = {
    ModelUnavailable: "is not served to this key",
    UpstreamAuthFailed: "refuses this key",
    QuotaExhausted: "has no quota or balance left",
}
"""The refusals that are remembered: what waiting a moment does not help."""


@dataclass(frozen=True, slots=True)
class ModelStanding:
    """What is known of one model of the chain: the refusal that it met last, if any."""

    model: str
    refusal: Refusal | None


class ModelChain:
    """Chooses models and remembers which are not served. Thread-safe; a hit asks it for its route.

    `models` are the chain, its first the one that is asked by default; `allowed` those that a caller may name beside
    them. `aliases` are other names for these. `thinking` is the level of callers who say none.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        *,
        allowed: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
        fall_back_on: Collection[FallbackReason] = (FallbackReason.UNAVAILABLE,),
        table: ModelTable | None = None,
        thinking: ThinkingLevel = ThinkingLevel.MINIMAL,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        warn: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self.models = tuple(dict.fromkeys(models))
        self.allowed = tuple(dict.fromkeys((*self.models, *allowed)))
        self._aliases = aliases or {}
        self._fall_back_on = frozenset(fall_back_on)
        self._table = table or ModelTable()
        self._thinking = thinking
        self._clock = clock
        self._monotonic = monotonic
        self._warn = warn
        self._day = 0.0
        self._routes: dict[tuple[object, ...], Route] = {}
        self._refusals: dict[str, Refusal] = {}
        self._swaps: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    # Choosing

    def route(self, job: Job, permitted: tuple[str, ...] | None = None) -> Route:
        """Return the first model that may answer `job` and is not known to be unserved, as it is to be asked.

        `permitted` are the only models of the caller's key, if it is so bound. Raises InvalidRequest for a model that
        the caller may not choose.
        """
        models = self.models if job.model is None and permitted is None else self._choose(job.model, permitted)
        served = 0
        if self._refusals:
            served = next((number for number, model in enumerate(models) if self._is_served(model)), 0)
        reason = FallbackReason.UNAVAILABLE if served else None
        return self._route_by(job, models[served], models[0], reason, models[served + 1 :])

    def _route_by(
        self, job: Job, model: str, asked: str, reason: FallbackReason | None, others: tuple[str, ...]
    ) -> Route:
        """Return the route by `model`, which all requests of a day share that want the same of it."""
        day = self._clock() // _DAY
        if day != self._day:
            self._routes, self._day = {}, day
        level = job.task.thinking or job.thinking or self._thinking
        wanted = (model, asked, reason, others, level, job.own_temperature)
        try:
            return self._routes[wanted]
        except KeyError:
            terms = self.facts_of(model).terms(level)
            ignored = () if terms.sends_temperature or not job.own_temperature else ("temperature",)
            route = self._routes[wanted] = Route(model, asked, terms, reason, others, ignored)
            return route

    def _choose(self, named: str | None, permitted: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return the models for a caller who named one, or whose key is bound to some."""
        allowed = self.allowed if permitted is None else permitted
        chain = tuple(model for model in self.models if model in allowed) or allowed[:1]
        if named is None:
            return chain
        bare = named.removeprefix("models/")
        model = bare if bare in allowed else self._aliases.get(bare, bare)
        if model not in allowed:
            raise InvalidRequest(details=(FieldError("model", f"must be one of {', '.join(allowed)}"),))
        after = chain[chain.index(model) + 1 :] if model in chain else chain
        return (model, *(other for other in after if other in self.models[1:]))

    def facts_of(self, model: str) -> ModelFacts:
        """Return what the table says of a model today (UTC)."""
        return self._table.facts_of(model, self._today())

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    # Falling back

    def follow(
        self,
        job: Job,
        route: Route,
        ask: Callable[[Route], T],
        *,
        deadline: float,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> T:
        """Return what `ask` returns for the first model of the route that answers.

        No further model is asked when `may_go_on` says no, or the deadline (monotonic seconds) is too near. Raises the
        last ApiError.
        """
        while True:
            try:
                return ask(route)
            except UpstreamFailure as failure:
                self.note_refusal(route.model, failure)
                reason = reason_to_fall_back(failure)
                near = self._monotonic() + LEAST_SECONDS > deadline
                if not route.others or reason not in self._fall_back_on or near or not may_go_on():
                    raise self._explain(route, failure) from failure.__cause__
                route = self._route_by(job, route.others[0], route.asked, route.reason or reason, route.others[1:])

    def deadline_of(self, route: Route, deadline: float) -> float:
        """Return when a call on this route must end: half-way to the deadline where a time-out has a next model."""
        if not route.others or FallbackReason.TIMEOUT not in self._fall_back_on:
            return deadline
        now = self._monotonic()
        return now + (deadline - now) / 2

    def _explain(self, route: Route, failure: UpstreamFailure) -> ApiError:
        """Return the failure, with a live model named where the one that was asked for is not served."""
        if type(failure) is not ModelUnavailable:
            return failure
        tried = route.model if route.model == route.asked else f"{route.asked}, and {route.model} in its place,"
        better = self._find_better(route)
        told = ModelUnavailable(
            f"The model {tried} is not served to this key (any more); the operator must set GEMINI_MODEL to a live one"
            + (f", such as {better}." if better else ".")
        )
        told.cause_words = failure.cause_words
        return told

    def _find_better(self, route: Route) -> str:
        """Return a model that may be served in place of those of a route: another of the chain, else a successor."""
        tried = {route.asked, route.model}
        named = (*self.models, self.facts_of(route.model).successor, self.facts_of(route.asked).successor)
        return next((model for model in named if model and model not in tried and self._is_served(model)), "")

    # Remembering

    def note_refusal(self, model: str, failure: UpstreamFailure) -> None:
        """Remember a refusal that waiting a moment does not help; any other failure proves nothing of the model."""
        if type(failure) in _IN_WORDS:
            with self._lock:
                self._refusals[model] = Refusal(type(failure), failure.cause_words, self._monotonic())

    def note_served(self, model: str) -> None:
        """Remember that a model has answered."""
        if model in self._refusals:
            with self._lock:
                self._refusals.pop(model, None)

    def note_looked(self, model: str) -> None:
        """Remember that a free look found a model served. It tells nothing of quota and balance."""
        refusal = self._refusals.get(model)
        if refusal is None or refusal.failure is not QuotaExhausted:
            self.note_served(model)

    def note_answer(self, asked: str, answered: str) -> None:
        """Remember that a model has answered; report, once, where Google let another one answer."""
        self.note_served(asked)
        swap = (asked, answered)
        if is_version_of(asked, answered) or swap in self._swaps:
            return
        self._swaps.add(swap)
        self._warn(f"Gemini lets {answered} answer for {asked}; the answers cost what {answered} costs.")

    def _is_served(self, model: str) -> bool:
        refusal = self._refusals.get(model)
        if refusal is None or refusal.failure is not ModelUnavailable:
            return True
        return self._monotonic() - refusal.at >= FORGET_SECONDS

    def standings(self) -> list[ModelStanding]:
        """Return what is known of each model of the chain, in its order."""
        with self._lock:
            return [ModelStanding(model, self._refusals.get(model)) for model in self.models]

    def answering(self) -> ModelStanding:
        """Return the model that a request which names none would ask."""
        standings = self.standings()
        return next((standing for standing in standings if self._is_served(standing.model)), standings[0])


def make_chain(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    warn: Callable[[str], None] = lambda _message: None,
) -> ModelChain:
    """Return the chain that the settings describe. Raises SettingsError where MODELS_FILE cannot be used."""
    models = (settings.gemini_model, *settings.gemini_fallback_models)
    try:
        table = ModelTable.load(settings.models_file)
    except (OSError, ValueError) as problem:
        raise SettingsError(f"MODELS_FILE: {problem}") from None
    return ModelChain(
        models,
        allowed=settings.models_allowed,
        aliases=dict(settings.chat_model_aliases) | _offline_aliases(settings),
        fall_back_on=settings.gemini_fallback_on,
        table=table,
        thinking=settings.gemini_thinking,
        clock=clock,
        monotonic=monotonic,
        warn=warn,
    )


def _offline_aliases(settings: Settings) -> dict[str, str]:
    """Return the real names of the models that the emulator plays, so that a client need not know that it does."""
    if not settings.is_offline:
        return {}
    return {model.removeprefix(OFFLINE_PREFIX): model for model in settings.models_allowed}


def reason_to_fall_back(failure: UpstreamFailure) -> FallbackReason | None:
    """Return for which of the reasons that GEMINI_FALLBACK_ON knows a call has failed; None for any other."""
    match failure:
        case ModelUnavailable():
            return FallbackReason.UNAVAILABLE
        case QuotaExhausted():
            return FallbackReason.QUOTA
        case UpstreamUnavailable():
            return FallbackReason.OVERLOADED
        case UpstreamTimeout():
            return FallbackReason.TIMEOUT
    return None
