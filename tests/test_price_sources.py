"""prices.toml says what other projects' price tables say, or why it does not.

The packages are optional (`pip install --no-deps -r requirements-prices.txt`) but under CI.
"""

from __future__ import annotations

import tomllib
from datetime import date
from decimal import Decimal

import pytest

from mtllm.billing.prices import Price, PriceTable
from mtllm.project import PROJECT
from tests.support.price_sources import Rates, Source, file_of, read_genai_prices, read_litellm

DIFFERENCES = PROJECT / "tests" / "data" / "price_differences.toml"
READERS = {
    "genai-prices": (read_genai_prices, "genai_prices/data.py"),
    "litellm": (read_litellm, "litellm/model_prices_and_context_window_backup.json"),
}
NANO = 10**9


@pytest.fixture(scope="module")
def prices() -> PriceTable:
    return PriceTable.load(PROJECT / "prices.toml")


def read_source(package: str) -> Source:
    """Return a source's table; without its package the test is skipped, which CI does not allow (conftest.py)."""
    read, path = READERS[package]
    file = file_of(package, path)
    if file is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r requirements-prices.txt")
    return read(file)


def differences(prices: PriceTable, source: Source) -> dict[tuple[str, str], tuple[str, str]]:
    """Return by (model, day) our rates and theirs where they are not the same.

    A dated source is compared on each day on which either side changes a price, any other on the day of its reading.
    A source that has no cached rate at all does not contradict one.
    """
    found = {}
    for model in prices.models():
        ours = {price.since for price in prices.changes_of(model)}
        days = ours | source.days_of(model) if source.dated else {source.read_on}
        for day in days:
            own, theirs = _own(prices.price_of(model, day)), source.rates_of(model, day)
            if own is not None and not _agree(own, theirs):
                found[model, str(day)] = (str(own), str(theirs or "nothing"))
    return found


def _own(price: Price | None) -> Rates | None:
    if price is None:
        return None
    cached = Decimal(price.cached_input) / NANO if price.cached_is_known else None
    return Rates(Decimal(price.input) / NANO, cached, Decimal(price.output) / NANO)


def _agree(own: Rates, theirs: Rates | None) -> bool:
    if theirs is None or (own.input, own.output) != (theirs.input, theirs.output):
        return False
    return theirs.cached_input in (None, own.cached_input)


def explained(source: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the differences that are written down; each has its reason."""
    table = tomllib.loads(DIFFERENCES.read_text(encoding="utf-8"))
    entries = [entry for entry in table["difference"] if entry["source"] == source]
    assert all(len(entry["reason"]) > 10 for entry in entries)
    return {(entry["model"], str(entry["on"])): (entry["ours"], entry["theirs"]) for entry in entries}


@pytest.mark.parametrize("package", READERS)
def test_every_difference_has_its_reason(prices: PriceTable, package: str) -> None:
    """A difference that is not written down fails, and so does one that is no more."""
    source = read_source(package)
    assert differences(prices, source) == explained(package)


@pytest.mark.parametrize("package", READERS)
def test_the_sources_are_read(package: str) -> None:
    """The default model's documented price is in each, so an empty reading cannot pass for agreement."""
    rates = read_source(package).rates_of("gemini-2.5-flash-lite", date(2026, 11, 15))
    assert rates == Rates(Decimal("0.1"), Decimal("0.01"), Decimal("0.4"))


def test_a_wrong_price_is_found(prices: PriceTable) -> None:
    """The comparison itself: another rate, another day, a missing model and a missing cached rate."""
    day = date(2026, 9, 2)
    source = Source(
        "test",
        day,
        dated=True,
        rates={
            "gemini-3.8-flash": {day: Rates(Decimal("0.75"), None, Decimal("3.75"))},
            "gemini-2.5-flash": {date(2024, 1, 1): Rates(Decimal("0.3"), Decimal("0.3"), Decimal("2.5"))},
        },
    )
    found = differences(prices, source)
    assert ("gemini-3.8-flash", "2026-09-02") not in found
    assert found["gemini-3.8-flash", "2027-01-01"] == ("1.5 / 0.15 / 7.5", "0.75 / - / 3.75")
    assert found["gemini-2.5-flash", "2025-06-17"] == ("0.3 / 0.03 / 2.5", "0.3 / 0.3 / 2.5")
    assert found["gemini-4-neon", "2026-11-18"] == ("3 / 0.15 / 15", "nothing")
