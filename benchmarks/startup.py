"""Cold start and memory: how soon the first healthy answer comes, and what the process weighs, idle and in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from benchmarks.load import Order, Request, offer
from benchmarks.servers import Server, emulator, floor, service
from benchmarks.tables import head, row, spread

CONNECTIONS = 16
IDLE_SECONDS = 3.0
"""By then everything heavy that loads after the start has loaded."""
CLIENT = {"X-Forwarded-For": "{address}"}
PATH = "/api/v1/generate/text"
NEW_PROMPT = Request(PATH, json.dumps({"prompt": "A prompt that nobody has sent before, number {n}."}), CLIENT)
KNOWN_PROMPT = Request(PATH, json.dumps({"prompt": "A prompt that everybody sends."}), CLIENT)
ONE_IN = 10
"""One request in so many brings a prompt of its own; every request brings a client of its own."""


def table(*, quick: bool = False) -> Iterator[str]:
    """The lines of the Markdown table."""
    yield head("measure", "service", "bare Flask")
    yield from _cold_start(rounds=1 if quick else 9, idle_seconds=0.5 if quick else IDLE_SECONDS)
    yield from _memory((200, 400) if quick else (10_000, 50_000, 100_000, 200_000))


def _cold_start(rounds: int, idle_seconds: float) -> Iterator[str]:
    ours: list[float] = []
    bare: list[float] = []
    with emulator() as upstream:
        for number in range(rounds):
            with service(upstream, offline=True) as served:
                ours.append(served.seconds_to_healthy)
                if number == rounds - 1:
                    time.sleep(idle_seconds)
                    idle = served.resident_mb()
            with floor() as flask:
                bare.append(flask.seconds_to_healthy)
                bare_idle = flask.resident_mb()
    yield row("s from `python app.py --offline` to the first healthy answer", spread(ours), spread(bare))
    yield row(f"MB resident, idle, {idle_seconds:g} s after the start", f"{idle:.1f}", f"{bare_idle:.1f}")


def _memory(stages: tuple[int, ...]) -> Iterator[str]:
    """Under waitress-serve, told to pass X-Forwarded-For on; without API keys, since a key would be the client."""
    limits = "60/minute;1000/hour"
    with (
        emulator() as upstream,
        service(upstream, threads=32, API_KEYS="", TRUSTED_PROXIES="1", RATE_LIMITS=limits) as served,
    ):
        sent = 0
        for stage in stages:
            sent = _send(served, sent, stage)
            yield row(f"MB resident after {stage:,} requests of distinct clients", f"{served.resident_mb():.1f}", "")


def _send(served: Server, sent: int, until: int) -> int:
    batch = min(until - sent, 10_000)
    while sent < until:
        new = batch // ONE_IN
        for request, amount in ((NEW_PROMPT, new), (KNOWN_PROMPT, batch - new)):
            came = offer(Order(served.port, request, CONNECTIONS, requests=amount, first_number=sent))
            if came.refused:
                raise RuntimeError(f"{came.refused} of {came.answers} answers were not a 200")
            sent += amount
    return sent
