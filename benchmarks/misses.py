"""Misses: what the service adds to Gemini's own time, and how much of its work the prescribed SDK takes.

    python -m benchmarks.misses URL CALLS

by itself prints the processor milliseconds of one bare SDK call against the emulator at URL, as the benchmark does in a
process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from statistics import median
from typing import IO

from benchmarks.floor import MODEL, PROXY_PATH, sdk_model
from benchmarks.load import Order, Request, Round, middle, offer
from benchmarks.servers import CORES, KEY, PROJECT, Server, emulator, floor, pinned, service
from benchmarks.tables import head, row, spread

CONNECTIONS = 16
THREADS = 32
"""Of both: the default of `python app.py`."""
LATENCY_MS = 100
COMMIT_BYTES = 32 * 1024
"""About what a commit of the ledger writes."""
MISS = Request(
    "/api/v1/generate/text",
    json.dumps({"prompt": "Explain why the sky is blue, in words of number {n}."}),
    {"X-API-Key": KEY},
)
BARE = Request(PROXY_PATH, MISS.body)
DIRECT = Request(
    f"/v1beta/models/{MODEL}:generateContent",
    json.dumps({"contents": [{"role": "user", "parts": [{"text": "Explain why the sky is blue, number {n}."}]}]}),
    {"x-goog-api-key": "benchmark"},
)
_numbers = count(0, 1_000_000)  # each round asks for prompts that no other asks for


def table(*, quick: bool = False) -> Iterator[str]:
    """The lines of the Markdown table."""
    rounds, seconds = (1, 1.0) if quick else (5, 4.0)
    yield head("measure", "service", "bare Flask with the SDK")
    yield from _latency(rounds, seconds)
    yield from _throughput(rounds, seconds, calls=20 if quick else 500)


def _latency(rounds: int, seconds: float) -> Iterator[str]:
    with emulator(LATENCY_MS) as upstream, service(upstream) as served, floor(THREADS, upstream=upstream) as bare:
        sides = ((served, MISS), (bare, BARE))
        for side in sides:
            _round(*side, 1.0)
        direct, ours, theirs = zip(
            *((_round(upstream, DIRECT, seconds), *(_round(*side, seconds) for side in sides)) for _ in range(rounds)),
            strict=True,
        )
    case = f"{LATENCY_MS} ms at Gemini, {CONNECTIONS} connections"
    yield row(f"**ms added at the median**, {case}", _added(ours, direct), _added(theirs, direct))
    yield row(f"p99 ms, {case}", *(f"{middle(side).p99 * 1000:.0f}" for side in (ours, theirs)))
    yield row("ms of the disk for one sync, of which a miss takes two", spread(_sync_ms(rounds, seconds / 4)), "")


def _sync_ms(rounds: int, seconds: float) -> list[float]:
    """What the disk takes by itself for a write as large as a commit of the ledger: the median of each round.

    In place, as SQLite's log is written once it has its size, and as often as the misses above have to be.
    """
    pause = LATENCY_MS / 1000 / (2 * CONNECTIONS)
    with tempfile.TemporaryFile() as file:
        return [
            median(_seconds_to_disk(file, pause) for _ in range(round(seconds / pause))) * 1000 for _ in range(rounds)
        ]


def _seconds_to_disk(file: IO[bytes], pause: float) -> float:
    time.sleep(pause)
    file.seek(0)
    file.write(bytes(COMMIT_BYTES))
    file.flush()
    started = time.perf_counter()
    os.fsync(file.fileno())
    return time.perf_counter() - started


def _added(through: Sequence[Round], direct: Sequence[Round]) -> str:
    return spread([(one.p50 - other.p50) * 1000 for one, other in zip(through, direct, strict=True)], 1)


def _throughput(rounds: int, seconds: float, calls: int) -> Iterator[str]:
    with emulator() as upstream, service(upstream) as served, floor(THREADS, upstream=upstream) as bare:
        (ours, our_cpu), (theirs, their_cpu) = _in_turns(((served, MISS), (bare, BARE)), rounds, seconds)
        alone = [_bare_sdk_ms(upstream.url, calls) for _ in range(rounds)]
    case = f"0 ms at Gemini, {CONNECTIONS} connections"
    yield row(f"**answers a second**, {case}", *(spread([r.rate for r in side], 0) for side in (ours, theirs)))
    yield row("processor ms per answer, all of the process", f"{our_cpu:.2f}", f"{their_cpu:.2f}")
    yield row("processor ms per SDK call by itself, in one thread", "", spread(alone))


def _in_turns(sides: Sequence[tuple[Server, Request]], rounds: int, seconds: float) -> list[tuple[list[Round], float]]:
    """The rounds of each side after a warm-up, and its processor milliseconds per answer."""
    for side in sides:
        _round(*side, 1.0)
    before = [server.cpu_seconds() for server, _ in sides]
    came = [[_round(*side, seconds) for side in sides] for _ in range(rounds)]
    cpu = [server.cpu_seconds() - spent for (server, _), spent in zip(sides, before, strict=True)]
    by_side = [list(side) for side in zip(*came, strict=True)]
    return [(side, spent / sum(r.answers for r in side) * 1000) for side, spent in zip(by_side, cpu, strict=True)]


def _round(server: Server, request: Request, seconds: float) -> Round:
    came = offer(Order(server.port, request, CONNECTIONS, seconds, first_number=next(_numbers)))
    if came.refused:
        raise RuntimeError(f"{came.refused} of {came.answers} answers of {server.url} were not a 200")
    return came


def _bare_sdk_ms(url: str, calls: int) -> float:
    command = [sys.executable, "-m", "benchmarks.misses", url, str(calls)]
    process = pinned(subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE), CORES.server)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the bare SDK's calls failed")
    return float(output)


def main(arguments: list[str]) -> None:
    """Call `generate_content` so often in one thread; print processor milliseconds per call."""
    url, calls = arguments[0], int(arguments[1])
    model = sdk_model(url)
    for _ in range(10):
        model.generate_content("warm-up")
    before = time.process_time()
    for number in range(calls):
        model.generate_content(f"Explain why the sky is blue, number {number}.")
    print((time.process_time() - before) / calls * 1000)


if __name__ == "__main__":
    main(sys.argv[1:])
