"""Money and tokens: integers of nano-dollars (10^-9 $), and what calls add up to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

NANO = 10**9
"""Nano-dollars in a dollar."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call, or several together, cost: nano-dollars for the tokens that went in and that came out."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """Both parts together; exactly their sum."""
        return self.input + self.output

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.input + other.input, self.output + other.output)


@lru_cache(maxsize=1024)
def format_usd(nano: int) -> str:
    """Dollars with exactly six decimals, rounded half even: 170_000 nano-dollars are `0.000170`."""
    if nano < 0:
        return "-" + format_usd(-nano)
    micro, rest = divmod(nano, 1000)
    if rest > 500 or (rest == 500 and micro & 1):
        micro += 1
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}"


def dollars(nano: int) -> float:
    """The JSON number of dollars that stands for `nano`: exact as printed, up to nine decimals."""
    return nano / NANO


def exact_usd(nano: int) -> str:
    """Dollars with nine decimals, exact."""
    return f"{'-' if nano < 0 else ''}{abs(nano) // NANO}.{abs(nano) % NANO:09d}"


def _half_even(value: int, divisor: int) -> int:
    quotient, rest = divmod(value, divisor)
    return quotient + (2 * rest + (quotient & 1) > divisor)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts as Gemini reports them: `input` includes `cached_input`, `output` includes `thinking`."""

    input: int
    output: int
    cached_input: int = 0
    thinking: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request has cost so far, over all its attempts: tokens, nano-dollars, attempts, seconds at Gemini."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_cost: int = 0
    output_cost: int = 0
    attempts: int = 0
    upstream_seconds: float = 0.0

    @property
    def total_cost(self) -> int:
        """Nano-dollars."""
        return self.input_cost + self.output_cost

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.input_cost + other.input_cost,
            self.output_cost + other.output_cost,
            self.attempts + other.attempts,
            self.upstream_seconds + other.upstream_seconds,
        )


NOTHING = Receipt()
"""The receipt of a request that has not come as far as an attempt."""
