"""The models and prices in force on a day, for a person, a program or the documentation to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from mtllm.billing.prices import Price, PriceTable
from mtllm.domain.money import exact_usd
from mtllm.gemini.models import DYNAMIC, Availability, ModelFacts, ModelTable, Thinking

_HEADINGS = ("model", "state", "input $", "cached $", "output $", "temperature", "thinking", "limit")
_TEXT_MARK, _MARKDOWN_MARK = "{}*", "**{}**"
_STATES = {
    Availability.CLOSED: "closed to new keys",
    Availability.SWAPPED: "swapped",
    Availability.RETIRED: "retired",
}


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model on a day: its price, None where none has begun, and its facts."""

    model: str
    price: Price | None
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a model on a later day: another price, another state, or both."""

    day: date
    model: str
    price: Price | None
    facts: ModelFacts | None


@dataclass(frozen=True, slots=True)
class PriceList:
    """All models that either table knows by a day, and the changes that are dated after it."""

    on: date
    rows: tuple[ModelRow, ...]
    changes: tuple[Change, ...]


def list_prices(prices: PriceTable, models: ModelTable, on: date) -> PriceList:
    """Return what both tables say of a day, models in the order of the tables and changes by day."""
    names = list(dict.fromkeys(name for name in (*prices.models(), *models.models()) if name))
    rows = [ModelRow(name, prices.price_of(name, on), models.facts_of(name, on)) for name in names]
    changes = [change for name in names for change in _changes(name, prices, models, on)]
    return PriceList(
        on,
        tuple(row for row in rows if row.price or row.facts.known),
        tuple(sorted(changes, key=lambda change: change.day)),
    )


def _changes(name: str, prices: PriceTable, models: ModelTable, on: date) -> list[Change]:
    price_by_day = {price.since: price for price in prices.changes_of(name) if price.since > on}
    facts_by_day = {facts.since: facts for facts in models.changes_of(name) if facts.since > on}
    return [
        Change(day, name, price_by_day.get(day), facts_by_day.get(day))
        for day in sorted(price_by_day.keys() | facts_by_day.keys())
    ]


def as_text(listed: PriceList) -> Iterator[str]:
    """Yield lines for a terminal."""
    yield f"Models and prices on {listed.on} (UTC), in dollars per million tokens; * = thinking by default"
    yield ""
    table = [_HEADINGS, *(_cells(row, _TEXT_MARK) for row in listed.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
    if listed.changes:
        yield ""
        yield "Changes that are already known:"
    for change in listed.changes:
        yield f"  {change.day}  {change.model}: {_told(change)}"


def as_markdown(listed: PriceList) -> Iterator[str]:
    """Yield lines of a table and a list for the documentation."""
    yield f"On {listed.on}, in dollars per million tokens; how much a model thinks by default is bold:"
    yield ""
    yield _markdown_row(_HEADINGS)
    yield "|---|---|--:|--:|--:|---|---|--:|"
    for row in listed.rows:
        yield _markdown_row(_cells(row, _MARKDOWN_MARK))
    if listed.changes:
        yield ""
        yield "Changes that are already known:"
        yield ""
    for change in listed.changes:
        yield f"- {change.day}, {change.model}: {_told(change)}."


def as_json(listed: PriceList) -> Iterator[str]:
    """Yield one JSON document: rates as exact decimal texts, what is unknown as null."""
    document = {
        "at": str(listed.on),
        "models": [{"model": row.model} | _json_price(row.price) | _json_facts(row.facts) for row in listed.rows],
        "changes": [
            {"at": str(change.day), "model": change.model}
            | (_json_price(change.price) if change.price else {})
            | (_json_facts(change.facts) if change.facts else {})
            for change in listed.changes
        ],
    }
    yield json.dumps(document, indent=2)


FORMATS: dict[str, Callable[[PriceList], Iterator[str]]] = {"text": as_text, "json": as_json, "markdown": as_markdown}


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _cells(row: ModelRow, mark: str) -> tuple[str, ...]:
    known = row.facts.known
    return (
        row.model,
        _state(row.facts),
        *(_rates(row.price) if row.price else ("unknown",) * 3),
        str(row.facts.temperature) if known else "-",
        _levels(row.facts.thinking, mark),
        f"{row.facts.output_limit:,}" if row.facts.output_limit else "-",
    )


def _state(facts: ModelFacts) -> str:
    if facts.state is None:
        return "-"
    told = _STATES.get(facts.state, str(facts.state))
    if facts.state is Availability.SWAPPED:
        return f"{told}: {facts.successor} answers"
    return f"{told}: use {facts.successor}" if facts.successor else told


def _levels(thinking: Thinking | None, mark: str) -> str:
    if thinking is None:
        return "-"
    names = {str(level): str(level) for level, _ in thinking.levels}
    if thinking.can_be_off:
        names[thinking.least] += "=off"
    if thinking.default == DYNAMIC:
        names[DYNAMIC] = DYNAMIC
    return " ".join(mark.format(told) if name == thinking.default else told for name, told in names.items())


def _rates(price: Price) -> tuple[str, str, str]:
    cached = _rate(price.cached_input) if price.cached_is_known else "unknown"
    return _rate(price.input), cached, _rate(price.output)


def _rate(nano: int) -> str:
    """Dollars with at least two decimals."""
    whole, _, decimals = exact_usd(nano).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def _told(change: Change) -> str:
    parts = []
    if change.facts:
        parts.append(_state(change.facts))
    if change.price:
        parts.append("input {}, cached {}, output {}".format(*_rates(change.price)))
    return "; ".join(parts)


def _json_price(price: Price | None) -> dict[str, Any]:
    if price is None:
        return {"price": None}
    cached = exact_usd(price.cached_input) if price.cached_is_known else None
    rates = {"input": exact_usd(price.input), "cached_input": cached, "output": exact_usd(price.output)}
    return {"price": {"from": str(price.since), **rates, **_json_evidence(price)}}


def _json_facts(facts: ModelFacts) -> dict[str, Any]:
    if facts.state is None:
        return {"facts": None}
    thinking = facts.thinking
    return {
        "facts": {
            "from": str(facts.since),
            "state": facts.state,
            "successor": facts.successor or None,
            "temperature": facts.temperature,
            "thinking": {"form": thinking.form, "levels": dict(thinking.levels), "default": thinking.default or None}
            if thinking
            else None,
            "output_limit": facts.output_limit,
            **_json_evidence(facts),
        }
    }


def _json_evidence(fact: Price | ModelFacts) -> dict[str, str | None]:
    evidence = fact.evidence
    return {
        "source": evidence.source or None,
        "confidence": evidence.confidence,
        "note": evidence.note or None,
    }
