"""The usage report: plain tables for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mtllm.domain.money import format_usd
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import GroupBy, Ledger, Totals, UsageGroup

LINES_A_TABLE = 40
"""Groups shown of each kind but days; the rest is one line."""

_SECTIONS: tuple[GroupBy, ...] = ("day", "task", "model", "client")
_HEADINGS = ("requests", "cached", "hit rate", "input tokens", "output tokens", "cost $", "saved $", "saved")


def report(ledger: Ledger, from_: float, to: float) -> Iterator[str]:
    """Yield lines on what `from_` <= time < `to` (epoch seconds) cost and what the cache saved.

    By day, task, model and client, each with its total. Raises LedgerUnavailable.
    """
    groups_by = {section: ledger.usage(from_, to, section) for section in _SECTIONS}
    total = _sum(groups_by["day"])
    yield f"Usage from {rfc3339(from_)} to {rfc3339(to)} (dollars; days are UTC)"
    if not total.requests and not total.cost:
        yield "Nothing was recorded in that time."
        return
    for section, groups in groups_by.items():
        shown = groups if section == "day" else _dearest(groups)
        yield ""
        yield from _table(section, [*((group.key, group) for group in shown), ("total", total)])
    if total.unpriced_requests:
        yield ""
        yield f"Paid calls to models without a known price, which count as $0: {total.unpriced_requests:,}."


def _dearest(groups: Sequence[UsageGroup]) -> list[UsageGroup]:
    ordered = sorted(groups, key=lambda group: (-group.cost, -group.saved, group.key))
    shown, rest = ordered[:LINES_A_TABLE], ordered[LINES_A_TABLE:]
    return [*shown, _sum(rest, f"{len(rest):,} others")] if rest else shown


def _sum(groups: Iterable[Totals], key: str = "") -> UsageGroup:
    groups = list(groups)
    return UsageGroup(
        key=key,
        requests=sum(group.requests for group in groups),
        cached_requests=sum(group.cached_requests for group in groups),
        input_tokens=sum(group.input_tokens for group in groups),
        output_tokens=sum(group.output_tokens for group in groups),
        cost=sum(group.cost for group in groups),
        saved=sum(group.saved for group in groups),
        unpriced_requests=sum(group.unpriced_requests for group in groups),
    )


def _table(title: str, rows: Sequence[tuple[str, Totals]]) -> Iterator[str]:
    cells = [(title, *_HEADINGS), *((_printable(name), *_cells(totals)) for name, totals in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(row, widths) for row in cells]
    return iter([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = row
    aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
    return "  ".join((name.ljust(widths[0]), *aligned))


def _cells(totals: Totals) -> tuple[str, ...]:
    return (
        f"{totals.requests:,}",
        f"{totals.cached_requests:,}",
        _percent(totals.cached_requests, totals.requests),
        f"{totals.input_tokens:,}",
        f"{totals.output_tokens:,}",
        format_usd(totals.cost),
        format_usd(totals.saved),
        _percent(totals.saved, totals.cost + totals.saved),
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]
