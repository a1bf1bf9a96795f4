"""More than one process: hits and misses by number of workers, with and without Redis, and under which server.

    python -m benchmarks.scale [--quick]

Servers may use every core; the load and Gemini's stand-in share the second one. On a machine of two cores, more than
one worker shows what several processes cost, not what several machines bring.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.hits import HIT
from benchmarks.load import Order, Request, Round, middle, offer
from benchmarks.misses import MISS
from benchmarks.servers import Server, emulator, everything_on, free_port
from benchmarks.tables import head, row

LATENCY_MS = 50
THREADS = 8
CONNECTIONS = 16
_numbers = count(2_000_000, 1_000_000)  # each round asks for prompts that no other asks for


@dataclass(frozen=True, slots=True)
class Case:
    """One way of running the service."""

    server: str
    workers: int
    redis: bool = False
    postgres: bool = False

    @property
    def command(self) -> list[str]:
        """The server's arguments, but for address and application."""
        threads = str(THREADS)
        if self.server == "granian":
            return ["-m", "granian", "--interface=wsgi", "--workers", str(self.workers), "--blocking-threads", threads]
        return ["-m", "gunicorn", "--threads", threads, "-w", str(self.workers), "--keep-alive=60"]

    def address(self, port: int) -> list[str]:
        """The arguments that say where to listen."""
        return [f"--port={port}"] if self.server == "granian" else [f"--bind=127.0.0.1:{port}"]

    @property
    def stores(self) -> str:
        """Where shared state lies."""
        return " + ".join(("PostgreSQL" if self.postgres else "SQLite", *(["Redis"] if self.redis else [])))


CASES = (
    *(Case("gunicorn", workers, redis) for redis in (False, True) for workers in (1, 2, 4)),
    *(Case("gunicorn", workers, True, True) for workers in (1, 2, 4)),
    *(Case("granian", workers) for workers in (1, 4)),
)


def table(*, quick: bool = False) -> Iterator[str]:
    """The lines of the Markdown table."""
    figures = [f"{kind}: {name}" for kind in ("hits", "misses") for name in ("answers/s", "p50 ms", "p99 ms")]
    yield head("server", "shared state", "workers", *figures, words=2)
    for case in CASES[:1] if quick else CASES:
        with emulator(LATENCY_MS) as upstream, running(case, upstream) as server:
            _warm_up(server, case)
            hits = _rounds(server, HIT, quick)
            misses = _rounds(server, MISS, quick)
        cells = (f"{value:.{places}f}" for come in (hits, misses) for value, places in _figures(come))
        yield row(case.server, case.stores, str(case.workers), *cells)


@contextmanager
def running(case: Case, upstream: Server) -> Iterator[Server]:
    """The service as `case` says, with everything on, in a folder of its own."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtllm-benchmark-"))
        environ = everything_on(Path(folder), upstream.url) | {"GEMINI_MAX_CONCURRENCY": str(THREADS), "HOME": folder}
        if case.redis:
            from tests.support.redis_server import running_redis  # the tests' servers, where the wheels are installed

            environ["REDIS_URL"] = stack.enter_context(running_redis()).url
        if case.postgres:
            from tests.support.postgres_server import PostgresServer

            database = PostgresServer()
            stack.callback(database.remove)
            environ["DATABASE_URL"] = database.url
        port = free_port()
        server = Server([*case.command, *case.address(port), "app:app"], port, environ=environ, core=None)
        yield stack.enter_context(server)


def _warm_up(server: Server, case: Case) -> None:
    """Every worker opens, loads the SDK and keeps the answer."""
    offer(Order(server.port, MISS, CONNECTIONS, 3.0, first_number=next(_numbers)))
    offer(Order(server.port, HIT, 4 * case.workers, 2.0))


def _rounds(server: Server, request: Request, quick: bool) -> Round:
    came = middle([
        offer(Order(server.port, request, CONNECTIONS, 1.0 if quick else 3.0, first_number=next(_numbers)))
        for _ in range(1 if quick else 3)
    ])  # fmt: skip
    if came.refused:
        raise RuntimeError(f"{came.refused} of {came.answers} answers were not a 200")
    return came


def _figures(come: Round) -> Sequence[tuple[float, int]]:
    return (come.rate, 0), (come.p50 * 1000, 1), (come.p99 * 1000, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as it grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Workers, Redis, PostgreSQL.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    for line in table(quick=parser.parse_args(arguments).quick):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
