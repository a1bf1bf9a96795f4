"""Fuzz the service for as long as you like: python -m benchmarks.fuzz --minutes 10

Arbitrary requests to the application, arbitrary bytes to its server's socket, and arbitrary texts to every parser of
something from outside, in turns. Ends with status 1 and the smallest failing example when something does not hold.
Needs requirements-dev.txt; no key and no network.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from app import create_app
from mtllm.settings import load_settings
from tests.support.fuzzing import ADMIN, KEY, PARSERS, check_raw, check_request, raw_requests, requests, task_requests
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import serving

EXAMPLES = 500
"""Of one property before the next has its turn."""

Property = tuple[SearchStrategy[Any], Callable[[Any], None]]


@contextmanager
def properties() -> Iterator[dict[str, Property]]:
    """Everything that must hold, with a service to hold it."""
    with tempfile.TemporaryDirectory() as folder, ScriptedGemini() as gemini:
        environ = {f"{name}_DIR": str(Path(folder) / name.lower()) for name in ("LOG", "CACHE", "DATA")}
        environ |= {"GOOGLE_API_KEY": "AIza-fuzz", "GEMINI_API_ENDPOINT": gemini.url, "RATE_LIMITS": ""}
        environ |= {"API_KEYS": f"fuzz:{KEY}", "ADMIN_API_KEY": ADMIN, "TRUSTED_PROXIES": "1"}
        app = create_app(load_settings(environ | {"MAX_REQUEST_BYTES": "4096"}, env_file=None))
        with serving(app) as port:
            yield {
                "requests": (requests(), partial(check_request, app)),
                "tasks": (task_requests(), partial(check_request, app)),
                "raw requests": (raw_requests, partial(check_raw, port)),
                **PARSERS,
            }
        app.service.close()


def tried(holds: Property, examples: int) -> None:
    """Try one property; raises what it raises, with the smallest example that makes it."""
    strategy, check = holds

    def run(value: Any) -> None:
        check(value)

    quiet = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    given(strategy)(quiet(run))()


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz until the time is up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Fuzz the service.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    end = time.monotonic() + 60 * parser.parse_args(argv).minutes
    logging.getLogger("waitress").setLevel(logging.CRITICAL)  # it tells of every client that leaves early
    counts: dict[str, int] = {}
    with properties() as all_properties:
        while time.monotonic() < end:
            for name, holds in all_properties.items():
                tried(holds, EXAMPLES)
                counts[name] = counts.get(name, 0) + EXAMPLES
                if time.monotonic() >= end:
                    break
    for name, count in counts.items():
        print(f"{name:15} {count:>9,} examples, all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
