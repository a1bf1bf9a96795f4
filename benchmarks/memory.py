"""What `python app.py` weighs once it has answered much that is new, and the same again; another checkout beside it.

python -m benchmarks.memory                         10,000 answers bought, then asked for again, all of them kept
python -m benchmarks.memory --beside CHECKOUT       and the same of another checkout, in turns
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.load import Order, Request, offer
from benchmarks.servers import PROJECT, Server, emulator, read, service
from benchmarks.tables import head, row, spread

PATH = "/api/v1/generate/text"
PROMPT = Request(PATH, json.dumps({"prompt": "A prompt of its own, number {n}, of which an answer is kept."}))
CONNECTIONS = 16
IDLE_SECONDS = 3.0
LATER_SECONDS = 75.0
"""By then what is only needed now and then has gone."""


def table(*, answers: int, rounds: int, beside: Path | None, later: float = LATER_SECONDS) -> Iterator[str]:
    """The lines of the Markdown table; the ratio is this checkout's memory over the other's, at the same moment."""
    checkouts = [PROJECT] + ([beside] if beside else [])
    measured: list[list[list[float]]] = [[] for _ in checkouts]
    compared: list[int] = []
    with emulator() as upstream:
        for _ in range(rounds):
            for checkout, rows in zip(checkouts, measured, strict=True):
                weights, samples = _weigh(upstream, checkout, answers, later)
                rows.append(weights)
                compared.append(samples)
    moments = ("idle", f"after {answers:,} misses and as many hits", f"{later:g} s later")
    yield head("MB resident", *(["this checkout", "beside it", "ratio"] if beside else ["python app.py"]))
    for number, moment in enumerate(moments):
        columns = [[rows[number] for rows in of_one] for of_one in measured]
        cells = [spread(column) for column in columns]
        if beside:
            cells.append(spread([ours / theirs for ours, theirs in zip(*columns, strict=True)]))
        yield row(moment, *cells)
    yield f"\nCalls compared with Gemini's counts: {', '.join(map(str, compared))}"


def _weigh(upstream: Server, checkout: Path, answers: int, later: float) -> tuple[list[float], int]:
    size = str(2 * answers)
    with service(upstream, checkout=checkout, API_KEYS="", RATE_LIMITS="", RESPONSE_CACHE_SIZE=size) as served:
        time.sleep(IDLE_SECONDS)
        weights = [served.resident_mb()]
        for _ in ("misses", "hits"):
            came = offer(Order(served.port, PROMPT, CONNECTIONS, requests=answers))
            if came.refused:
                raise RuntimeError(f"{came.refused} of {came.answers} answers were not a 200")
        weights.append(served.resident_mb())
        time.sleep(later)
        weights.append(served.resident_mb())
        samples: int = json.loads(read(f"{served.url}/stats"))["token_estimate"]["samples"]
        return weights, samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--later", type=float, default=LATER_SECONDS, help="seconds of rest before the last weighing")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    options = parser.parse_args(arguments)
    for line in table(answers=options.answers, rounds=options.rounds, beside=options.beside, later=options.later):
        print(line, flush=True)


if __name__ == "__main__":
    main()
