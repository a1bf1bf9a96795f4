"""Growth: whether a hit, a rate check and /stats take longer when there is more of what they look through."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import Request
from benchmarks.plot import Line, chart
from benchmarks.profile_hit import call, environ_of, warm_app
from benchmarks.servers import ADMIN_KEY, PROJECT
from benchmarks.tables import head, row
from ledger import Hit, Ledger
from lru_cache import RateLimitCache, ResponseCache, StoredAnswer
from rate_limiter import RateLimiter, parse_limits

PICTURE = PROJECT / "docs" / "growth.svg"
SIZES = (100, 1000, 10_000, 100_000, 1_000_000)
ASKED = 10_000
"""Keys or clients asked for in a turn, drawn at random from all there are."""
TURNS = 7
LIMITS = parse_limits("10000/minute;100000/hour")  # nobody reaches them: a rejection would be another path
STATS = Request("/api/v1/stats", headers={"X-API-Key": ADMIN_KEY})
LEDGER_DAYS = 30
LEDGER_CLIENTS = 50
HITS_A_FLUSH = 5000


def table(*, quick: bool = False, picture: Path | None = None) -> Iterator[str]:
    """The lines of the Markdown table; with `picture`, the same as an SVG there."""
    sizes = SIZES[:2] if quick else SIZES
    curves: dict[str, list[tuple[float, float]]] = {
        "hit look-up": [(size, look_up_micros(size)) for size in sizes],
        "rate check": [(size, rate_check_micros(size)) for size in sizes],
        "/stats": list(stats_micros(sizes)),
    }
    yield head("µs for one", *(f"{size:,}" for size in sizes))
    for (name, curve), of in zip(curves.items(), ("answers kept", "clients known", "ledger rows"), strict=True):
        yield row(f"{name}, by {of}", *(f"{micros:,.2f}" for _, micros in curve))
    if picture is not None:
        picture.write_text(drawn(curves), encoding="utf-8")


def drawn(curves: dict[str, list[tuple[float, float]]]) -> str:
    """The picture of the table."""
    lines: dict[str, Line] = dict(curves)
    return chart("Time of one operation", "answers kept, clients known, ledger rows", "µs", lines)


def look_up_micros(size: int) -> float:
    """One look-up that hits, in a cache of `size` answers."""
    cache = ResponseCache(size, 86_400)
    answer = StoredAnswer(b"{}", 10, 60, 25_000, "none", "stop", time.time())
    for number in range(size):
        cache.store(_digest(number), answer)
    return _micros(cache.look_up, [_digest(number) for number in _drawn_numbers(size)])


def rate_check_micros(size: int) -> float:
    """One check against two windows, with `size` clients in the table."""
    limiter = RateLimiter(RateLimitCache(size))

    def check(client: str) -> object:
        return limiter.hit(client, LIMITS)

    for number in range(size):
        check(f"client-{number}")
    return _micros(check, [f"client-{number}" for number in _drawn_numbers(size)])


def stats_micros(sizes: Sequence[int]) -> Iterator[tuple[float, float]]:
    """One GET of /stats, in process, with so many rows in the ledger, spread over 30 days; the ledger syncs in full."""
    with warm_app() as app:
        environ = environ_of(STATS)
        rows = 0
        for size in sizes:
            _fill(app.backend.ledger, size - rows)
            rows = size
            call(app, environ)
            times = []
            for _ in range(10 * TURNS):
                started = time.perf_counter()
                call(app, environ)
                times.append(time.perf_counter() - started)
            yield size, median(times) * 1e6


def _fill(ledger: Ledger, rows: int) -> None:
    chance, now = random.Random(rows), time.time()
    for number in range(rows):
        at = now - chance.random() * LEDGER_DAYS * 86_400
        client = f"client-{number % LEDGER_CLIENTS}"
        ledger.record_hit(Hit(f"request-{number}", at, "text", client, "none", 10, 60, 25_000))
        if number % HITS_A_FLUSH == 0:
            ledger.flush()
    ledger.flush()


def _digest(number: int) -> bytes:
    return random.Random(number).randbytes(20)


def _drawn_numbers(size: int) -> list[int]:
    return random.Random(size).choices(range(size), k=ASKED)


def _micros(operation: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    turns = []
    for _ in range(TURNS):
        started = time.perf_counter()
        for argument in arguments:
            operation(argument)
        turns.append(time.perf_counter() - started)
    return median(turns) / len(arguments) * 1e6
