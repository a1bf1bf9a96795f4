"""Streamed code without the fence around it, as far as that can be known before the end."""

from __future__ import annotations

import re

from mtllm.tasks import OPENING_FENCE

_MAY_OPEN = re.compile(r"\s*(?:`{0,2}|`{3,}[^\n`]{0,100})\Z")
_MAY_CLOSE = re.compile(r"\n[^\S\n]*`*\s*\Z")
_CLOSING = re.compile(r"(?P<before>\s*)\n[^\S\n]*(?P<ticks>`+)\s*\Z")


class Unfence:
    """Passes on the deltas of one answer; what may be a fence is held until it is known to be one.

    A block that turns out not to be the whole answer has lost its opening line by then: the end of the stream has the
    answer as it is.
    """

    def __init__(self) -> None:
        self._held = ""
        self._ticks: str | None = None
        """The ticks of the opening fence, empty where the answer has none; None until that is known."""
        self._begun = False

    def feed(self, delta: str) -> str:
        """Return what of the answer so far can be passed on now."""
        self._held += delta
        if self._ticks is None and not self._open():
            return ""
        may_close = _MAY_CLOSE.search(self._held) if self._ticks else None
        end = may_close.start() if may_close else len(self._held)
        told, self._held = self._held[:end], self._held[end:]
        return self._without_own_line_end(told)

    def end(self) -> str:
        """Return what is still held when the answer is over, less the closing fence."""
        closing = _CLOSING.match(self._held) if self._ticks else None
        if closing and closing["ticks"] == self._ticks:
            return self._without_own_line_end(closing["before"])
        return self._without_own_line_end(self._held)

    def _open(self) -> bool:
        """Decide whether the answer begins with a fence; return whether that is known."""
        opening = OPENING_FENCE.match(self._held)
        if opening is None and _MAY_OPEN.match(self._held):
            return False
        self._ticks = opening["ticks"] if opening else ""
        if opening:  # the line end of the fence may be the one before a closing fence, too
            self._held = "\n" + self._held[opening.end() :]
        return True

    def _without_own_line_end(self, told: str) -> str:
        if not told or self._begun or not self._ticks:
            return told
        self._begun = True
        return told[1:]
