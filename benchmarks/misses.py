"""Misses: what the service adds to Gemini's own time, and how much of its work the prescribed SDK takes.

    python -m benchmarks.misses URL CALLS

by itself prints the processor milliseconds of one bare SDK call against the emulator at URL, as the benchmark does in a
process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import count
from statistics import median

from benchmarks.load import Order, Request, Round, middle, offer
from benchmarks.servers import CORES, KEY, PROJECT, Server, emulator, pinned, service
from benchmarks.tables import head, row

MODEL = "gemini-2.5-flash-lite"
CONNECTIONS = 16
LATENCY_MS = 100
MISS = Request(
    "/api/v1/generate/text",
    json.dumps({"prompt": "Explain why the sky is blue, in words of number {n}."}),
    {"X-API-Key": KEY},
)
DIRECT = Request(
    f"/v1beta/models/{MODEL}:generateContent",
    json.dumps({"contents": [{"role": "user", "parts": [{"text": "Explain why the sky is blue, number {n}."}]}]}),
    {"x-goog-api-key": "benchmark"},
)
_numbers = count(0, 1_000_000)  # each round asks for prompts that no other asks for


def table(*, quick: bool = False) -> Iterator[str]:
    """The lines of the Markdown table."""
    yield head("measure", "value", "spread")
    yield from _latency(rounds=1 if quick else 5, seconds=1.0 if quick else 4.0)
    yield from _throughput(rounds=1 if quick else 5, seconds=1.0 if quick else 4.0, calls=20 if quick else 500)


def _latency(rounds: int, seconds: float) -> Iterator[str]:
    with emulator(LATENCY_MS) as upstream, service(upstream) as served:
        _round(served, MISS, 1.0)
        pairs = [(_round(upstream, DIRECT, seconds), _round(served, MISS, seconds)) for _ in range(rounds)]
    itself, ours = middle([pair[0] for pair in pairs]), middle([pair[1] for pair in pairs])
    added = [(answered.p50 - direct.p50) * 1000 for direct, answered in pairs]
    case = f"ms, upstream of {LATENCY_MS} ms, {CONNECTIONS} connections"
    for name, side in (("upstream itself", itself), ("through the service", ours)):
        yield row(f"median {case}: {name}", f"{side.p50 * 1000:.1f}", "")
        yield row(f"p99 {case}: {name}", f"{side.p99 * 1000:.1f}", "")
    yield row("**ms added at the median**", f"{median(added):.1f}", f"{min(added):.1f}-{max(added):.1f}")


def _throughput(rounds: int, seconds: float, calls: int) -> Iterator[str]:
    with emulator() as upstream, service(upstream) as served:
        _round(served, MISS, 1.0)
        before = served.cpu_seconds()
        came = [_round(served, MISS, seconds) for _ in range(rounds)]
        cpu = (served.cpu_seconds() - before) / sum(r.answers for r in came) * 1000
        bare = [_bare_sdk_ms(upstream.url, calls) for _ in range(rounds)]
    rates = sorted(r.rate for r in came)
    case = f"upstream of 0 ms, {CONNECTIONS} connections"
    yield row(f"**answers a second**, {case}", f"{median(rates):.0f}", f"{rates[0]:.0f}-{rates[-1]:.0f}")
    yield row("processor ms per miss, all of the service", f"{cpu:.2f}", "")
    yield row("processor ms per bare SDK call", f"{median(bare):.2f}", f"{min(bare):.2f}-{max(bare):.2f}")
    yield row("the bare SDK call's share of a miss", f"{median(bare) / cpu:.0%}", "")


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's support has ended, and it says so
        from google.generativeai import client, generative_models
    url, calls = arguments[0], int(arguments[1])
    client.configure(api_key="benchmark", transport="rest", client_options={"api_endpoint": url})
    model = generative_models.GenerativeModel(MODEL)
    for _ in range(10):
        model.generate_content("warm-up")
    before = time.process_time()
    for number in range(calls):
        model.generate_content(f"Explain why the sky is blue, number {number}.")
    print((time.process_time() - before) / calls * 1000)


if __name__ == "__main__":
    main(sys.argv[1:])
