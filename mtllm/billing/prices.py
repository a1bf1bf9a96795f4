"""What a token costs: dated prices of models, and exact sums.

Money is an int of nano-dollars (10^-9 $). A rate is an int of nano-dollars per million tokens. Nothing here is a float
before it is shown to a person.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

from mtllm.domain.dated import EVIDENCE_FIELDS, NO_EVIDENCE, DatedTable, Entry, Evidence, read_entries, require_distinct
from mtllm.domain.money import Cost, _half_even, exact_usd

DEFAULT_MODEL = "gemini-2.5-flash-lite"
"""The model whose price the `offline-` models share."""

_TOKENS_PER_RATE = 10**6
_DECIMALS = 9
_HIGHEST_RATE = 10**6
_FIELDS = ("model", "from", "input", "cached_input", "output")
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from a day on: nano-dollars per million tokens.

    Where the rate of cached input is unknown it is the input rate, which can only be too much.
    """

    model: str
    since: date
    input: int
    cached_input: int
    output: int
    cached_is_known: bool = True
    evidence: Evidence = NO_EVIDENCE

    @property
    def in_words(self) -> str:
        """Return the rates as a person reads them: $0.1 in, $0.4 out per million tokens."""
        input_rate, output_rate = (exact_usd(rate).rstrip("0").rstrip(".") for rate in (self.input, self.output))
        return f"${input_rate} in, ${output_rate} out per million tokens"

    def cost(self, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Cost:
        """Return what tokens cost; `input_tokens` includes the cached ones. Each part is rounded half even, once."""
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
        self._table = DatedTable(entries)

    @classmethod
    def load(cls, path: Path | str) -> PriceTable:
        """The table in a TOML file of `[[price]]` entries (see prices.toml).

        Raises OSError when the file cannot be read, ValueError naming entry and field when it says something else.
        """
        read = [(entry, _price(entry)) for entry in read_entries(Path(path), "price", "model")]
        require_distinct(read)
        return cls(price for _, price in read)

    @classmethod
    def fixed(cls, input_per_million: Decimal | float, output_per_million: Decimal | float) -> PriceTable:
        """One price for every model, in dollars per million tokens; cached input is charged as input.

        A float counts as the decimal number it is written as: 0.1 is a tenth.
        Raises ValueError for a rate that is negative, not finite or finer than a nano-dollar.
        """
        input_rate, output_rate = (_rate(Decimal(str(rate))) for rate in (input_per_million, output_per_million))
        return cls([Price("", date.min, input_rate, input_rate, output_rate)])

    @classmethod
    def in_force(cls, path: Path, input_per_million: Decimal | None, output_per_million: Decimal | None) -> PriceTable:
        """Return the table that settings ask for: both rates together are the price of every model, else the file's.

        Raises OSError and ValueError as `load` and `fixed` do.
        """
        if input_per_million is None or output_per_million is None:
            return cls.load(path)
        return cls.fixed(input_per_million, output_per_million)

    def price_of(self, model: str, on: date) -> Price | None:
        """The price of `model` on a day (UTC), or None when the table does not know it.

        The rule is that of every dated table (`DatedTable.find`). `offline-` models cost what the default one does.
        """
        return self._table.find(DEFAULT_MODEL if _is_offline(model) else model, on)

    def next_price_of(self, model: str, after: date) -> Price | None:
        """Return the next price of `model` that begins after a day (UTC), or None where none is dated."""
        return self._table.find_next(DEFAULT_MODEL if _is_offline(model) else model, after)

    def models(self) -> list[str]:
        """Return the names that have a price of their own, in the order of the table."""
        return self._table.models()

    def changes_of(self, model: str) -> list[Price]:
        """Return all prices of exactly this name, oldest first."""
        return self._table.entries_of(model)


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


def _is_offline(model: str) -> bool:
    return model.removeprefix("models/").startswith("offline-")


def _price(entry: Entry) -> Price:
    entry.require(_FIELDS, EVIDENCE_FIELDS)
    known = entry.fields["cached_input"] != _UNKNOWN
    return Price(
        model=entry.fields["model"],
        since=entry.day("from"),
        input=_field_rate(entry, "input"),
        cached_input=_field_rate(entry, "cached_input" if known else "input"),
        output=_field_rate(entry, "output"),
        cached_is_known=known,
        evidence=entry.evidence(),
    )


def _field_rate(entry: Entry, name: str) -> int:
    try:
        return _rate(entry.fields[name])
    except ValueError as error:
        raise entry.error(f"{name!r} {error}") from None


def _rate(dollars: object) -> int:
    if isinstance(dollars, bool) or not isinstance(dollars, int | Decimal):
        raise ValueError("must be a number of dollars per million tokens")  # noqa: TRY004 - a bad file is a ValueError whatever is bad in it
    value = Decimal(dollars)
    if not value.is_finite() or not 0 <= value <= _HIGHEST_RATE:
        raise ValueError(f"must lie between 0 and {_HIGHEST_RATE} dollars per million tokens")
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DECIMALS:
        raise ValueError(f"must have at most {_DECIMALS} decimals")
    return int(value.scaleb(_DECIMALS))
