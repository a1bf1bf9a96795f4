"""The command line of bulk files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from mtllm.bulk.journal import JournalError, RunJournal
from mtllm.bulk.run import Ask, Tally, fill
from mtllm.bulk.tables import TableError, dollars, open_table
from mtllm.client import Client, ClientError, Unreachable

EXIT_STOPPED, EXIT_INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 whole, 1 stopped, 2 wrong arguments, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.task == "classify") != bool(options.categories):
        parser.error("--categories goes with --task classify, and only with it")
    if options.output.exists():
        parser.error(f"{options.output} exists already: choose another name")
    try:
        tally = _run(options)
    except KeyboardInterrupt:
        return _tell_stop("Stopped.", EXIT_INTERRUPTED)
    except (ClientError, TableError, JournalError, OSError) as error:
        return _tell_stop(str(error), EXIT_STOPPED)
    for category, count in tally.categories.most_common() if options.task == "classify" else ():
        print(f"{category}: {count}")
    print(
        f"{tally.rows} rows in {options.output}: {tally.errors} with errors, {tally.resumed} from an earlier run, "
        f"${dollars(tally.cost)} in all, ${dollars(tally.bought)} now"
    )
    return 0


def _run(options: argparse.Namespace) -> Tally:
    table = open_table(options.input, options.column, options.encoding)
    total = sum(1 for _ in table.rows())  # the whole file is read once before anything is bought
    if options.limit is not None:
        total = min(total, options.limit)
    asked = {name: getattr(options, name) for name in ("task", "column", "categories", "language", "encoding")}
    journal_path = options.output.with_name(f"{options.output.name}.journal")
    stopping, key = Event(), options.key or os.environ.get("MTLLM_KEY")

    def sleep(seconds: float) -> None:
        if stopping.wait(seconds):
            raise Unreachable("The run was stopped.")

    with (
        Client(options.url, key=key, patience=options.patience, sleep=sleep) as client,
        RunJournal(journal_path, json.dumps(asked)) as journal,
    ):
        return fill(
            table,
            _ask(client, options),
            options.output,
            journal,
            concurrency=options.concurrency,
            limit=options.limit,
            seen=_progress(total),
            stop=stopping.set,
        )


def _ask(client: Client, options: argparse.Namespace) -> Ask:
    if options.task == "classify":
        return lambda text: client.classify_text(text, options.categories)
    if options.task == "code":
        return lambda text: client.generate_code(text, options.language)
    return client.generate_text


def _progress(total: int) -> Callable[[Tally], None]:
    """Return what shows the progress on standard error: a bar on a terminal, else a line each ten seconds."""
    begun, on_terminal = time.monotonic(), sys.stderr.isatty()
    every, told = (0.1 if on_terminal else 10.0), begun

    def show(tally: Tally) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < every and not (on_terminal and tally.rows == total):
            return
        told = now
        rate = (tally.rows - tally.resumed) / (now - begun)
        left = f"{(total - tally.rows) / rate:.0f} s left" if rate else "time left unknown"
        line = f"{tally.rows}/{total} rows, ${dollars(tally.cost)}, {rate:.1f} rows/s, {left}"
        bar = f"[{'#' * (30 * tally.rows // total):30}] "
        end = "\n" if not on_terminal or tally.rows == total else ""
        print(f"\r{bar}{line}\x1b[K" if on_terminal else line, end=end, file=sys.stderr, flush=True)

    return show


def _tell_stop(reason: str, status: int) -> int:
    print(f"{reason}\nNothing is lost: the same command goes on where this one stopped.", file=sys.stderr)
    return status


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bulk.py", description="Answer each row of a CSV or JSON lines file.")
    parser.add_argument("input", type=Path, help="CSV with headings, or JSON lines (.jsonl, .ndjson)")
    parser.add_argument("--task", choices=("text", "code", "classify"), required=True)
    parser.add_argument("--column", required=True, help="the column with the texts")
    parser.add_argument("--output", type=Path, required=True, help="the file to write; in the format of the input")
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the running service (%(default)s)")
    parser.add_argument("--key", help="API key of the service (default: the variable MTLLM_KEY)")
    parser.add_argument("--categories", type=lambda text: text.split(","), help="for classify: a,b,c")
    parser.add_argument("--language", help="for code")
    parser.add_argument("--encoding", help="of a CSV file (default: UTF-8, or UTF-16 with a BOM)")
    parser.add_argument("--limit", type=_positive, help="answer only so many rows")
    parser.add_argument("--concurrency", type=_positive, default=4, help="rows in flight at once (%(default)s)")
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for a busy service (%(default)s)")
    return parser
