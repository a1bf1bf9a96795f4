"""`python -m mtllm COMMAND`: what an operator does beside serving, each command in a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "keys": "mtllm.security.keys_command",
}
"""The module of each command, loaded when it is asked for: its `main(arguments)` returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments to the command that they name; return its exit status, 2 where they name none."""
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = given or [""]
    if name in COMMANDS:
        return int(import_module(COMMANDS[name]).main(rest))
    asked_for_help = name in ("-h", "--help")
    print(
        f"usage: python -m mtllm COMMAND ...\n\ncommands: {', '.join(sorted(COMMANDS))}"
        "\nEach explains itself: python -m mtllm COMMAND --help",
        file=sys.stdout if asked_for_help else sys.stderr,
    )
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
