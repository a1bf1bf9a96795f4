"""What each model takes and gives, by day, as `models.toml` tells it. No name of a model is in this code.

    table = ModelTable.load(path)
    facts = table.facts_of("gemini-3.8-flash", day)
    facts.sends_temperature                 whether a temperature is worth sending (and part of the cache key)
    facts.plan(ThinkingLevel.MINIMAL)       what to send for a level, or None: send nothing
    facts.terms(level)                      the terms in which it is told an instruction at that level

Whoever builds a request and whoever reserves its cost ask the same facts, of the day on which the call began: what is
sent as `maxOutputTokens` bounds thoughts and answer together, so it is also what is reserved.

A model that the table does not know has facts too, empty ones: it is sent what it was always sent, without a plan and
without more room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

from mtllm.domain.completion import MOST_TOKENS, Terms
from mtllm.domain.dated import EVIDENCE_FIELDS, NO_EVIDENCE, DatedTable, Entry, Evidence, read_entries, require_distinct
from mtllm.domain.thinking import ThinkingLevel, ThinkingPlan

_REQUIRED = ("name", "from", "state", "temperature", "output_limit")
_OPTIONAL = ("thinking", "successor", *EVIDENCE_FIELDS)
_OWN = frozenset({"successor", *EVIDENCE_FIELDS})
"""Fields that belong to one entry; a later entry of the model does not take them over."""


class Availability(StrEnum):
    """Who is served a model."""

    CURRENT = "current"
    PREVIEW = "preview"
    CLOSED = "closed"
    """Only projects that used it before; a new key gets 404."""
    SWAPPED = "swapped"
    """Requests are answered by its successor, without an error."""
    RETIRED = "retired"


class TemperatureUse(StrEnum):
    """What a model does with a temperature."""

    USED = "used"
    IGNORED = "ignored"
    REFUSED = "refused"


class ThinkingForm(StrEnum):
    """How a model is told how much to think."""

    BUDGET = "budget"
    """`thinkingBudget`, a number of tokens."""
    LEVEL = "level"
    """`thinkingLevel`, a name."""


DYNAMIC = "dynamic"
"""The default of a model that decides by itself how much to think."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model thinks: its levels with their tokens, least first.

    The tokens of a level are its budget; where the model takes names, they are what is kept free for its thoughts.
    `default` is what it does when it is told nothing: a level, `DYNAMIC`, or empty where that is unknown.
    """

    form: ThinkingForm
    levels: tuple[tuple[ThinkingLevel, int], ...]
    default: str = ""

    @property
    def least(self) -> ThinkingLevel:
        """The least that the model can think."""
        return self.levels[0][0]

    @property
    def can_be_off(self) -> bool:
        """Return whether its least is no thoughts at all. A model that takes names always thinks."""
        return self.form is ThinkingForm.BUDGET and self.levels[0][1] == 0

    def plan(self, asked: ThinkingLevel) -> ThinkingPlan:
        """Return what to send for a level: the model's greatest that is not above it, else its least.

        So nobody pays for more thoughts than were asked for, unless the model cannot think less.
        """
        level, tokens = self.levels[0]
        for own, own_tokens in self.levels:
            if own.rank <= asked.rank:
                level, tokens = own, own_tokens
        if self.form is ThinkingForm.BUDGET:
            return ThinkingPlan(None, tokens, tokens)
        return ThinkingPlan(level, None, tokens)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is true of a model from a day on. `model` is the name in the table; `state` is None for an unknown model."""

    model: str
    since: date
    state: Availability | None = None
    successor: str = ""
    """The model to use instead, or that answers instead."""
    temperature: TemperatureUse = TemperatureUse.USED
    thinking: Thinking | None = None
    output_limit: int | None = None
    """Most tokens of thoughts and answer together."""
    evidence: Evidence = NO_EVIDENCE

    @property
    def known(self) -> bool:
        """Return whether the table has the model."""
        return self.state is not None

    @property
    def sends_temperature(self) -> bool:
        """Return whether a temperature changes the answer, and so is sent and part of the cache key."""
        return self.temperature is TemperatureUse.USED

    def plan(self, level: ThinkingLevel) -> ThinkingPlan | None:
        """Return what to send for a level of thinking; None: nothing, the model does not think or is unknown."""
        return self.thinking.plan(level) if self.thinking else None

    def terms(self, level: ThinkingLevel) -> Terms:
        """Return how an instruction is said to this model at a level of thinking."""
        plan = self.plan(level)
        return Terms(plan, self.sends_temperature, plan.room if plan else 0, self.output_limit or MOST_TOKENS)


class ModelTable:
    """The facts of all known models, by day. Immutable; safe to share between threads."""

    def __init__(self, entries: Iterable[ModelFacts] = ()) -> None:
        self._table = DatedTable(entries)

    @classmethod
    def load(cls, path: Path | str) -> ModelTable:
        """Return the table in a TOML file of `[[model]]` entries (see models.toml).

        A model's first entry is complete; each later one says only what changes on its day.
        Raises OSError when the file cannot be read, ValueError naming file, entry and field when it says something
        else.
        """
        by_name: dict[str, list[Entry]] = {}
        for entry in read_entries(Path(path), "model", "name"):
            entry.require(("name", "from"), (*_REQUIRED, *_OPTIONAL))
            by_name.setdefault(entry.fields["name"], []).append(entry)
        read = [pair for entries in by_name.values() for pair in _history(entries)]
        require_distinct(read)
        for entry, facts in read:
            if facts.successor and (facts.successor not in by_name or facts.successor == facts.model):
                raise entry.error("'successor' must be the name of another model of this file")
        return cls(facts for _, facts in read)

    def facts_of(self, model: str, on: date) -> ModelFacts:
        """Return what is true of a model on a day (UTC): of the entry that holds for its name, as with prices."""
        return self._table.find(model, on) or ModelFacts(model.removeprefix("models/"), date.min)

    def models(self) -> list[str]:
        """Return the names in the table, in its order."""
        return self._table.models()

    def changes_of(self, model: str) -> list[ModelFacts]:
        """Return all entries of exactly this name, oldest first."""
        return self._table.entries_of(model)


def _history(entries: list[Entry]) -> list[tuple[Entry, ModelFacts]]:
    """Return a model's entries, each completed by the ones before it."""
    read: list[tuple[Entry, ModelFacts]] = []
    known: Mapping[str, Any] = {}
    for entry in sorted(entries, key=lambda entry: entry.day("from")):
        known = {name: value for name, value in known.items() if name not in _OWN} | dict(entry.fields)
        whole = Entry(entry.label, known)
        whole.require(_REQUIRED, _OPTIONAL)
        read.append((entry, _facts(whole)))
    return read


def _facts(entry: Entry) -> ModelFacts:
    state = entry.word("state", Availability)
    successor = entry.text("successor")
    if state is Availability.SWAPPED and not successor:
        raise entry.error("'successor' is missing: a swapped model is answered by another one")
    output_limit = entry.count("output_limit", least=1, most=MOST_TOKENS)
    return ModelFacts(
        model=entry.fields["name"],
        since=entry.day("from"),
        state=state,
        successor=successor,
        temperature=entry.word("temperature", TemperatureUse),
        thinking=_thinking(entry, output_limit) if "thinking" in entry.fields else None,
        output_limit=output_limit,
        evidence=entry.evidence(),
    )


def _thinking(entry: Entry, output_limit: int) -> Thinking:
    fields = entry.fields["thinking"]
    if not isinstance(fields, dict):
        raise entry.error("'thinking' must be a table with 'form', 'levels' and 'default'")
    part = Entry(f"{entry.label}: thinking", fields)
    part.require(("form", "levels"), ("default",))
    form = part.word("form", ThinkingForm)
    levels = _levels(part, output_limit)
    default = part.text("default")
    allowed = [str(level) for level, _ in levels] + [DYNAMIC] * (form is ThinkingForm.BUDGET)
    if default and default not in allowed:
        raise part.error(f"'default' must be one of {', '.join(allowed)}")
    return Thinking(form, levels, default)


def _levels(part: Entry, output_limit: int) -> tuple[tuple[ThinkingLevel, int], ...]:
    named = part.fields["levels"]
    if not isinstance(named, dict) or not named:
        raise part.error("'levels' must be a table of levels with their tokens")
    if unknown := set(named).difference(ThinkingLevel):
        raise part.error(f"{min(unknown)!r} is not one of the levels {', '.join(ThinkingLevel)}")
    counted = Entry(f"{part.label}: levels", named)
    levels = tuple((ThinkingLevel(name), counted.count(name, most=output_limit)) for name in named)
    ranks, tokens = [level.rank for level, _ in levels], [tokens for _, tokens in levels]
    if ranks != sorted(ranks) or tokens != sorted(tokens):
        raise part.error("'levels' must begin with the least")
    return levels
