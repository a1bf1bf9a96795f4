"""What a token costs: dated prices of models, and exact sums.

Money is an int of nano-dollars (10^-9 $). A rate is an int of nano-dollars per million tokens. Nothing here is a float
before it is shown to a person.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from mtllm.domain.money import Cost, _half_even

DEFAULT_MODEL = "gemini-2.5-flash-lite"
"""The model whose price the `offline-` models share."""

_TOKENS_PER_RATE = 10**6
_DECIMALS = 9
_HIGHEST_RATE = 10**6
_RATES = ("input", "cached_input", "output")
_FIELDS = ("model", "from", *_RATES)
_MEMO_SIZE = 512


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from a day on: nano-dollars per million tokens."""

    model: str
    since: date
    input: int
    cached_input: int
    output: int

    def cost(self, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Cost:
        """What these tokens cost. `input_tokens` includes the cached ones; each part is rounded half even, once."""
        cached = min(cached_input_tokens, input_tokens)
        paid_input = (input_tokens - cached) * self.input + cached * self.cached_input
        return Cost(_half_even(paid_input, _TOKENS_PER_RATE), _half_even(output_tokens * self.output, _TOKENS_PER_RATE))

    def bound(self, input_tokens: int, output_tokens: int) -> int:
        """Nano-dollars that a call of at most so many tokens can never exceed, cached or not."""
        highest_input = max(self.input, self.cached_input)
        return _ceil(input_tokens * highest_input) + _ceil(output_tokens * self.output)


class PriceTable:
    """The prices of all known models, by day. Immutable; safe to share between threads.

    `entries` name a model each; the one whose model is empty holds for whatever no other names.
    """

    def __init__(self, entries: Iterable[Price]) -> None:
        by_model: dict[str, list[Price]] = {}
        for price in sorted(entries, key=lambda price: price.since, reverse=True):
            by_model.setdefault(price.model, []).append(price)
        self._newest_first = by_model
        self._memo: dict[tuple[str, date], Price | None] = {}

    @classmethod
    def load(cls, path: Path | str) -> PriceTable:
        """The table in a TOML file of `[[price]]` entries (see prices.toml).

        Raises OSError when the file cannot be read, ValueError naming entry and field when it says something else.
        """
        path = Path(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path.name} is not valid TOML: {error}") from None
        try:
            return cls(_prices_in(document))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    @classmethod
    def fixed(cls, input_per_million: Decimal | float, output_per_million: Decimal | float) -> PriceTable:
        """One price for every model, in dollars per million tokens; cached input is charged as input.

        A float counts as the decimal number it is written as: 0.1 is a tenth.
        Raises ValueError for a rate that is negative, not finite or finer than a nano-dollar.
        """
        input_rate, output_rate = (_rate(Decimal(str(rate))) for rate in (input_per_million, output_per_million))
        return cls([Price("", date.min, input_rate, input_rate, output_rate)])

    def price_of(self, model: str, on: date) -> Price | None:
        """The price of `model` on a day (UTC), or None when the table does not know it.

        The entry is the one that names the model, else the longest that its name continues with a `-`; of its prices
        the newest that has begun by `on`. A model that is named but has no price yet does not fall back to a shorter
        name, which is another model. `models/` in front is ignored; `offline-` models cost what the default one does.
        """
        asked = (model, on)
        try:
            return self._memo[asked]
        except KeyError:
            found = next((price for price in self._named(model) if price.since <= on), None)
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.clear()
        self._memo[asked] = found
        return found

    def _named(self, model: str) -> list[Price]:
        name = model.removeprefix("models/")
        if name.startswith("offline-"):
            name = DEFAULT_MODEL
        while name and name not in self._newest_first:
            name = name.rpartition("-")[0]
        return self._newest_first.get(name, [])


class SpendMeter:
    """What was spent since it was made: nano-dollars that only grow. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self, nano: int) -> int:
        """Count `nano` more (not negative) and return the total that includes them."""
        with self._lock:
            self._total += max(nano, 0)
            return self._total

    def total(self) -> int:
        """Nano-dollars so far."""
        return self._total


def _ceil(rated: int) -> int:
    return -(-rated // _TOKENS_PER_RATE)


def _prices_in(document: Mapping[str, Any]) -> list[Price]:
    entries = document.get("price")
    if not isinstance(entries, list) or not entries or set(document) != {"price"}:
        raise ValueError("must consist of [[price]] entries, at least one, and nothing else")
    prices = [_price(entry, f"price entry {number}") for number, entry in enumerate(entries, start=1)]
    seen: set[tuple[str, date]] = set()
    for number, price in enumerate(prices, start=1):
        if (price.model, price.since) in seen:
            raise ValueError(f"price entry {number}: {price.model} has a second price from {price.since}")
        seen.add((price.model, price.since))
    return prices


def _price(entry: object, label: str) -> Price:
    if not isinstance(entry, dict):
        raise ValueError(f"{label}: must be a table")  # noqa: TRY004 - a bad file is a ValueError whatever is bad in it
    model = entry.get("model")
    if not isinstance(model, str) or not model.strip():
        raise ValueError(f"{label}: 'model' must be the name of a model")
    label = f"{label} ({model})"
    if wrong := set(entry).symmetric_difference(_FIELDS):
        name = min(wrong)
        raise ValueError(f"{label}: {name!r} is {'not a field' if name in entry else 'missing'}")
    since = entry["from"]
    if not isinstance(since, date) or isinstance(since, datetime):
        raise ValueError(f"{label}: 'from' must be a date such as 2026-01-31, without quotes")  # noqa: TRY004 - as above
    rates = [_field_rate(entry[name], name, label) for name in _RATES]
    return Price(model, since, *rates)


def _field_rate(value: object, name: str, label: str) -> int:
    try:
        return _rate(value)
    except ValueError as error:
        raise ValueError(f"{label}: {name!r} {error}") from None


def _rate(dollars: object) -> int:
    if isinstance(dollars, bool) or not isinstance(dollars, int | Decimal):
        raise ValueError("must be a number of dollars per million tokens")  # noqa: TRY004 - as above
    value = Decimal(dollars)
    if not value.is_finite() or not 0 <= value <= _HIGHEST_RATE:
        raise ValueError(f"must lie between 0 and {_HIGHEST_RATE} dollars per million tokens")
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DECIMALS:
        raise ValueError(f"must have at most {_DECIMALS} decimals")
    return int(value.scaleb(_DECIMALS))
