"""Growth: whether a hit, a rate check and /stats take longer when there is more of what they look through."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import Request
from benchmarks.plot import Line, chart
from benchmarks.profile_hit import call, environ_of, warm_app
from benchmarks.servers import ADMIN_KEY, PROJECT
from benchmarks.tables import head, row
from mtllm.caching.responses import AnswerStore
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.limits import parse_limits
from mtllm.domain.money import TokenUsage
from mtllm.ledger.ledger import Hit, Ledger
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter

PICTURE = PROJECT / "docs" / "growth.svg"
SIZES = (100, 1000, 10_000, 100_000, 1_000_000)
ASKED = 10_000
"""Keys or clients asked for in a turn, drawn at random."""
FEW = 100
"""When only so many are asked for, wherever they lie, what is measured is the work and not the processor's caches."""
TURNS = 7
LIMITS = parse_limits("10000/minute;100000/hour")  # nobody reaches them: a rejection would be another path
STATS = Request("/api/v1/stats", headers={"X-API-Key": ADMIN_KEY})
LEDGER_DAYS = 30
LEDGER_CLIENTS = 50
HITS_A_FLUSH = 5000


def table(*, quick: bool = False, picture: Path | None = None) -> Iterator[str]:
    """The lines of the Markdown table; with `picture`, the curves of the work alone as an SVG there."""
    sizes = SIZES[:2] if quick else SIZES
    few_look_ups, look_ups = zip(*map(look_up_micros, sizes), strict=True)
    few_checks, checks = zip(*map(rate_check_micros, sizes), strict=True)
    stats = tuple(stats_micros(sizes))
    yield head("µs for one", *(f"{size:,}" for size in sizes))
    for name, figures in (
        (f"hit look-up, by answers kept, {FEW} of them asked for", few_look_ups),
        ("the same, all of them asked for", look_ups),
        (f"rate check, by clients known, {FEW} of them coming", few_checks),
        ("the same, all of them coming", checks),
        ("/stats, by ledger rows", stats),
    ):
        yield row(name, *(f"{micros:,.2f}" for micros in figures))
    if picture is not None:
        curves = {"hit look-up": few_look_ups, "rate check": few_checks, "/stats": stats}
        points = {name: list(zip(sizes, figures, strict=True)) for name, figures in curves.items()}
        picture.write_text(drawn(points), encoding="utf-8")


def drawn(curves: Mapping[str, Line]) -> str:
    """The picture of the table."""
    return chart("Time of one operation", "answers kept, clients known, ledger rows", "µs", curves)


def look_up_micros(size: int) -> tuple[float, float]:
    """One look-up that hits, in a cache of `size` answers: of a few of them, and of any."""
    cache = AnswerStore(size, 86_400)
    answer = StoredAnswer(b"{}", TokenUsage(10, 60), 25_000, "none", "stop", time.time())
    for number in range(size):
        cache.store(_digest(number), answer)
    few, any_of_all = ([_digest(number) for number in drawn] for drawn in _drawn_numbers(size))
    return _micros(cache.look_up, few), _micros(cache.look_up, any_of_all)


def rate_check_micros(size: int) -> tuple[float, float]:
    """One check against two windows, with `size` clients in the table: of a few of them, and of any."""
    limiter = RateLimiter(ClientTable(size))

    def check(client: str) -> object:
        return limiter.hit(client, LIMITS)

    for number in range(size):
        check(f"client-{number}")
    few, any_of_all = ([f"client-{number}" for number in drawn] for drawn in _drawn_numbers(size))
    return _micros(check, few), _micros(check, any_of_all)


def stats_micros(sizes: Sequence[int]) -> Iterator[float]:
    """One GET of /stats, in process, with so many rows in the ledger, spread over 30 days; the ledger syncs in full."""
    with warm_app() as app:
        environ = environ_of(STATS)
        rows = 0
        for size in sizes:
            _fill(app.service.ledger, size - rows)
            rows = size
            call(app, environ)
            times = []
            for _ in range(10 * TURNS):
                started = time.perf_counter()
                call(app, environ)
                times.append(time.perf_counter() - started)
            yield median(times) * 1e6


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


def _drawn_numbers(size: int) -> tuple[list[int], list[int]]:
    chance = random.Random(size)
    return chance.choices(chance.sample(range(size), FEW), k=ASKED), chance.choices(range(size), k=ASKED)


def _micros(operation: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    turns = []
    for _ in range(TURNS):
        started = time.perf_counter()
        for argument in arguments:
            operation(argument)
        turns.append(time.perf_counter() - started)
    return median(turns) / len(arguments) * 1e6
