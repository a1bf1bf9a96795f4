"""Tables of texts: CSV as spreadsheets and pandas write it, and JSON lines; read row by row, written with answers."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Protocol

COLUMNS = ("answer", "model", "cost", "error")
"""What is added to each row; `cost` is in dollars."""
_SEPARATORS = ",;\t|"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class TableError(Exception):
    """The input cannot be read as a table; the message names the place and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its text, and `source`, from which its line of the output is made."""

    number: int
    text: str
    source: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: an answer, or the error that the service gave. `cost` is in nano-dollars."""

    answer: str | None
    model: str | None
    cost: int
    error: str | None


def dollars(nano: int) -> str:
    """Return an amount of nano-dollars in dollars, with nine decimals."""
    return f"{Decimal(nano).scaleb(-9):f}"


class Table(Protocol):
    """A table that can be read more than once."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order. Raises TableError."""

    def head(self) -> bytes:
        """Return what stands before the first row of the output."""

    def line(self, row: Row, outcome: Outcome) -> bytes:
        """Return the row with its outcome, as it stands in the output."""


def open_table(path: Path, column: str, encoding: str | None = None) -> Table:
    """Return the table in a file: JSON lines if it is named .jsonl or .ndjson, else CSV. Raises TableError, OSError."""
    if path.suffix.lower() in {".jsonl", ".ndjson"}:
        return JsonLines(path, column)
    return CsvTable(path, column, encoding or _encoding_of(path))


class CsvTable:
    """CSV with one line of headings. The output is UTF-8 with BOM, commas and CRLF, as spreadsheets like it."""

    def __init__(self, path: Path, column: str, encoding: str) -> None:
        self._path, self._encoding = path, encoding
        csv.field_size_limit(2**31 - 1)
        self._delimiter = self._find_delimiter()
        self._headings = next((cells for _, cells in self._records()), [])
        taken = sorted(set(COLUMNS) & set(self._headings))
        if taken:
            raise TableError(
                f"The input has a column {taken[0]!r} already: rename it, since the answers need the name."
            )
        if self._headings.count(column) != 1:
            raise TableError(
                f"There must be one column {column!r}; the file has {', '.join(map(repr, self._headings))}."
            )
        self._column = self._headings.index(column)

    def rows(self) -> Iterator[Row]:
        """Yield the rows; a row with too few or too many cells is an error. Raises TableError."""
        records = self._records()
        next(records, None)
        number = 0
        for line, found in records:
            cells = found or [""]  # a blank line is an empty cell where there is one column
            if not found and len(self._headings) > 1:
                continue
            if len(cells) != len(self._headings):
                raise TableError(f"Line {line} has {len(cells)} cells, the headings are {len(self._headings)}.")
            number += 1
            yield Row(number, cells[self._column], tuple(cells))

    def head(self) -> bytes:
        """Return the BOM and the headings."""
        return codecs.BOM_UTF8 + _csv_line([*self._headings, *COLUMNS])

    def line(self, row: Row, outcome: Outcome) -> bytes:
        """Return the row; an answer that a spreadsheet would take for a formula gets an apostrophe."""
        added = (_cell(outcome.answer), _cell(outcome.model), dollars(outcome.cost), _cell(outcome.error))
        return _csv_line([*row.source, *added])

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        with self._path.open(encoding=self._encoding, newline="") as file:
            reader = csv.reader(file, delimiter=self._delimiter, strict=True)
            try:
                for cells in reader:
                    yield reader.line_num, cells
            except csv.Error as error:
                raise TableError(f"Line {reader.line_num} is not CSV: {error}.") from error
            except UnicodeError as error:
                raise TableError(
                    f"After line {reader.line_num} the file is not {self._encoding}: try --encoding cp1252."
                ) from error

    def _find_delimiter(self) -> str:
        """Return the separator that stands outside quotes in the headings; of several, the one most often there."""
        with self._path.open(encoding=self._encoding, newline="") as file:
            try:
                outside = "".join(file.readline().split('"')[::2])
            except UnicodeError as error:
                raise TableError(f"Line 1 is not {self._encoding}: try --encoding cp1252.") from error
        return max(_SEPARATORS, key=outside.count)


class JsonLines:
    """One JSON object a line; lines end at a line feed only, and keep their spelling in the output."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column

    def rows(self) -> Iterator[Row]:
        """Yield the rows; blank lines are none. Raises TableError."""
        number = 0
        with self._path.open("rb") as file:
            for count, data in enumerate(file, 1):
                line = data.removeprefix(codecs.BOM_UTF8 if count == 1 else b"").strip(b" \t\r\n")
                if line:
                    number += 1
                    yield self._row(number, count, line)

    def head(self) -> bytes:
        """Return nothing: each line names its columns."""
        return b""

    def line(self, row: Row, outcome: Outcome) -> bytes:
        """Return the line with the answer's keys before its end; every key is in every row."""
        added = {
            "answer": outcome.answer,
            "model": outcome.model,
            "cost": dollars(outcome.cost),
            "error": outcome.error,
        }
        return f"{row.source[0][:-1].rstrip()}, {json.dumps(added)[1:]}\n".encode()

    def _row(self, number: int, count: int, line: bytes) -> Row:
        try:
            text = line.decode()
            found: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TableError(f"Line {count} is not JSON in UTF-8.") from error
        if not isinstance(found, dict) or not isinstance(found.get(self._column), str):
            raise TableError(f"Line {count} has no text under {self._column!r}.")
        if taken := set(COLUMNS) & found.keys():
            raise TableError(f"Line {count} has a key {min(taken)!r} already: rename it, the answers need the name.")
        return Row(number, found[self._column], (text,))


def force(file: BinaryIO) -> None:
    """Force what was written to the disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def _encoding_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


class _Line:
    """Takes what csv.writer writes."""

    text = ""

    def write(self, text: str) -> None:
        self.text += text


def _csv_line(cells: list[str]) -> bytes:
    line = _Line()
    csv.writer(line).writerow(cells)
    return line.text.encode("utf-8", "replace")


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    return f"'{plain}" if plain.startswith(_FORMULA) else plain
