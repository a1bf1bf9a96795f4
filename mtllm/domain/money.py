"""Tokens and money: what calls use, what that costs, and what it adds up to.

Money is an int of nano-dollars (10^-9 $); a rate is an int of nano-dollars per million tokens. Nothing here is a float
before it is shown.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

NANO = 10**9
"""Nano-dollars in a dollar."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts as Gemini reports them: `input` includes `cached_input`, `output` includes `thinking`."""

    input: int = 0
    output: int = 0
    cached_input: int = 0
    thinking: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.input + other.input,
            self.output + other.output,
            self.cached_input + other.cached_input,
            self.thinking + other.thinking,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Nano-dollars for the tokens that went in and for those that came out."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """Return both parts together; exactly their sum."""
        return self.input + self.output

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.input + other.input, self.output + other.output)


NO_TOKENS = TokenUsage()
NO_COST = Cost()


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens, and what they cost."""

    usage: TokenUsage = NO_TOKENS
    cost: Cost = NO_COST

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.usage + other.usage, self.cost + other.cost)


NO_AMOUNT = Amount()


class Rates(Protocol):
    """Nano-dollars per million tokens. A `Price` is one."""

    @property
    def input(self) -> int: ...
    @property
    def cached_input(self) -> int: ...
    @property
    def output(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Charge:
    """The cost of one answer. Without a known `price` the cost is 0. `estimated`: the tokens are tiktoken's count."""

    amount: Amount
    price: Rates | None
    estimated: bool = False

    @property
    def unpriced(self) -> bool:
        """Return whether no price is known for the model that answered."""
        return self.price is None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The cost of one request over all its attempts, and their seconds at Gemini."""

    amount: Amount = NO_AMOUNT
    attempts: int = 0
    upstream_seconds: float = 0.0

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.amount + other.amount,
            self.attempts + other.attempts,
            self.upstream_seconds + other.upstream_seconds,
        )


NOTHING = Receipt()
"""The receipt of a request that made no attempt."""


@functools.lru_cache(maxsize=1024)
def format_usd(nano: int) -> str:
    """Return dollars with exactly six decimals, rounded half even: 170_000 nano-dollars are `0.000170`."""
    if nano < 0:
        return "-" + format_usd(-nano)
    micro = _half_even(nano, 1000)
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"


def exact_usd(nano: int) -> str:
    """Return dollars with nine decimals, exact."""
    return f"{'-' if nano < 0 else ''}{abs(nano) // NANO}.{abs(nano) % NANO:09d}"


def dollars(nano: int) -> float:
    """Return the JSON number of dollars that stands for `nano`: exact as printed, up to nine decimals."""
    return nano / NANO


def _half_even(value: int, divisor: int) -> int:
    quotient, rest = divmod(value, divisor)
    return quotient + (2 * rest + (quotient & 1) > divisor)
