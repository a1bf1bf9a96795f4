"""Export a large ledger over HTTP and from the command line: how long it takes, and that memory does not grow with it.

    python -m benchmarks.export [--rows 1000000]

Each export runs on a ledger of that many rows, after one of a hundredth of them, in the same process.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

from benchmarks import tables
from benchmarks.servers import ADMIN_KEY, PROJECT, Server, everything_on, free_port
from mtllm.ledger.ledger import Hit, open_ledger

ROWS = 1_000_000
FORMATS = ("csv", "jsonl")
READ_BYTES = 1 << 20
FLUSH_ROWS = 5_000


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of the large ledger ({ROWS:,})")
    options = parser.parse_args(arguments)
    print(tables.head("export of", "seconds", "MB sent", "most memory, MB", words=1))
    with tempfile.TemporaryDirectory(prefix="mtllm-export-") as folder:
        ledger = Path(folder) / "data" / "ledger.sqlite3"
        written = 0
        for rows in (options.rows // 100, options.rows):
            fill(ledger, written, rows)
            written = rows
            for line in chain(over_http(Path(folder), rows), from_the_command_line(ledger, rows)):
                print(line, flush=True)


def fill(path: Path, start: int, end: int) -> None:
    """Rows of hits, one a second."""
    now = time.time()
    with closing(open_ledger(path, sync="normal")) as ledger:
        for number in range(start, end):
            ledger.record_hit(
                Hit(f"r-{number}", now - number, "text", f"10.0.0.{number % 250}", "model", 400, 120, 88_000)
            )
            if not number % FLUSH_ROWS:
                ledger.flush()
        ledger.flush()


def over_http(folder: Path, rows: int) -> Iterator[str]:
    """From a service started for it; its memory is read while it sends."""
    port = free_port()
    environ = {**os.environ, **everything_on(folder, "http://127.0.0.1:9"), "PORT": str(port)}
    with Server(["app.py"], port, environ=environ, core=None) as server:
        time.sleep(3)  # until what loads in the background has loaded
        for name in FORMATS:
            request = urllib.request.Request(
                f"{server.url}/api/v1/usage/export?format={name}", headers={"X-API-Key": ADMIN_KEY}
            )
            sent, most, begun = 0, server.resident_mb(), time.perf_counter()
            with urllib.request.urlopen(request) as response:
                while part := response.read(READ_BYTES):
                    sent += len(part)
                    most = max(most, server.resident_mb())
            seconds = time.perf_counter() - begun
            yield tables.row(f"{rows:,} rows, HTTP, {name}", f"{seconds:.1f}", f"{sent / 1e6:.1f}", f"{most:.0f}")


def from_the_command_line(ledger: Path, rows: int) -> Iterator[str]:
    """With the memory that the kernel counted for the process, imports included."""
    for name in FORMATS:
        output = ledger.with_name(f"export.{name}")
        command = ["cost_tracker.py", "export", f"--format={name}", f"--database={ledger}", f"--output={output}"]
        measured = [sys.executable, "-m", "benchmarks.export", "--measure", *command]
        begun = time.perf_counter()
        most = subprocess.run(measured, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
        seconds = time.perf_counter() - begun
        size = output.stat().st_size / 1e6
        yield tables.row(f"{rows:,} rows, command line, {name}", f"{seconds:.1f}", f"{size:.1f}", most)


def measure(command: list[str]) -> None:
    """Run a command and print the most memory that it had, in MB."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        main()
