"""Changes API_KEYS_FILE as a careful person would: line by line, so that comments stay, and in one step.

Each change is made to the text and then checked against the text's meaning: what was to change has changed, all else
has not. A file that is written in a way that this cannot follow is left as it is.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from mtllm.domain.times import rfc3339_milliseconds
from mtllm.security.access import parse_keys_file

_HEADER = re.compile(r"\s*\[\[\s*key\s*\]\]\s*(#.*)?")
_EXPIRES = re.compile(r"\s*expires\s*=.*")

Table = dict[str, Any]
Change = Callable[[str], str]
"""Takes the file's text, returns the text to write."""


class KeysFileError(Exception):
    """The file cannot be changed so; the sentence says why, and holds no secret and no digest."""


def add_key(text: str, table: Mapping[str, str]) -> str:
    """Return `text` with a `[[key]]` table behind it; `table` holds values as TOML writes them (`toml_value`).

    Raises KeysFileError when its name is taken.
    """
    written = "\n".join(["[[key]]", *(f"{name} = {value}" for name, value in table.items()), ""])
    [added] = tables_of(written)
    if any(known["name"] == added["name"] for known in tables_of(text)):
        raise KeysFileError(f"there is a key named {added['name']} already; revoke it first, or take another name")
    joint = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return _checked(text + joint + written, [*tables_of(text), added])


def revoke_key(text: str, name: str) -> str:
    """Return `text` without the table of the key `name` and the comments right above it. Raises KeysFileError."""
    number = _number_of(text, name)
    lines = text.splitlines(keepends=True)
    begin, end = _place_of(lines, number)
    rest = tables_of(text)
    del rest[number]
    return _checked("".join(lines[:begin] + lines[end:]), rest)


def expire_key(text: str, name: str, at: float | None) -> str:
    """Return `text` in which the key `name` ends `at` (epoch seconds), or never where that is None.

    Raises KeysFileError.
    """
    number = _number_of(text, name)
    lines = text.splitlines(keepends=True)
    begin, end = _place_of(lines, number)
    block = [line for line in lines[begin:end] if not _EXPIRES.fullmatch(line.rstrip("\r\n"))]
    wanted = tables_of(text)
    wanted[number].pop("expires", None)
    if at is not None:
        last = max(i for i, line in enumerate(block) if line.strip() and not line.lstrip().startswith("#"))
        block[last] = block[last].rstrip("\r\n") + "\n"
        written = f"expires = {toml_value(at)}\n"
        block.insert(last + 1, written)
        wanted[number] |= tomllib.loads(written)
    return _checked("".join([*lines[:begin], *block, *lines[end:]]), wanted)


def tables_of(text: str) -> list[Table]:
    """Return the `[[key]]` tables of a file as they are written. Raises BrokenKeysFile when the file is none."""
    parse_keys_file(text.encode())
    return list(tomllib.loads(text, parse_float=Decimal).get("key", []))


def toml_value(value: str | float | Decimal | Iterable[str]) -> str:
    """Return a value as TOML writes it. A float is a moment in epoch seconds."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a string of JSON is one of TOML
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        return rfc3339_milliseconds(value).replace(".000Z", "Z")
    return f"[{', '.join(map(toml_value, value))}]"


def change_file(path: Path, change: Change, taken: Iterable[str] = ()) -> None:
    """Read `path` (none is an empty one), change its text, and put the result in its place in one step.

    Who else changes it this way meanwhile waits. The file keeps its permissions, owner and group; a new one is its
    owner's alone (0600). A link stays one. Raises KeysFileError, BrokenKeysFile (also where a name is one of the
    `taken`, those of API_KEYS), OSError.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        changed = change(_read(path)).encode()
        parse_keys_file(changed, taken)
        _replace(path, changed)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise KeysFileError("the file is not UTF-8") from None


def _checked(text: str, wanted: list[Table]) -> str:
    try:
        right = tables_of(text) == wanted
    except ValueError:
        right = False
    if not right:
        raise KeysFileError("the file is written in a way that this command cannot change safely; edit it by hand")
    return text


def _number_of(text: str, name: str) -> int:
    for number, table in enumerate(tables_of(text)):
        if table["name"] == name:
            return number
    raise KeysFileError(f"there is no key named {name} in the file")


def _place_of(lines: list[str], number: int) -> tuple[int, int]:
    """Return where the lines of a table begin, with the comments right above it, and where those of the next do."""
    headers = [i for i, line in enumerate(lines) if _HEADER.fullmatch(line.rstrip("\r\n"))]
    if number >= len(headers):
        raise KeysFileError("the file does not write its keys as [[key]] tables; edit it by hand")
    begins = [_with_comments(lines, header) for header in headers]
    return begins[number], [*begins, len(lines)][number + 1]


def _with_comments(lines: list[str], header: int) -> int:
    while header and lines[header - 1].lstrip().startswith("#"):
        header -= 1
    return header


def _replace(path: Path, content: bytes) -> None:
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_permissions(path, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    finally:
        with suppress(FileNotFoundError):  # where it has got its name
            Path(unfinished).unlink()


if sys.platform == "win32":  # one person at a time is assumed; permissions are the folder's

    @contextmanager
    def _locked(_folder: Path) -> Iterator[None]:
        yield

    def _keep_permissions(_path: Path, _descriptor: int) -> None:
        """Nothing to keep."""

else:
    import fcntl

    @contextmanager
    def _locked(folder: Path) -> Iterator[None]:
        """Hold the folder's lock. Not the file's: that is another file after each change."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _keep_permissions(path: Path, descriptor: int) -> None:
        """Give the new file what the old one has; the service that reads it may be another user."""
        try:
            old = path.stat()
        except FileNotFoundError:
            return  # a temporary file is its owner's alone, and so shall be a new one
        new = os.fstat(descriptor)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            try:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            except PermissionError:
                raise KeysFileError("the file would change its owner: run this as the user that owns it") from None
        os.fchmod(descriptor, old.st_mode & 0o7777)
