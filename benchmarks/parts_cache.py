"""LRUCache and RateLimiter beside the libraries `cachetools` and `limits`, on the same traces.

    python -m benchmarks.parts_cache            all of it, a few minutes
    python -m benchmarks.parts_cache --smoke    that it runs, a few seconds

Contenders take turns within each round; figures are medians of the rounds, and so is the ratio, which is taken round
by round. A cache operation is a look-up and, after a miss, a store. A rate check is one limit of 60 a minute unless the
row says otherwise; beside `limits`, which tells the remaining calls only when asked once more, ours has told them
already.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from threading import Barrier, Lock, Thread
from typing import Any

from benchmarks.tables import spread
from lru_cache import LRUCache
from mtllm.domain.limits import parse_limits
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter

CACHE_SIZE = 1_000
CLIENTS = 10_000
THREADS = (1, 8)
Operation = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    operations: int
    rounds: int


FULL = Scale(operations=50_000, rounds=7)
SMOKE = Scale(operations=800, rounds=1)


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: operations a second of each contender in each round, ours first."""

    trace: str
    threads: int
    rates: dict[str, list[float]]

    @property
    def ahead(self) -> list[float]:
        """How many times the best of the others ours is, one for each round."""
        return [ours / max(others) for ours, *others in zip(*self.rates.values(), strict=True)]


def zipf(keys: int, length: int, *, exponent: float = 1.0, seed: int = 1) -> list[str]:
    """A trace in which the n-th key comes up in proportion to 1 / n**exponent."""
    weights = accumulate(1 / rank**exponent for rank in range(1, keys + 1))
    picks = random.Random(seed).choices(range(keys), cum_weights=list(weights), k=length)
    return [f"key-{pick}" for pick in picks]


def scan(keys: int, length: int) -> list[str]:
    """A trace that goes through the keys again and again."""
    names = [f"key-{number}" for number in range(keys)]
    return (names * (length // keys + 1))[:length]


def mixed(keys: int, length: int) -> list[str]:
    """Stretches of Zipf and of scan by turns."""
    popular, passing, stretch = zipf(keys, length), scan(keys, length), max(length // 20, 1)
    parts = ((popular, passing)[number % 2][at : at + stretch] for number, at in enumerate(range(0, length, stretch)))
    return [key for part in parts for key in part]


def traces(keys: int, length: int) -> dict[str, list[str]]:
    """The three traces over so many keys."""
    return {"Zipf 1.0": zipf(keys, length), "scan": scan(keys, length), "mixed": mixed(keys, length)}


# The contenders, each made anew for every round


def our_cache() -> Operation:
    """LRUCache as the service uses it: bounded by entries and by bytes, with TTL."""
    cache = LRUCache[str, str](CACHE_SIZE, 3600, max_bytes=1 << 30, weigh=len)

    def use(key: str) -> None:
        if cache.get(key) is None:
            cache.put(key, key)

    return use


def locked(cache: Any) -> Operation:
    """A cachetools cache with the lock that its documentation asks for."""
    lock = Lock()

    def use(key: str) -> None:
        with lock:
            value = cache.get(key)
        if value is None:
            with lock:
                cache[key] = key

    return use


def their_ttl_cache() -> Operation:
    """cachetools.TTLCache and a lock."""
    from cachetools import TTLCache

    return locked(TTLCache(CACHE_SIZE, 3600))


def their_lru_cache() -> Operation:
    """cachetools.LRUCache, which has no TTL, and a lock."""
    from cachetools import LRUCache as TheirLRUCache

    return locked(TheirLRUCache(CACHE_SIZE))


def our_limiter(text: str = "60/minute") -> Operation:
    """RateLimiter: admission, remaining, reset and wait in one call."""
    limiter, limits = RateLimiter(ClientTable(CLIENTS)), parse_limits(text)
    return lambda client: limiter.hit(client, limits)


def their_limiter(strategy: str, *texts: str, stats: bool = False) -> Operation:
    """A strategy of `limits` on its memory storage; with `stats` it is asked for the remaining calls too."""
    from limits import parse, storage, strategies

    limiter = getattr(strategies, strategy)(storage.MemoryStorage())
    items = [parse(text) for text in texts or ("60/minute",)]

    def check(client: str) -> None:
        for item in items:
            limiter.hit(item, client)
            if stats:
                limiter.get_window_stats(item, client)

    return check


CACHES: dict[str, Callable[[], Operation]] = {
    "LRUCache": our_cache,
    "cachetools.TTLCache": their_ttl_cache,
    "cachetools.LRUCache": their_lru_cache,
}
LIMITERS: dict[str, Callable[[], Operation]] = {
    "RateLimiter": our_limiter,
    "limits moving": lambda: their_limiter("MovingWindowRateLimiter"),
    "limits sliding": lambda: their_limiter("SlidingWindowCounterRateLimiter"),
}
LIMITERS_OF_THE_SERVICE: dict[str, Callable[[], Operation]] = {
    "RateLimiter": lambda: our_limiter("60/minute;1000/hour"),
    "limits moving": lambda: their_limiter("MovingWindowRateLimiter", "60/minute", "1000/hour", stats=True),
    "limits sliding": lambda: their_limiter("SlidingWindowCounterRateLimiter", "60/minute", "1000/hour", stats=True),
}


# The measuring


def seconds(operation: Operation, trace: Sequence[str], threads: int) -> float:
    """How long `threads` threads take for the trace, dealt out among them."""
    start, end = Barrier(threads + 1), Barrier(threads + 1)

    def work(keys: Sequence[str]) -> None:
        start.wait()
        for key in keys:
            operation(key)
        end.wait()

    workers = [Thread(target=work, args=(trace[number::threads],)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    begun = time.perf_counter()
    end.wait()
    elapsed = time.perf_counter() - begun
    for worker in workers:
        worker.join()
    return elapsed


def compare(contenders: dict[str, Callable[[], Operation]], keys: int, scale: Scale) -> Iterator[Row]:
    """Each trace with each number of threads, the contenders taking turns."""
    for name, trace in traces(keys, scale.operations).items():
        for threads in THREADS:
            rates: dict[str, list[float]] = {contender: [] for contender in contenders}
            for _ in range(scale.rounds):
                for contender, make in contenders.items():
                    rates[contender].append(len(trace) / seconds(make(), trace, threads))
            yield Row(name, threads, rates)


def table_of(title: str, rows: Iterator[Row]) -> Iterator[str]:
    """Markdown: operations a second, and how many times the best of the others ours is, round by round."""
    yield f"\n### {title}, operations a second\n"
    for number, row in enumerate(rows):
        if number == 0:
            yield f"| trace | threads | {' | '.join(row.rates)} | ahead of the best other (spread) |"
            yield "|---|---:|" + "---:|" * (len(row.rates) + 1)
        figures = " | ".join(f"{median(rates):,.0f}" for rates in row.rates.values())
        yield f"| {row.trace} | {row.threads} | {figures} | {spread(row.ahead)} |"


def tables(scale: Scale = FULL) -> Iterator[str]:
    """All tables, line by line as they are measured."""
    yield from table_of("Caches of 1,000 entries, 10,000 keys", compare(CACHES, 10 * CACHE_SIZE, scale))
    yield from table_of("Rate limiters, 60 a minute, 5,000 clients", compare(LIMITERS, CLIENTS // 2, scale))
    title = "Rate limiters, 60 a minute and 1,000 an hour with the remaining calls, 5,000 clients"
    yield from table_of(title, compare(LIMITERS_OF_THE_SERVICE, CLIENTS // 2, scale))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts_cache", description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="show that it runs, in seconds")
    for line in tables(SMOKE if parser.parse_args(argv).smoke else FULL):
        print(line, flush=True)


if __name__ == "__main__":
    main()
