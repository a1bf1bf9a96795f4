"""Measure the service beside bare Flask, and its parts beside others of their kind.

python -m benchmarks                       everything, a quarter of an hour or more
python -m benchmarks hits misses           some of it
python -m benchmarks --quick               only that it runs: the figures mean nothing
python -m benchmarks --write               puts the tables into docs/performance.md, and the plot beside it
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import growth, hits, isolation, misses, startup
from benchmarks.servers import CORES, PROJECT

REPORT = PROJECT / "docs" / "performance.md"
END = "<!-- end -->"

Lines = Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A table of the report: its lines in earnest, and in the form that only shows that they come."""

    full: Lines
    quick: Lines


def _ours(table: Callable[..., Iterator[str]]) -> Benchmark:
    return Benchmark(table, partial(table, quick=True))


def _module(name: str, full: Sequence[str], quick: Sequence[str]) -> Benchmark:
    """A benchmark that is a program of its own."""
    return Benchmark(partial(printed, f"benchmarks.{name}", full), partial(printed, f"benchmarks.{name}", quick))


def printed(module: str, arguments: Sequence[str]) -> Iterator[str]:
    """What `python -m module` prints, line by line. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from (line.rstrip("\n") for line in process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def fenced(benchmark: Benchmark) -> Benchmark:
    """The same lines as a block of plain text."""

    def around(lines: Lines) -> Iterator[str]:
        yield "```text"
        yield from lines()
        yield "```"

    return Benchmark(partial(around, benchmark.full), partial(around, benchmark.quick))


def machine() -> Iterator[str]:
    """What the figures were measured on."""
    cores = f"server on core {CORES.server}, load on core {CORES.load}" if CORES.load is not None else "not pinned"
    packages = ", ".join(f"{name} {version(name)}" for name in ("flask", "werkzeug", "waitress", "pydantic"))
    load = "wrk" if shutil.which("wrk") else "the generator of benchmarks/load.py"
    yield f"- {platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} cores: {cores}"
    yield f"- Python {platform.python_version()}, {packages}"
    yield f"- Load: {load} where requests are all alike, else the generator of benchmarks/load.py"


BENCHMARKS = {
    "machine": Benchmark(machine, machine),
    "hits": _ours(hits.table),
    "profile": fenced(_module("profile_hit", ["--seconds=20"], ["--seconds=0.5"])),
    "misses": _ours(misses.table),
    "isolation": _ours(isolation.table),
    "startup": _ours(startup.table),
    "growth": Benchmark(partial(growth.table, picture=growth.PICTURE), partial(growth.table, quick=True)),
    "cache": _module("parts_cache", [], ["--smoke"]),
    "logging": _module("parts_logging", [], ["--smoke"]),
    "ledger": fenced(_module("ledger_growth", [], ["--rows=1000"])),
    "savings": _module("cost_savings", [], ["--requests=500"]),
}


def rewritten(report: str, name: str, lines: Sequence[str]) -> str:
    """`report` with what stands between the markers of table `name` replaced. Raises ValueError when there are none."""
    begin = f"<!-- table: {name} -->"
    found = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL).search(report)
    if found is None:
        raise ValueError(f"the report has no place for the table {name}")
    return "\n".join((report[: found.start()] + begin, *lines, END + report[found.end() :]))


def write(name: str, lines: Sequence[str], report: Path = REPORT) -> None:
    """Put a table into the report."""
    report.write_text(rewritten(report.read_text(encoding="utf-8"), name, lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are named."""
    options = _options(arguments)
    for name in options.names or BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        lines = []
        for line in (BENCHMARKS[name].quick if options.quick else BENCHMARKS[name].full)():
            print(line, flush=True)
            lines.append(line)
        if options.write:
            write(name, lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of them: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="only show that they run")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {REPORT.relative_to(PROJECT)}")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    if options.quick and options.write:
        parser.error("figures of a quick run are not for the report")
    return options


if __name__ == "__main__":
    main()
