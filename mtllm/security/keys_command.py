"""`python -m mtllm keys add | list | revoke | expire`: who may use the service, from the command line."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import Any

from mtllm.domain.limits import parse_limits
from mtllm.domain.money import NANO
from mtllm.domain.times import parse_time, rfc3339_milliseconds
from mtllm.security.access import ApiKey, BrokenKeysFile, parse_keys_file
from mtllm.security.keys_file import (
    Change,
    KeysFileError,
    add_key,
    change_file,
    expire_key,
    revoke_key,
    toml_value,
)

_SECRET_BYTES = 32
_DAY = 86_400
_EPILOG = """\
A running service takes the change within 2 s. Without --file it is the API_KEYS_FILE of the settings.

examples:
  python -m mtllm keys add alice --rate-limits "30/minute" --monthly-budget-usd 20 --expires 2027-06-30
  python -m mtllm keys list
  python -m mtllm keys expire alice --in-days 7
  python -m mtllm keys revoke alice
"""


class _Refused(Exception):
    """The command cannot be done; the sentence says why."""


@dataclass(frozen=True)
class _KeysFile:
    """The file, and the names that API_KEYS has given away."""

    path: Path
    taken: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 not possible (stderr says why), 2 wrong arguments."""
    options = _make_parser().parse_args(arguments)
    try:
        options.run(options, _find_target(options.file))
    except (KeysFileError, BrokenKeysFile, _Refused) as problem:
        print(f"keys: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"keys: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 1
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtllm keys",
        description="Adds, lists, revokes and ends the keys of API_KEYS_FILE.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="add | list | revoke | expire", required=True)

    add = _command(commands, "add", "make a key; its secret is shown once, the file keeps a digest", _add)
    add.add_argument("name", help="what limits, budgets, logs and ledger know the caller by")
    add.add_argument("--rate-limits", type=_limits, metavar="LIMITS", help="such as 30/minute;500/day; '' for none")
    add.add_argument("--daily-budget-usd", type=_dollars, metavar="USD", help="what it may spend a day")
    add.add_argument("--monthly-budget-usd", type=_dollars, metavar="USD", help="what it may spend a month")
    add.add_argument("--models", type=_names, metavar="A,B", help="the only models that it may name")
    add.add_argument("--expires", type=_moment, metavar="TIME", help="when it ends: a date or an RFC 3339 time (UTC)")

    _command(commands, "list", "show names, limits, budgets and ends; never a secret", _list)

    revoke = _command(commands, "revoke", "remove a key", _revoke)
    revoke.add_argument("name")

    expire = _command(commands, "expire", "let a key end now, or when it is said", _expire)
    expire.add_argument("name")
    when = expire.add_mutually_exclusive_group()
    when.add_argument("--at", type=_moment, metavar="TIME", help="a date or an RFC 3339 time (UTC)")
    when.add_argument("--in-days", type=_days, metavar="N", help="so many days from now")
    when.add_argument("--never", action="store_true", help="take the end away")
    return parser


def _command(
    commands: Any, name: str, meaning: str, run: Callable[[argparse.Namespace, _KeysFile], None]
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    command.add_argument("--file", type=Path, help="another file than the settings' API_KEYS_FILE")
    command.set_defaults(run=run)
    return command


def _find_target(named: Path | None) -> _KeysFile:
    from mtllm.settings import SettingsError, load_settings

    if named is not None:
        return _KeysFile(named)
    try:
        settings = load_settings()
    except SettingsError as problem:
        raise _Refused(str(problem)) from None
    if settings.api_keys_file is None:
        raise _Refused("no file of keys is set: set API_KEYS_FILE (data/keys.toml is a good place), or give --file")
    return _KeysFile(settings.api_keys_file, tuple(name for name, _ in settings.api_keys))


# The commands ---------------------------------------------------------------------------------------------------------


def _add(options: argparse.Namespace, target: _KeysFile) -> None:
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    table = {"name": options.name, "sha256": sha256(secret.encode()).hexdigest()}
    for field in ("rate_limits", "daily_budget_usd", "monthly_budget_usd", "models", "expires"):
        value = getattr(options, field)
        if value is not None:
            table[field] = value
    written = {field: toml_value(value) for field, value in table.items()}
    change_file(target.path, lambda text: add_key(text, written), target.taken)
    print(f"The key of {options.name}, shown this once. Its owner sends it as X-API-Key.", file=sys.stderr)
    print(secret)


def _list(_: argparse.Namespace, target: _KeysFile) -> None:
    keys = sorted(parse_keys_file(target.path.read_bytes(), target.taken).values(), key=lambda key: key.name)
    rows = [_HEADINGS, *(tuple(_cells(key, time.time())) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


_HEADINGS = ("name", "rate limits", "$ a day", "$ a month", "models", "ends")


def _cells(key: ApiKey, now: float) -> Iterator[str]:
    yield key.name
    if key.rate_limits is None:
        yield "the service's"
    else:
        yield "; ".join(f"{limit.amount} in {limit.window_seconds} s" for limit in key.rate_limits) or "none"
    for budget in (key.daily_budget, key.monthly_budget):
        yield "" if budget is None else f"{(Decimal(budget) / NANO).normalize():f}"
    yield "the service's" if key.models is None else ", ".join(key.models)
    if key.expires is None:
        yield "never"
    else:
        yield rfc3339_milliseconds(key.expires).replace(".000Z", "Z") + (" (over)" if key.expires <= now else "")


def _revoke(options: argparse.Namespace, target: _KeysFile) -> None:
    _change_known(target, lambda text: revoke_key(text, options.name))
    print(f"{options.name} is revoked.", file=sys.stderr)


def _expire(options: argparse.Namespace, target: _KeysFile) -> None:
    now = float(int(time.time()))
    at = options.at if options.at is not None else now + _DAY * (options.in_days or 0)
    end = None if options.never else at
    _change_known(target, lambda text: expire_key(text, options.name, end))
    said = "never ends" if end is None else f"ends {toml_value(end)}"
    print(f"{options.name} {said}.", file=sys.stderr)


def _change_known(target: _KeysFile, change: Change) -> None:
    if not target.path.exists():  # nothing is made where there is nothing to change
        raise _Refused(f"there is no file {target.path}")
    change_file(target.path, change, target.taken)


# Values ---------------------------------------------------------------------------------------------------------------


def _limits(text: str) -> str:
    try:
        parse_limits(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def _dollars(text: str) -> Decimal:
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite() or not 0 <= dollars <= 10**9:
        raise argparse.ArgumentTypeError("must be dollars, such as 2.50")
    return dollars


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _moment(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36_500:
        raise argparse.ArgumentTypeError("must be a whole number of days from 1 to 36500")
    return int(text)
