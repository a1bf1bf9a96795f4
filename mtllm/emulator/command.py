"""The command line of the emulator: `python -m mtllm.emulator`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import NoReturn, TypeVar

from mtllm.emulator.fault_kinds import FAULTS
from mtllm.emulator.faults import read_share
from mtllm.emulator.models import ROLE_NAMES, parse_model
from mtllm.emulator.offline import OfflineGemini
from mtllm.emulator.server import Emulator

_Read = TypeVar("_Read")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return 0, or 1 when the port cannot be had."""
    emulator = parse_options(argv)
    try:
        emulator.start()
    except OSError as problem:
        print(f"Cannot listen on {emulator.url}: {problem.strerror}. Try --port 0.", file=sys.stderr)
        return 1
    with closing(emulator):
        print(f"Gemini emulator (canned answers) on {emulator.url}", flush=True)
        with suppress(KeyboardInterrupt):
            emulator.closing.wait()
    return 0


def describe_faults() -> str:
    """Return a line for each fault: its name, its argument when none is given, what it does."""
    lines = (f"{kind.name + (':' + kind.default if kind.default else ''):<28}{kind.does}" for kind in FAULTS.values())
    return "\n".join(lines)


def parse_options(argv: Sequence[str] | None) -> Emulator:
    """Return the emulator, not yet started, that the options describe; a bad one ends the process with status 2."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    try:
        gemini = OfflineGemini(
            options.model, faults=options.fail, seed=options.seed, latency=options.latency, chunks=options.chunks
        )
    except ValueError as problem:
        parser.error(str(problem))
    return Emulator(host=options.host, port=options.port, answer=gemini)


class _ListFaults(argparse.Action):
    """Print the faults and end the process, as --help does with the help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(describe_faults())
        parser.exit()


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtllm.emulator",
        description="A local server that speaks Gemini's REST protocol and gives canned answers. Any key will do.",
        epilog="A prompt that holds [[emulate: FAULT]] meets that fault; FAULT*2 twice only, to see a client retry.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=9100, help="0 takes a free one (default: 9100)")
    parser.add_argument(
        "--model", action="append", default=[], type=_told(parse_model), metavar="NAME=ROLE[,ROLE]",
        help=f"what a model plays, repeatable: {', '.join(ROLE_NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--fail", action="append", default=[], type=_told(read_share), metavar="FAULT@PERCENT%",
        help="a fault that meets a share of the calls, such as 429@10%% or hang:5@1%%, repeatable",
    )  # fmt: skip
    parser.add_argument("--list-faults", action=_ListFaults, nargs=0, help="list the faults and leave")
    parser.add_argument("--seed", type=int, default=0, help="which calls the faults meet (default: 0)")
    parser.add_argument("--latency", type=_seconds, default=0.0, help="seconds before each piece of an answer")
    parser.add_argument("--chunks", type=int, default=4, help="pieces of a streamed answer (default: 4)")
    return parser


def _told(read: Callable[[str], _Read]) -> Callable[[str], _Read]:
    """The reader of an option; argparse shows what its error says instead of the option's text."""

    def told(text: str) -> _Read:
        try:
            return read(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem).replace("%", "%%")) from None

    return told


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be from 0 to 3600")
    return seconds
