"""How much the response cache saves: workloads replayed in simulated time through the real cache and real prices.

    python -m benchmarks.cost_savings

A workload is a stream of requests. A share of them, the repeat share, asks for one of 10,000 known prompts whose
popularity follows Zipf's law (the k-th most popular is asked for k^-s times as often as the first); the others are
asked once and never again. Requests arrive at random (Poisson) at a mean rate. Each prompt has its own length and
answer; an answer is bought at the default model's price and kept by a `AnswerStore` for its time to live. Everything
starts with an empty cache, and nothing but time and evictions removes an answer. The same seed gives the same table.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from itertools import accumulate
from pathlib import Path

from mtllm.billing.prices import DEFAULT_MODEL, Price, PriceTable
from mtllm.caching.responses import AnswerStore
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage

PRICES = Path(__file__).resolve().parent.parent / "prices.toml"
PROMPTS = 10_000
REQUESTS = 20_000
SEED = 20_261_123
ON = date(2026, 11, 23)
CLAIM = (30.0, 50.0)
"""Percent of the cost that the cache is said to save with typical use."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of a table. The defaults are the service's, under one request a second."""

    repeat_share: float = 0.8
    zipf: float = 1.0
    per_second: float = 1.0
    ttl: float = 1800.0
    size: int = 500
    requests: int = REQUESTS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a workload: hits, requests, and nano-dollars spent and saved."""

    hits: int
    requests: int
    spent: int
    saved: int

    @property
    def hit_percent(self) -> float:
        """Hits in a hundred requests."""
        return 100 * self.hits / self.requests

    @property
    def saved_percent(self) -> float:
        """What was saved, in percent of what all requests would have cost without a cache."""
        return 100 * self.saved / (self.saved + self.spent)


class SimulatedClock:
    """Time in seconds that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@cache
def replay(workload: Workload, price: Price) -> Outcome:
    """Send the workload's requests through a real cache in simulated time."""
    clock = SimulatedClock()
    responses = AnswerStore(workload.size, workload.ttl, clock=clock, monotonic=clock)
    hits = spent = saved = 0
    draws = _draws(workload.zipf, workload.requests)
    for number, (known_prompt, share, gap) in enumerate(draws):
        clock.now += gap / workload.per_second
        prompt = known_prompt if share < workload.repeat_share else PROMPTS + number
        key = prompt.to_bytes(8)
        found = responses.look_up(key)
        if found is not None:
            hits, saved = hits + 1, saved + found.answer.cost
            continue
        answer = _bought(prompt, price)
        spent += answer.cost
        responses.store(key, answer)
    return Outcome(hits, workload.requests, spent, saved)


@cache
def _draws(zipf: float, requests: int) -> list[tuple[int, float, float]]:
    """For each request: a known prompt, a number that says whether it is asked, and the gap before it at one a second.

    Workloads that differ in anything but popularity see the same chances, so that tables compare like with like.
    """
    chance = random.Random(SEED)
    popularity = list(accumulate((rank + 1) ** -zipf for rank in range(PROMPTS)))
    known = chance.choices(range(PROMPTS), cum_weights=popularity, k=requests)
    return [(prompt, chance.random(), chance.expovariate(1.0)) for prompt in known]


@cache
def _bought(prompt: int, price: Price) -> StoredAnswer:
    """The answer to a prompt: about 200 tokens in and 550 out, log-normal, the same each time it is asked."""
    chance = random.Random(prompt)
    tokens_in, tokens_out = int(chance.lognormvariate(5.0, 0.8)) + 1, int(chance.lognormvariate(6.0, 0.8)) + 1
    cost = price.cost(tokens_in, tokens_out).total
    return StoredAnswer(b"{}", TokenUsage(tokens_in, tokens_out), cost, DEFAULT_MODEL, "stop", 0.0)


@dataclass(frozen=True, slots=True)
class Table:
    """One figure of the workload varied, against several popularity curves."""

    title: str
    heading: str
    vary: Callable[[float], Workload]
    values: Sequence[float]


ZIPFS = (0.6, 0.8, 1.0, 1.2)
BASE = Workload()
TABLES = (
    Table(
        "Share of requests that repeat a known prompt",
        "repeat share",
        lambda share: replace(BASE, repeat_share=share),
        (0.2, 0.4, 0.6, 0.8, 1.0),
    ),
    Table(
        "Time to live (RESPONSE_CACHE_TTL_SECONDS)",
        "seconds",
        lambda ttl: replace(BASE, ttl=ttl),
        (60, 300, 1800, 7200, 86_400),
    ),
    Table(
        "Answers kept (RESPONSE_CACHE_SIZE)", "answers", lambda size: replace(BASE, size=int(size)), (50, 500, 5000)
    ),
    Table(
        "Requests a second", "rate", lambda rate: replace(BASE, per_second=rate), (0.01, 0.1, 1.0, 10.0)
    ),
)  # fmt: skip


def tables(price: Price, requests: int = REQUESTS) -> Iterator[str]:
    """The lines of the Markdown tables and of what they say about the claim."""
    yield f"Each cell: hit ratio / percent of cost saved, over {requests:,} requests; bold: from {CLAIM[0]:g} % saved."
    yield (
        f"If a table does not say otherwise: repeat share {BASE.repeat_share}, {BASE.per_second:g} request a second, "
        f"an answer lives {BASE.ttl:g} s, at most {BASE.size} are kept."
    )
    reached: dict[float, list[str]] = {zipf: [] for zipf in ZIPFS}
    for table in TABLES:
        yield from ("", f"### {table.title}", "")
        yield f"| {table.heading} | " + " | ".join(f"Zipf {zipf}" for zipf in ZIPFS) + " |"
        yield "|--:" * (1 + len(ZIPFS)) + "|"
        for value in table.values:
            workload = replace(table.vary(value), requests=requests)
            outcomes = {zipf: replay(replace(workload, zipf=zipf), price) for zipf in ZIPFS}
            yield f"| {value:,g} | " + " | ".join(map(_cell, outcomes.values())) + " |"
            for zipf, outcome in outcomes.items():
                if CLAIM[0] <= outcome.saved_percent <= CLAIM[1]:
                    reached[zipf].append(f"{table.heading} {value:,g}")
    yield from ("", "### Where 30 to 50 % is saved", "")
    for zipf, conditions in reached.items():
        yield f"- Zipf {zipf}: {', '.join(conditions) or 'in none of these cases'}."
    yield from ("", *_thresholds(price, requests))


def _cell(outcome: Outcome) -> str:
    text = f"{outcome.hit_percent:.0f} % / {outcome.saved_percent:.0f} %"
    return f"**{text}**" if outcome.saved_percent >= CLAIM[0] else text


def _thresholds(price: Price, requests: int) -> Iterator[str]:
    """For each curve, the smallest repeat share (in steps of 0.05) that saves 30 and 50 %, all else at its default."""
    yield "| popularity | repeat share that saves 30 % | 50 % |"
    yield "|---|--:|--:|"
    for zipf in ZIPFS:
        yield f"| Zipf {zipf} | " + " | ".join(_least_share(zipf, goal, price, requests) for goal in CLAIM) + " |"


def _least_share(zipf: float, goal: float, price: Price, requests: int) -> str:
    low, high = 0, 21  # twentieths; 21 = not even when all requests repeat
    while high - low > 1:
        middle = (low + high) // 2
        workload = replace(BASE, repeat_share=middle / 20, zipf=zipf, requests=requests)
        low, high = (low, middle) if replay(workload, price).saved_percent >= goal else (middle, high)
    return f"{high / 20:.2f}" if high <= 20 else "never"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_savings", description="What the cache saves.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"requests a workload ({REQUESTS:,})")
    options = parser.parse_args(arguments)
    price = PriceTable.load(PRICES).price_of(DEFAULT_MODEL, ON)
    if price is None:
        parser.error(f"prices.toml has no price of {DEFAULT_MODEL}")
    for line in tables(price, options.requests):
        print(line, flush=True)


if __name__ == "__main__":
    main()
