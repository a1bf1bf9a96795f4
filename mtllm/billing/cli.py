"""`python cost_tracker.py export | report | prune | prices`: ledger and prices from the command line."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from mtllm.billing.export import EXPORTERS, write_file
from mtllm.billing.price_list import FORMATS, list_prices
from mtllm.billing.prices import PriceTable
from mtllm.billing.report import report
from mtllm.domain.errors import ApiError
from mtllm.domain.times import LATEST, parse_time
from mtllm.gemini.models import ModelTable
from mtllm.ledger.ledger import Ledger, LedgerTooNew, open_ledger
from mtllm.project import project_path

if TYPE_CHECKING:
    from mtllm.settings import Settings

T = TypeVar("T")
_DAY = 86_400
_MOST_DAYS = 36_500
_QUIET_ROWS = 100_000  # an output that is not a terminal hears of progress every so many rows
_QUIET_SECONDS = 0.5  # and a terminal every so many seconds

_EPILOG = """\
times are RFC 3339 (2026-01-31T12:00:00Z, 2026-01-31), UTC when they name no zone, or epoch seconds;
--from is included, --to is not. Without --database the ledger is the one of the settings
(DATA_DIR or DATABASE_URL); that of offline mode is data/offline.sqlite3.

examples:
  python cost_tracker.py report --days 7
  python cost_tracker.py export --format csv --from 2026-11-01 --to 2026-12-01 --output november.csv
  python cost_tracker.py export --format jsonl --database data/offline.sqlite3
  python cost_tracker.py prune --dry-run
  python cost_tracker.py prices --at 2027-01-01
"""


class CommandError(Exception):
    """A command cannot be done; the sentence says why."""


class Progress:
    """Shows on `stream` how far long work has come: on a terminal as one line that renews itself."""

    def __init__(self, stream: TextIO, done: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._done = done
        self._monotonic = monotonic
        self._terminal = stream.isatty()
        self._next_time = monotonic() + _QUIET_SECONDS
        self._next_rows = _QUIET_ROWS
        self._unfinished = False

    def show(self, rows: int) -> None:
        """Show that `rows` are done, if it is time for it."""
        if self._terminal and self._monotonic() >= self._next_time:
            self._next_time = self._monotonic() + _QUIET_SECONDS
            self._unfinished = True
            print(f"\rrows {self._done}: {rows:,}", end="", file=self._stream, flush=True)
        elif not self._terminal and rows >= self._next_rows:
            self._next_rows = rows - rows % _QUIET_ROWS + _QUIET_ROWS
            print(f"rows {self._done}: {rows:,}", file=self._stream, flush=True)

    def end(self, rows: int) -> None:
        """Show how many rows it was, once all is done."""
        print(f"{chr(13) if self._unfinished else ''}rows {self._done}: {rows:,}", file=self._stream, flush=True)

    def count(self, rows: Iterable[T]) -> Iterator[T]:
        """Yield the same rows; show how many as they pass and at the end."""
        number = 0
        for number, row in enumerate(rows, start=1):
            if not number % 1000:
                self.show(number)
            yield row
        self.end(number)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 not possible (stderr says why), 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`| head`). What is still buffered must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (CommandError, LedgerTooNew, ApiError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.strerror}: {error.filename}" if error.filename else str(error))
    return 0


def _refuse(sentence: str) -> int:
    print(f"cost_tracker: {sentence}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cost_tracker.py",
        description="What the calls to Gemini cost, and what the cache saved.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="export | report | prune | prices", required=True)

    export = _command(commands, "export", "write all rows as CSV or JSON lines", _export)
    _add_ledger(export)
    export.add_argument("--format", choices=sorted(EXPORTERS), default="csv", help="default: csv")
    _add_range(export)
    export.add_argument("--output", metavar="FILE", default="-", help="file to write; - (default) is standard output")

    report = _command(commands, "report", "print tables by day, task, model and client", _report)
    _add_ledger(report)
    report.add_argument("--days", type=_days, default=30, metavar="N", help="the last N days, today included (30)")
    _add_range(report)

    prune = _command(commands, "prune", "remove old rows; totals and reports keep them", _prune)
    _add_ledger(prune)
    prune.add_argument(
        "--days", type=_days, metavar="N", help="remove rows older than this; default: USAGE_RETENTION_DAYS"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say how many rows would go")

    prices = _command(commands, "prices", "print the models and prices in force", _prices)
    prices.add_argument("--at", type=_day, metavar="DATE", help="on another day than today (UTC), such as 2027-01-01")
    prices.add_argument("--format", choices=sorted(FORMATS), default="text", help="default: text")
    return parser


def _command(
    commands: Any, name: str, meaning: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _add_ledger(command: argparse.ArgumentParser) -> None:
    command.add_argument("--database", metavar="FILE|URL", help="another ledger than that of the settings")


def _add_range(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from", dest="from_", type=_moment, metavar="TIME", help="first moment (included)")
    command.add_argument("--to", type=_moment, metavar="TIME", help="end (not included)")


def _moment(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"must be a whole number of days from 1 to {_MOST_DAYS}")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a date such as 2027-01-31") from None


def _export(options: argparse.Namespace) -> None:
    with _ledger(options) as ledger:
        progress = Progress(sys.stderr, "exported")
        rows = progress.count(ledger.export(*_range(options)))
        chunks = EXPORTERS[options.format](rows)
        if options.output == "-":
            _write_out(chunks)
        else:
            write_file(Path(options.output), chunks)


def _report(options: argparse.Namespace) -> None:
    tomorrow = time.time() // _DAY * _DAY + _DAY
    if options.from_ is None and options.to is None:
        options.from_ = tomorrow - options.days * _DAY
    with _ledger(options) as ledger:
        _write_out(line + "\n" for line in report(ledger, *_range(options, latest=tomorrow)))


def _range(options: argparse.Namespace, latest: float = LATEST) -> tuple[float, float]:
    from_ = 0.0 if options.from_ is None else options.from_
    return from_, latest if options.to is None else options.to


def _prune(options: argparse.Namespace) -> None:
    days = options.days or _settings().usage_retention_days
    before = time.time() - days * _DAY
    with _ledger(options) as ledger:
        if options.dry_run:
            _write_out([f"rows older than {days:g} days: {ledger.count_before(before):,}\n"])
            return
        progress = Progress(sys.stderr, "removed")
        progress.end(ledger.prune(before, progress=progress.show))


def _prices(options: argparse.Namespace) -> None:
    settings = _settings()
    try:
        prices = PriceTable.in_force(
            settings.prices_file, settings.input_price_per_million, settings.output_price_per_million
        )
        models = ModelTable.load(project_path("models.toml"))
    except ValueError as problem:
        raise CommandError(str(problem)) from None
    listed = list_prices(prices, models, options.at or datetime.now(UTC).date())
    _write_out(line + "\n" for line in FORMATS[options.format](listed))


def _write_out(chunks: Iterable[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # programs read it: UTF-8, ends of lines as they are
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    sys.stdout.writelines(chunks)


def _ledger(options: argparse.Namespace) -> AbstractContextManager[Ledger]:
    location = options.database or _settings().ledger_location
    location = location.removeprefix("sqlite:///")
    if "://" not in location and not Path(location).is_file():
        raise CommandError(f"there is no ledger at {location} ({_elsewhere(Path(location), options.database)})")
    try:
        return closing(open_ledger(location))
    except ValueError as problem:
        raise CommandError(str(problem)) from None


def _elsewhere(missing: Path, named: str | None) -> str:
    from mtllm.settings import OFFLINE_LEDGER

    offline = missing.with_name(OFFLINE_LEDGER)
    if named is None and offline.is_file():
        return f"that of `python app.py --offline` is there: --database {offline}"
    return "--database names another one"


def _settings() -> Settings:
    from mtllm.settings import SettingsError, load_settings

    try:
        return load_settings()
    except SettingsError as error:
        raise CommandError(str(error)) from None
