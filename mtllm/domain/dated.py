"""Tables whose entries begin on a day: how they are read from TOML, and which entry holds for a model on a day.

`prices.toml` and `models.toml` are both such tables and are matched by the same rule, which is written here once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

_MEMO_SIZE = 512


class Dated(Protocol):
    """What a dated table holds: something that is true of a model from a day on."""

    @property
    def model(self) -> str: ...

    @property
    def since(self) -> date: ...


T = TypeVar("T", bound=Dated)
W = TypeVar("W", bound=StrEnum)


class DatedTable(Generic[T]):
    """Entries by model and day. Immutable; safe to share between threads."""

    def __init__(self, entries: Iterable[T]) -> None:
        by_model: dict[str, list[T]] = {}
        for entry in entries:
            by_model.setdefault(entry.model, []).append(entry)
        self._newest_first = {
            model: sorted(found, key=lambda entry: entry.since, reverse=True) for model, found in by_model.items()
        }
        self._memo: dict[tuple[str, date], T | None] = {}

    def find(self, model: str, on: date) -> T | None:
        """Return what holds for a model on a day (UTC), or None.

        The name decides first (`matching_name`), then the day: of that name's entries the newest that has begun by
        `on`. A name whose entries all begin later does not fall back to a shorter name, which is another model.
        """
        asked = (model, on)
        try:
            return self._memo[asked]
        except KeyError:
            name = matching_name(model, self._newest_first)
            found = next((entry for entry in self._newest_first.get(name, ()) if entry.since <= on), None)
        if len(self._memo) >= _MEMO_SIZE:
            self._memo.clear()
        self._memo[asked] = found
        return found

    def find_next(self, model: str, after: date) -> T | None:
        """Return what begins to hold for a model after a day, the soonest, or None."""
        later = (entry for entry in self.entries_of(matching_name(model, self._newest_first)) if entry.since > after)
        return next(later, None)

    def models(self) -> list[str]:
        """Return the names that have entries, in the order of the table."""
        return list(self._newest_first)

    def entries_of(self, model: str) -> list[T]:
        """Return all entries of exactly this name, oldest first."""
        return self._newest_first.get(model, [])[::-1]


def matching_name(model: str, names: Container[str]) -> str:
    """Return the one of `names` that holds for a model, or an empty string.

    It is the model's own name, else the longest that it continues with a `-`: a longer name is a version of the same
    model. `models/` in front is ignored. An empty name among `names` holds for whatever no other does.
    """
    name = model.removeprefix("models/")
    while name and name not in names:
        name = name.rpartition("-")[0]
    return name


class Confidence(StrEnum):
    """How sure a fact is."""

    CONFIRMED = "confirmed"
    """Google's own text, or two dated readings that do not depend on each other and agree."""
    REPORTED = "reported"
    """One dated reading."""
    INFERRED = "inferred"
    """A conclusion from other facts; nobody has stated it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a fact comes from and how sure it is; None and empty where the entry does not say."""

    source: str = ""
    confidence: Confidence | None = None
    note: str = ""


NO_EVIDENCE = Evidence()

EVIDENCE_FIELDS = ("source", "confidence", "note")
"""Fields that every entry may have."""


class Entry:
    """One table of a TOML file while it is read. Its errors name the entry and the field."""

    def __init__(self, label: str, fields: Mapping[str, Any]) -> None:
        self.label = label
        self.fields = fields

    def error(self, sentence: str) -> ValueError:
        """Return an error about this entry."""
        return ValueError(f"{self.label}: {sentence}")

    def require(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Raise ValueError for a field that is missing or that no entry has."""
        if unknown := set(self.fields).difference(required, optional):
            raise self.error(f"{min(unknown)!r} is not a field")
        if missing := set(required).difference(self.fields):
            raise self.error(f"{min(missing)!r} is missing")

    def day(self, name: str) -> date:
        """Return a field that is a date."""
        value = self.fields[name]
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self.error(f"{name!r} must be a date such as 2026-01-31, without quotes")
        return value

    def text(self, name: str) -> str:
        """Return a field that is a text of one line, empty where it is absent."""
        value = self.fields.get(name, "")
        if not isinstance(value, str) or not value.isprintable() or (name in self.fields and not value.strip()):
            raise self.error(f"{name!r} must be a text of one line")
        return value

    def word(self, name: str, words: type[W]) -> W:
        """Return a field that is one of the words of an enumeration."""
        try:
            return words(self.fields[name])
        except ValueError:
            raise self.error(f"{name!r} must be one of {', '.join(words)}") from None

    def count(self, name: str, *, least: int = 0, most: int) -> int:
        """Return a field that is a whole number."""
        value = self.fields[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(f"{name!r} must be a whole number from {least} to {most}")
        return value

    def evidence(self) -> Evidence:
        """Return the entry's source, confidence and note, all of which may be absent."""
        confidence = self.word("confidence", Confidence) if "confidence" in self.fields else None
        return Evidence(self.text("source"), confidence, self.text("note"))


def read_entries(path: Path, kind: str, name_field: str) -> list[Entry]:
    """Return the `[[kind]]` tables of a TOML file, of which each names a model in its field `name_field`.

    Numbers with a point are Decimal. Raises OSError when the file cannot be read, ValueError when it holds anything
    else.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid TOML: {error}") from None
    tables = document.get(kind)
    if not isinstance(tables, list) or not tables or set(document) != {kind}:
        raise ValueError(f"{path.name}: must consist of [[{kind}]] entries, at least one, and nothing else")
    return [
        _entry(table, f"{path.name}: {kind} entry {number}", name_field) for number, table in enumerate(tables, start=1)
    ]


def _entry(table: object, label: str, name_field: str) -> Entry:
    if not isinstance(table, dict):
        raise ValueError(f"{label}: must be a table")  # noqa: TRY004 - a bad file is a ValueError whatever is bad in it
    name = table.get(name_field)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{label}: {name_field!r} must be the name of a model")
    return Entry(f"{label} ({name})", table)


def require_distinct(entries: Iterable[tuple[Entry, Dated]]) -> None:
    """Raise ValueError for a second entry of the same model and day."""
    seen: set[tuple[str, date]] = set()
    for entry, dated in entries:
        if (dated.model, dated.since) in seen:
            raise entry.error(f"'from' is {dated.since} in another entry of this model too")
        seen.add((dated.model, dated.since))
