"""The ledger's rows for other programs: CSV and JSON lines with one set of columns."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mtllm.domain.money import exact_usd
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import ExportRow

_ROWS_A_CHUNK = 500
_AMOUNTS_KEPT = 4096
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _flag(value: bool) -> str:
    return "true" if value else "false"


_money = lru_cache(_AMOUNTS_KEPT)(exact_usd)
"""Dollars as written. Most rows of a ledger share their few prices, and hits their cost of 0."""


def _csv_text(value: str | None) -> str:
    if value is None:
        return ""
    return "'" + value if value.startswith(_FORMULA) else value


def _csv_rate(nano: int | None) -> str:
    return "" if nano is None else _money(nano)


def _json_time(timestamp: float) -> str:
    return f'"{rfc3339(timestamp)}"'


def _json_rate(nano: int | None) -> str:
    return "null" if nano is None else _money(nano)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one kind are written in each format."""

    csv: Callable[[Any], str]
    json: Callable[[Any], str]


_TEXT = _Kind(_csv_text, json.dumps)
_TIME = _Kind(rfc3339, _json_time)
_COUNT = _Kind(str, str)
_FLAG = _Kind(_flag, _flag)
_MONEY = _Kind(_money, _money)
_RATE = _Kind(_csv_rate, _json_rate)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the export. Names and their order are stable; new columns come at the end."""

    name: str
    kind: _Kind
    meaning: str


COLUMNS = (
    Column("request_id", _TEXT, "The request's X-Request-ID; callers may repeat theirs."),
    Column("timestamp", _TIME, "When the call began, or the hit was served: RFC 3339, UTC, microseconds."),
    Column("task", _TEXT, "text, code or classify."),
    Column("client", _TEXT, "Name of the API key, or the address."),
    Column("model", _TEXT, "The model that answered; before that, the one that was asked."),
    Column("status", _TEXT, "ok, hit, an error code, abandoned, open or unsettled."),
    Column("cached", _FLAG, "Served without a call: from the cache or with an identical request in flight."),
    Column("input_tokens", _COUNT, "Tokens in, those from Gemini's context cache included; of a hit, the stored ones."),
    Column("output_tokens", _COUNT, "Tokens out, thinking included; of a hit, the stored ones."),
    Column("input_cost", _MONEY, "Dollars, exact."),
    Column("output_cost", _MONEY, "Dollars, exact."),
    Column("total_cost", _MONEY, "Dollars, exactly input_cost + output_cost."),
    Column("saved", _MONEY, "Dollars that a hit did not cost."),
    Column("attempt", _COUNT, "1 for the request's first call to Gemini; 0 for a hit."),
    Column("cached_input_tokens", _COUNT, "Those of input_tokens that came from Gemini's context cache."),
    Column("reserved", _MONEY, "Dollars that count against the budget beside total_cost."),
    Column("shared", _FLAG, "The answer was shared with an identical request in flight."),
    Column("estimated", _FLAG, "Tokens are tiktoken's estimate: Gemini reported none."),
    Column("unpriced", _FLAG, "The model had no known price; the costs are 0."),
    Column("input_price", _RATE, "Dollars per million tokens that the cost was computed with; empty when unpriced."),
    Column("cached_input_price", _RATE, "The same for cached input."),
    Column("output_price", _RATE, "The same for output."),
    Column("key", _TEXT, "Name of the API key; empty without one."),
    Column("requested_model", _TEXT, "The model that was asked for."),
    Column("fallback", _TEXT, "Why model is another: unavailable, overloaded, quota, timeout or swapped; or empty."),
    Column("tag", _TEXT, "The caller's X-Tag; empty without one."),
)

_TO_CSV = tuple(column.kind.csv for column in COLUMNS)
_TO_JSON = tuple(column.kind.json for column in COLUMNS)
_JSON_LINE = "{" + ", ".join(f'"{column.name}": %s' for column in COLUMNS) + "}\n"


def export_csv(rows: Iterable[ExportRow]) -> Iterator[str]:
    """Yield the rows as CSV (RFC 4180) with a header line, some hundred lines a chunk.

    The first rows are fetched before the header is given, so that what cannot be read fails before anything is sent.
    A text that a spreadsheet would run as a formula (it begins with `= + - @`, tab or CR) gets a leading `'`.
    """
    chunks = _chunks(rows)
    first = next(chunks, [])
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(column.name for column in COLUMNS)
    for chunk in chain([first], chunks):
        writer.writerows(_write_values(chunk, _TO_CSV))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def export_jsonl(rows: Iterable[ExportRow]) -> Iterator[str]:
    """Yield the rows as JSON lines, some hundred a chunk; money as numbers with nine decimals, text as it is."""
    for chunk in _chunks(rows):
        yield "".join([_JSON_LINE % values for values in _write_values(chunk, _TO_JSON)])


def _write_values(rows: list[ExportRow], writers: Iterable[Callable[[Any], str]]) -> Iterator[tuple[str, ...]]:
    """Return the rows with their values written, column by column, since each column has its own writer."""
    written = [map(write, column) for write, column in zip(writers, zip(*rows, strict=True), strict=False)]
    return zip(*written, strict=True)


def _chunks(rows: Iterable[ExportRow]) -> Iterator[list[ExportRow]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _ROWS_A_CHUNK)):
        yield chunk


def write_file(path: Path, chunks: Iterable[str]) -> None:
    """Write `path` whole or not at all: whoever reads it meanwhile sees the former file. Its folder is created.

    A device or a pipe is written as it is. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(chunks)
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.writelines(chunks)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


EXPORTERS: dict[str, Callable[[Iterable[ExportRow]], Iterator[str]]] = {"csv": export_csv, "jsonl": export_jsonl}
"""The formats by name."""
