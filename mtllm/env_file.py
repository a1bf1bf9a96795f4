"""Reads `.env` in whatever encoding an editor or a shell wrote it, and finds names that are meant as settings."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_FAMILIES = ("API_", "CORS_", "GEMINI_", "RATE_")
"""Beginnings of names that, in the environment, are nobody's but ours."""
_OTHERS = frozenset({"GEMINI_API_KEY"})
"""A name of our families that Google's own programs read."""


class UnreadableEnvError(Exception):
    """`.env` cannot be read; the text says why and what to do, and quotes nothing of it."""


def read_env_file(path: Path) -> dict[str, str]:
    """Return the names and values in `path`, none when there is no such file.

    UTF-8 and UTF-16 are read, with and without a byte order mark; Windows' PowerShell writes the latter. Raises
    UnreadableEnvError.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise UnreadableEnvError(f".env: cannot be read ({problem.strerror})") from problem
    pairs = dotenv_values(stream=io.StringIO(_decode(data)), interpolate=False)
    return {name: value for name, value in pairs.items() if value is not None}


def _decode(data: bytes) -> str:
    try:
        if data.startswith(_UTF16):
            return data.decode("utf-16")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise UnreadableEnvError(f".env: line {line} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise UnreadableEnvError(".env: holds NUL characters; save the file as UTF-8")
    return text


def find_misspelled(from_file: Iterable[str], environ: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """Yield a problem for each name that looks like a setting of `known` and is none.

    In `.env` that is a name near a setting's or of our families; in the environment, which other programs share, only
    one of our families that is near a setting's.
    """
    in_file = set(from_file)
    for name in sorted(in_file - set(known)):
        near = _nearest(name, known)
        if near or name.startswith(_FAMILIES):
            yield _word(name, near)
    for name in sorted(set(environ) - in_file - set(known) - _OTHERS):
        near = _nearest(name, known) if name.startswith(_FAMILIES) else ""
        if near:
            yield _word(name, near)


def _nearest(name: str, known: Collection[str]) -> str:
    return next(iter(get_close_matches(name.upper(), known, n=1, cutoff=0.81)), "")


def _word(name: str, near: str) -> str:
    return f"{name}: is no setting" + (f"; did you mean {near}?" if near else "; .env.example lists them all")
