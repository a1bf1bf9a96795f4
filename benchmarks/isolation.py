"""Isolation: what 64 slow calls to Gemini do to those who ask for a kept answer or for health meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

from benchmarks.hits import HIT
from benchmarks.load import Order, Request, Round, finished, middle, offer, started
from benchmarks.servers import KEY, Server, emulator, service
from benchmarks.tables import head, row

HEALTH = Request("/health")
SLOW = Request("/api/v1/generate/text", json.dumps({"prompt": "A slow question, number {n}."}), {"X-API-Key": KEY})
SLOW_CALLS = 64
WAITRESS, APP_PY = "waitress-serve, 4 threads", "python app.py"
_numbers = count(0, SLOW_CALLS)


def table(*, quick: bool = False) -> Iterator[str]:
    """Yield the lines of the Markdown table: the user's own command, and `python app.py` as shipped."""
    yield head(
        "server",
        "asked for",
        "p50 ms before",
        "during",
        "ratio",
        "p99 ms before",
        "during",
        "longest before",
        "during",
        "slow calls served",
    )
    seconds = 1.0 if quick else 3.0
    with emulator(latency_ms=seconds * 1000) as upstream:
        for how, threads in ((APP_PY, None),) if quick else ((WAITRESS, 4), (APP_PY, None)):
            with service(upstream, threads=threads) as served:
                offer(Order(served.port, HIT, requests=1))  # buys the answer
                for name, request in (("hit", HIT), ("health", HEALTH)):
                    yield _row(how, name, served, request, rounds=1 if quick else 5, seconds=seconds)


def _row(how: str, name: str, served: Server, request: Request, *, rounds: int, seconds: float) -> str:
    ask = Order(served.port, request, seconds=seconds)
    _asked(ask)
    before: list[Round] = []
    during: list[Round] = []
    slow: list[Round] = []
    for _ in range(rounds):
        before.append(_asked(ask))
        crowd = started(Order(served.port, SLOW, SLOW_CALLS, requests=SLOW_CALLS, first_number=next(_numbers)))
        during.append(_asked(ask))
        slow.append(finished(crowd))
    calm, busy = middle(before), middle(during)
    served_slow = sum(r.answers - r.refused for r in slow) / rounds
    return row(
        how,
        name,
        f"{calm.p50 * 1000:.2f}",
        f"{busy.p50 * 1000:.2f}",
        f"{busy.p50 / calm.p50:.2f}",
        f"{calm.p99 * 1000:.2f}",
        f"{busy.p99 * 1000:.2f}",
        f"{calm.longest * 1000:.0f}",
        f"{busy.longest * 1000:.0f}",
        f"{served_slow:.0f} of {SLOW_CALLS}",
    )


def _asked(order: Order) -> Round:
    """By our own generator, for the times of the answers that came, as in `Round`."""
    return finished(started(order))
