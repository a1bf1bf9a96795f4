"""Markdown tables, a line at a time."""

from __future__ import annotations


def head(*names: str, words: int = 1) -> str:
    """The two lines that begin a table; the first `words` columns are words, the others figures."""
    return f"{row(*names)}\n|{'---|' * words}{'--:|' * (len(names) - words)}"


def row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"
