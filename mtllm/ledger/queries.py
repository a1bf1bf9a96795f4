"""How the ledger is read: one statement for each question, so that it sees one state of the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

from mtllm.ledger.engine import Connection, Row
from mtllm.ledger.records import (
    ALL_USAGE,
    HIT,
    BudgetState,
    ExportRow,
    GroupBy,
    Selection,
    Totals,
    UsageGroup,
    WindowUsage,
)
from mtllm.ledger.transaction import COUNT_NAMES, HOUR, MICROSECONDS, MINUTE, NO_COUNTS, SUM_BUDGET_DAYS, Counts, micros

_SUMS = ", ".join(f"CAST(COALESCE(SUM({name}), 0) AS BIGINT)" for name in Counts._fields)

# The statements below are put together from names and numbers of ours only; values always go in as parameters.

_WINDOW = f"""
    SELECT {_SUMS} FROM (
        SELECT {COUNT_NAMES} FROM rollups WHERE span = {MINUTE} AND start >= ? AND start < ?
        UNION ALL SELECT {COUNT_NAMES} FROM rollups WHERE span = {HOUR} AND start >= ? AND start < ?
        UNION ALL SELECT {COUNT_NAMES} FROM rollups WHERE span = {MINUTE} AND start >= ? AND start < ?
    ) AS parts"""  # noqa: S608

_ROW_COUNTS = """
    CASE WHEN status IN ('ok', 'hit') THEN 1 ELSE 0 END AS requests,
    CASE WHEN status = 'hit' THEN 1 ELSE 0 END AS cached_requests,
    CASE WHEN status = 'hit' THEN 0 ELSE input_tokens END AS input_tokens,
    CASE WHEN status = 'hit' THEN 0 ELSE output_tokens END AS output_tokens,
    total_cost AS cost, saved AS saved, unpriced AS unpriced_requests"""
_ROWS = "FROM entries WHERE at >= ? AND at < ? AND status NOT IN ('open', 'unsettled')"

_SPANS = {"month": HOUR, "day": HOUR, "hour": HOUR, "minute": MINUTE}
"""What is summed for each period. Days and months are put together from hours, since zones and years decide."""
_COLUMNS = {"key": "key_name"}
"""The columns of groups that are named otherwise."""

_COLUMN_OF = {"timestamp": "at", "cached": f"status = '{HIT}'", "key": "key_name"}
_EXPORT_COLUMNS = ", ".join(_COLUMN_OF.get(name, name) for name in ExportRow._fields)
_EXPORT = f"SELECT at, id, {_EXPORT_COLUMNS} FROM entries WHERE (at, id) > (?, ?) AND at < ? ORDER BY at, id LIMIT ?"  # noqa: S608
_TIMESTAMP = ExportRow._fields.index("timestamp")
_FLAGS = [ExportRow._fields.index(name) for name in ("cached", "shared", "estimated", "unpriced")]
EXPORT_CHUNK = 500


def totals(connection: Connection) -> Totals:
    """Return all-time sums."""
    [row] = connection.execute(f"SELECT {_SUMS} FROM rollups WHERE span = 0")  # noqa: S608
    return Totals(**Counts(*row)._asdict())


def window(connection: Connection, hours: int, now: float) -> WindowUsage:
    """Return the sums of the last `hours` hours: whole hours from hour sums, both ends from minutes."""
    end = int(now) // MINUTE * MINUTE + MINUTE
    start = int(now - hours * HOUR) // MINUTE * MINUTE
    first, last = -(-start // HOUR) * HOUR, end // HOUR * HOUR
    [row] = connection.execute(_WINDOW, (start, first, first, last, last, end))
    return WindowUsage(**Counts(*row)._asdict(), hours=hours)


def usage(
    connection: Connection,
    from_: float,
    to: float,
    group_by: GroupBy,
    *,
    only: Selection = ALL_USAGE,
    zone: tzinfo = UTC,
) -> list[UsageGroup]:
    """Return sums by group: whole hours (or minutes) from roll-ups, the ends of the range from the rows.

    `only`: what of it is summed. `zone`: where days and months begin. An hour in which a day ends
    (zones that differ by half an hour) counts to the day in which it begins.
    """
    start, end = micros(from_), micros(to)
    unit = (MINUTE if group_by == "minute" else HOUR) * MICROSECONDS
    first, last = -(-start // unit) * unit, end // unit * unit
    if first > last:  # nothing whole in between
        first = last = end
    if only != ALL_USAGE and group_by == "minute":
        first = last = end  # single minutes are summed for all together only
    rows, summed = _sources(group_by, only)
    statement = f"""
        SELECT label, {_SUMS} FROM ({rows} UNION ALL {rows} UNION ALL {summed}) AS parts
        GROUP BY label HAVING {" + ".join(f"SUM({name})" for name in Counts._fields)} > 0"""  # noqa: S608
    wanted: list[str | int] = [value for value in only if value is not None]
    parameters: tuple[str | int, ...] = (
        *(start, first, *wanted),
        *(last, end, *wanted),
        *(first // MICROSECONDS, last // MICROSECONDS, *wanted),
    )
    sums: dict[str, Counts] = {}
    for found, *counts in connection.execute(statement, parameters):
        label = found if isinstance(found, str) else label_time(group_by, found, zone)
        sums[label] = sums.get(label, NO_COUNTS).plus(Counts(*counts))
    groups = [UsageGroup(**counts._asdict(), key=label) for label, counts in sums.items()]
    return sorted(groups, key=lambda group: group.key)  # not by the database, whose order of letters is its own


def budget_state(connection: Connection, scope: str, days: tuple[int, int]) -> BudgetState:
    """Return what is spent and reserved in `scope` from the first of two days until before the second."""
    [row] = connection.execute(SUM_BUDGET_DAYS, (*days, scope))
    return BudgetState(*row)


def attempts_of(connection: Connection, request_id: str) -> list[ExportRow]:
    """Return the rows of one request, the first one first; several requests may share an id that callers chose."""
    columns = f"SELECT at, id, {_EXPORT_COLUMNS} FROM entries"  # noqa: S608 - names of ours
    rows = connection.execute(f"{columns} WHERE request_id = ? ORDER BY at, id LIMIT {EXPORT_CHUNK}", (request_id,))
    return list(map(_export_row, rows))


def count_before(connection: Connection, before: float) -> int:
    """Return how many rows are older than `before`, the open ones left out."""
    [(count,)] = connection.execute("SELECT COUNT(*) FROM entries WHERE at < ? AND status <> 'open'", (micros(before),))
    return int(count)


def export(connection: Connection, from_: float, to: float) -> Iterator[ExportRow]:
    """Yield the rows with `from_` <= timestamp < `to` in order; each chunk starts where the last one ended."""
    at, row_id, end = micros(from_), -1, micros(to)
    while chunk := connection.execute(_EXPORT, (at, row_id, end, EXPORT_CHUNK)):
        yield from map(_export_row, chunk)
        at, row_id = chunk[-1][:2]


def _sources(group_by: GroupBy, only: Selection) -> tuple[str, str]:
    """Return the two SELECTs that counts come from, labelled by group: single rows, and sums of hours or minutes."""
    span = _SPANS.get(group_by)
    chosen = [name for name, value in zip(only._fields, only, strict=True) if value is not None]
    conditions = "".join(f" AND {_COLUMNS.get(name, name)} = ?" for name in chosen)
    if span is None:
        label_of_sum = _COLUMNS.get(group_by, str(group_by))
        label_of_row = f"COALESCE({label_of_sum}, '')"
    else:
        label_of_row = f"at / {span * MICROSECONDS} * {span}"
        label_of_sum = f"start / {span} * {span}"
    sums = f"rollups WHERE span = {span} AND" if span is not None and not chosen else "usage_hours WHERE"
    return (
        f"SELECT {label_of_row} AS label, {_ROW_COUNTS} {_ROWS}{conditions}",
        f"SELECT {label_of_sum} AS label, {COUNT_NAMES} FROM {sums} start >= ? AND start < ?{conditions}",  # noqa: S608
    )


def label_time(group_by: GroupBy, start: int, zone: tzinfo) -> str:
    """Return the name of a period that holds `start` (epoch seconds): 2026-11, 2026-11-23 or 2026-11-23T15:00:00Z.

    Months and days are those of `zone`; hours and minutes are UTC.
    """
    form = _FORMS.get(group_by)
    if form is None:
        return datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return datetime.fromtimestamp(start, zone).strftime(form)


_FORMS = {"month": "%Y-%m", "day": "%Y-%m-%d"}


def _export_row(row: Row) -> ExportRow:
    values = list(row[2:])
    values[_TIMESTAMP] /= MICROSECONDS
    for flag in _FLAGS:  # databases differ in how they give one
        values[flag] = bool(values[flag])
    return ExportRow._make(values)
