"""What every probe does: run its checks against the server at GEMINI_URL and print a line of JSON for each."""

import asyncio
import inspect
import json
import os
import warnings

warnings.simplefilter("ignore")

URL = os.environ["GEMINI_URL"]
MODEL = "offline-gemini"
CLOSED = "closed-model"
LABELS = ["positive", "negative", "neutral"]


def run(**checks):
    """Run the checks in order; a check says what is wrong by an exception."""
    for name, check in checks.items():
        try:
            done = check()
            if inspect.isawaitable(done):
                asyncio.run(done)
            print(json.dumps({"check": name, "ok": True}), flush=True)
        except Exception as error:
            note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(json.dumps({"check": name, "ok": False, "note": note}), flush=True)


def same(found, wanted):
    """Raise AssertionError when two values differ."""
    assert found == wanted, f"{found!r}, not {wanted!r}"


def holds(found, part):
    """Raise AssertionError when a text does not hold another."""
    assert part in str(found), f"{part!r} is not in {found!r}"


def refused(ask, words="no longer available to new users"):
    """Raise AssertionError unless asking a closed model raises an error with Google's sentence."""
    try:
        found = ask()
    except Exception as error:
        holds(f"{error} {error.__cause__}", words)
    else:
        raise AssertionError(f"a closed model answered {found!r}")
