"""Markdown tables, a line at a time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def head(*names: str, words: int = 1) -> str:
    """The two lines that begin a table; the first `words` columns are words, the others figures."""
    return f"{row(*names)}\n|{'---|' * words}{'--:|' * (len(names) - words)}"


def row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """A cell with the median of `values`, and the lowest and the highest in brackets."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
