"""Hits: answers from the cache, with every feature on, beside bare Flask on the same server in the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.floor import PATH as FLOOR_PATH
from benchmarks.load import Order, Request, Round, middle, offer
from benchmarks.servers import KEY, Server, emulator, floor, service
from benchmarks.tables import head, row, spread

PROMPT = json.dumps({"prompt": "Explain in two sentences why the sky is blue in the day and red in the evening."})
HIT = Request("/api/v1/generate/text", PROMPT, {"X-API-Key": KEY})
BARE = Request(FLOOR_PATH, PROMPT)


@dataclass(frozen=True, slots=True)
class Measured:
    """One server under one number of connections: its rounds, and processor microseconds per answer."""

    rounds: tuple[Round, ...]
    cpu_micros: float

    @property
    def middle(self) -> Round:
        """The medians."""
        return middle(self.rounds)


@dataclass(frozen=True, slots=True)
class Pair:
    """Service and floor, round by round."""

    service: Measured
    floor: Measured

    @property
    def ratios(self) -> list[float]:
        """The service's throughput over the floor's, lowest first, one for each round."""
        both = zip(self.service.rounds, self.floor.rounds, strict=True)
        return sorted(ours.rate / bare.rate for ours, bare in both)


def table(*, quick: bool = False) -> Iterator[str]:
    """The lines of the Markdown table."""
    of_both = [f"{name}{side}" for name in ("answers/s", "p50 ms", "p99 ms", "CPU µs") for side in ("", ", floor")]
    yield head("server", "connections", "ratio (spread)", *of_both)
    with emulator() as upstream, floor() as bare:
        for name, threads in (("waitress-serve, 4 threads", 4), ("python app.py", None)):
            with service(upstream, threads=threads) as served:
                _warm_up(served, bare, quick=quick)
                for connections in (4,) if quick else (1, 16, 64):
                    yield _row(name, connections, measured_pair(served, bare, connections, quick=quick))


def measured_pair(served: Server, bare: Server, connections: int, *, quick: bool = False) -> Pair:
    """Rounds of both in turn, so that whatever else the machine does falls on both."""
    rounds = 1 if quick else 5
    seconds = 1.0 if quick else 4.0
    ours: list[tuple[Round, float]] = []
    theirs: list[tuple[Round, float]] = []
    for _ in range(rounds):
        ours.append(_round(served, HIT, connections, seconds))
        theirs.append(_round(bare, BARE, connections, seconds))
    return Pair(_measured(ours), _measured(theirs))


def _warm_up(served: Server, bare: Server, *, quick: bool) -> None:
    offer(Order(served.port, HIT, requests=1))  # buys the answer
    for server, request in ((served, HIT), (bare, BARE)):
        offer(Order(server.port, request, connections=4, seconds=1.0 if quick else 2.0))


def _round(server: Server, request: Request, connections: int, seconds: float) -> tuple[Round, float]:
    before = server.cpu_seconds()
    came = offer(Order(server.port, request, connections, seconds))
    if came.refused:
        raise RuntimeError(f"{came.refused} of {came.answers} answers of {server.url} were not a 200")
    return came, (server.cpu_seconds() - before) / came.answers * 1e6


def _measured(rounds: list[tuple[Round, float]]) -> Measured:
    return Measured(tuple(came for came, _ in rounds), median(cpu for _, cpu in rounds))


def _row(name: str, connections: int, pair: Pair) -> str:
    ours, bare, ratios = pair.service.middle, pair.floor.middle, pair.ratios
    return row(
        name,
        f"{connections}",
        spread(ratios),
        *(f"{side.rate:,.0f}" for side in (ours, bare)),
        *(f"{side.p50 * 1000:.2f}" for side in (ours, bare)),
        *(f"{side.p99 * 1000:.1f}" for side in (ours, bare)),
        *(f"{side.cpu_micros:.0f}" for side in (pair.service, pair.floor)),
    )
