"""What the ledger costs: one answer alone and 32 at once, its sums at growing size, and a hit.

    python -m benchmarks.ledger_growth [--rows 1000000]

Works in a temporary folder of --folder (default: the system's), so choose the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path
from statistics import median, quantiles

from mtllm.billing.prices import Price
from mtllm.domain.money import Amount, Charge, Cost, TokenUsage
from mtllm.ledger.ledger import Attempt, Hit, Ledger, Settlement, open_ledger

NOW = 1_800_000_000.0
ANSWERS = {1: 100, 32: 40}
"""Answers per thread, by number of threads."""
MODEL_SECONDS = (0.05, 0.25)
"""Between which the length of the pretended call to the model is drawn, in the second table."""
SIZES = (10, 1_000, 100_000, 1_000_000)
HITS = 50_000

Range = tuple[float, float]

PRICE = Price("model", date.min, 100_000_000, 10_000_000, 400_000_000)
SETTLEMENT = Settlement("ok", "model", Charge(Amount(TokenUsage(400, 120), Cost(40_000, 48_000)), PRICE))


def main() -> None:
    """Print the tables."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _table("open + settle, ms added to an answer, one after the other", _latencies(Path(folder), (0.0, 0.0)))
        title = "the same around calls of {:.0f} to {:.0f} ms".format(*(1_000 * seconds for seconds in MODEL_SECONDS))
        _table(title, _latencies(Path(folder), MODEL_SECONDS))
        _table("reading /stats: totals and three windows", _growth(Path(folder), options.rows))
        _table("recording a hit", _hits(Path(folder)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="the largest ledger to read from")
    parser.add_argument("--folder", type=Path, default=None, help="where to work")
    return parser.parse_args()


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> None:
    print(f"\n{title}")
    for first, *rest in rows:
        print(f"  {first:<28}" + "".join(f"{cell:>14}" for cell in rest), flush=True)


def _attempt(at: float = NOW) -> Attempt:
    return Attempt("request", "text", "10.0.0.1", "model", at, at + 30, 1_000_000)


def _latencies(folder: Path, call_seconds: Range) -> Iterable[tuple[str, ...]]:
    yield "", "threads", "median", "p99", "answers/s"
    for threads, answers in ANSWERS.items():
        for sync in ("full", "normal"):
            with closing(open_ledger(folder / f"{sync}-{threads}-{call_seconds[1]}.sqlite3", sync=sync)) as ledger:
                ledger.prepare()
                yield sync, str(threads), *_timed(lambda call: _answer(ledger, call), threads, answers, call_seconds)
        yield "no ledger", str(threads), *_timed(lambda call: call(), threads, answers, call_seconds)


def _answer(ledger: Ledger, call: Callable[[], None]) -> None:
    row_id = ledger.open(_attempt())
    call()
    ledger.settle(row_id, SETTLEMENT)


def _timed(
    answer: Callable[[Callable[[], None]], None], threads: int, answers: int, call_seconds: Range
) -> tuple[str, str, str]:
    """Median and 99th percentile of what `answer` takes beside its call, in ms, and the answers per second."""
    barrier = threading.Barrier(threads + 1)

    def work() -> list[float]:
        barrier.wait()
        return [_seconds_beside_the_call(answer, random.uniform(*call_seconds)) * 1_000 for _ in range(answers)]

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        barrier.wait()
        start = time.perf_counter()
        times = [taken for future in futures for taken in future.result()]
        elapsed = time.perf_counter() - start
    return f"{median(times):.3f}", f"{quantiles(times, n=100)[98]:.3f}", f"{len(times) / elapsed:.0f}"


def _seconds_beside_the_call(answer: Callable[[Callable[[], None]], None], call_seconds: float) -> float:
    called = 0.0

    def call() -> None:
        nonlocal called
        start = time.perf_counter()
        if call_seconds:
            time.sleep(call_seconds)
        called = time.perf_counter() - start

    start = time.perf_counter()
    answer(call)
    return time.perf_counter() - start - called


def _growth(folder: Path, largest: int) -> Iterable[tuple[str, ...]]:
    yield "rows", "stats ms", "file MB"
    path = folder / "growth.sqlite3"
    with closing(open_ledger(path, sync="normal")) as ledger:
        written = 0
        for size in (size for size in SIZES if size <= largest):
            _fill(ledger, written, size)
            written = size
            times = [_stats_seconds(ledger) * 1_000 for _ in range(50)]
            yield f"{size:,}", f"{median(times):.3f}", f"{path.stat().st_size / 1e6:.1f}"


def _fill(ledger: Ledger, start: int, end: int) -> None:
    """Hits of 500 clients, evenly over the 40 days before NOW whatever their number."""
    for number in range(start, end):
        at = NOW - (number * 7_919 % SIZES[-1]) * 40 * 86_400 / SIZES[-1]
        while ledger.health().queued_hits > 9_000:
            ledger.flush()
        ledger.record_hit(Hit("request", at, "text", f"10.0.0.{number % 500}", "model", 400, 120, 88_000))
    ledger.flush()


def _stats_seconds(ledger: Ledger) -> float:
    start = time.perf_counter()
    ledger.totals()
    for hours in (1, 24, 720):
        ledger.window(hours, NOW)
    return time.perf_counter() - start


def _hits(folder: Path) -> Iterable[tuple[str, ...]]:
    """Hits at the pace of a busy service: bursts that the queue takes, then the writer's turn."""
    with closing(open_ledger(folder / "hits.sqlite3")) as ledger:
        ledger.prepare()
        hit = Hit("request", NOW, "text", "10.0.0.1", "model", 400, 120, 88_000)
        burst, recording = 5_000, 0.0
        cpu = time.process_time()
        for _ in range(HITS // burst):
            start = time.perf_counter()
            for _ in range(burst):
                ledger.record_hit(hit)
            recording += time.perf_counter() - start
            ledger.flush()
        cpu = time.process_time() - cpu
        yield "us on the request's thread", f"{recording / HITS * 1e6:.2f}"
        yield "us of CPU in all", f"{cpu / HITS * 1e6:.2f}"
        yield "dropped", str(ledger.health().dropped_hits)


if __name__ == "__main__":
    main()
