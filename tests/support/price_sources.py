"""Gemini's prices as other projects publish them, read from their packages without importing these.

Rates are dollars per million tokens, standard tier, text, prompts of up to 200,000 tokens.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

MILLION = 10**6
BEGINNING = date(2024, 1, 1)
"""The day of a price that its source does not date."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Dollars per million tokens; None where the source has none."""

    input: Decimal | None
    cached_input: Decimal | None
    output: Decimal | None

    def __str__(self) -> str:
        return " / ".join("-" if rate is None else f"{rate.normalize():f}" for rate in self._all())

    def _all(self) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
        return self.input, self.cached_input, self.output


@dataclass(frozen=True, slots=True)
class Source:
    """A project's table: by model its rates from days on. A `dated` one knows more than the rates of its own day."""

    name: str
    read_on: date
    dated: bool
    rates: dict[str, dict[date, Rates]]

    def rates_of(self, model: str, on: date) -> Rates | None:
        """Return what the source says of exactly this model on a day."""
        begun = [day for day in self.rates.get(model, {}) if day <= on]
        return self.rates[model][max(begun)] if begun else None

    def days_of(self, model: str) -> set[date]:
        """Return the days on which its price of a model changes."""
        return set(self.rates.get(model, {})) - {BEGINNING}


def file_of(package: str, path: str) -> Path | None:
    """Return a file of an installed package, None where the package is not installed."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        return None


def read_litellm(file: Path) -> Source:
    """Return litellm's table: one price a model, that of the day on which the package was made."""
    table = json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    prefix = "gemini/"
    rates = {
        name.removeprefix(prefix): {
            BEGINNING: Rates(
                *(
                    _per_million(entry.get(field))
                    for field in ("input_cost_per_token", "cache_read_input_token_cost", "output_cost_per_token")
                )
            )
        }
        for name, entry in table.items()
        if name.startswith(prefix)
    }
    return Source("litellm", date(2026, 11, 15), dated=False, rates=rates)


def _per_million(rate: Decimal | int | None) -> Decimal | None:
    return None if rate is None else Decimal(rate) * MILLION


def read_genai_prices(file: Path) -> Source:
    """Return genai-prices' table of Google, dated as far as it dates its prices. Its source is parsed, not run."""
    [google] = [
        call
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _name(call.func) == "Provider" and _text(_argument(call, "id")) == "google"
    ]
    models = _argument(google, "models")
    assert isinstance(models, ast.List)
    rates = {_text(_argument(model, "id")): dict(_dated_rates(model)) for model in models.elts}
    return Source("genai-prices", date(2026, 10, 15), dated=True, rates=rates)


def _dated_rates(model: ast.expr) -> Iterator[tuple[date, Rates]]:
    prices = _argument(model, "prices")
    assert prices is not None, ast.dump(model)
    for price in prices.elts if isinstance(prices, ast.List) else [prices]:
        if _name(getattr(price, "func", None)) == "ConditionalPrice":
            yield _first_day(_argument(price, "constraint")), _rates(_argument(price, "prices"))
        else:
            yield BEGINNING, _rates(price)


def _first_day(constraint: ast.expr | None) -> date:
    start = None if constraint is None else _argument(constraint, "start_date")
    if not isinstance(start, ast.Call):
        return BEGINNING
    year, month, day = (int(ast.unparse(part)) for part in start.args)
    return date(year, month, day)


def _rates(prices: ast.expr | None) -> Rates:
    fields = ("input_mtok", "cache_read_mtok", "output_mtok")
    return Rates(*(_decimal(_argument(prices, field) if prices else None) for field in fields))


def _decimal(value: ast.expr | None) -> Decimal | None:
    """Return a Decimal('...') or the base of TieredPrices(base=Decimal('...'), ...)."""
    if value is None:
        return None
    if _name(getattr(value, "func", None)) == "TieredPrices":
        return _decimal(_argument(value, "base"))
    assert isinstance(value, ast.Call), ast.dump(value)
    return Decimal(_text(value.args[0]))


def _argument(call: ast.expr, name: str) -> ast.expr | None:
    """Return a call's argument by its name; None where it is absent or None."""
    assert isinstance(call, ast.Call), ast.dump(call)
    values = (keyword.value for keyword in call.keywords if keyword.arg == name)
    return next((value for value in values if ast.unparse(value) != "None"), None)


def _name(node: ast.expr | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.expr | None) -> str:
    assert isinstance(node, ast.Constant), node
    return str(node.value)
