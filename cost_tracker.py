"""Tokens to money: the front door of `accounting`."""

from __future__ import annotations

from accounting.prices import (
    DEFAULT_MODEL,
    NANO,
    Cost,
    Price,
    PriceTable,
    SpendMeter,
    exact_usd,
    format_usd,
)
from accounting.tokens import DOCUMENTED_PRICE, Drift, DriftMeter, TokenCounter

__all__ = [
    "DEFAULT_MODEL",
    "NANO",
    "Cost",
    "Price",
    "PriceTable",
    "SpendMeter",
    "exact_usd",
    "format_usd",
    "DOCUMENTED_PRICE",
    "Drift",
    "DriftMeter",
    "TokenCounter",
]
