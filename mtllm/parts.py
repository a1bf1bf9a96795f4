"""The parts of a service in one list: each says at once how it starts, how it ends and what readiness asks of it.

Parts start in the order in which they were added and end in the opposite one, so that each may rely to its end on those
that were made before it.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeVar

T = TypeVar("T")

CheckStatus = Literal["ok", "degraded", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one readiness check found; `degraded` is still of use, `reason` is empty where all is well."""

    status: CheckStatus
    reason: str = ""


OK = CheckResult("ok")
Check = Callable[[], CheckResult]


def judge(holds: bool, reason: str, otherwise: CheckStatus = "fail") -> CheckResult:
    """Return `ok` where `holds`, else `otherwise` with its reason."""
    return OK if holds else CheckResult(otherwise, reason)


class Parts:
    """Starts, checks and closes what was added to it."""

    def __init__(self) -> None:
        self.is_open = False
        """Every part has started."""
        self._starts: list[Callable[[int], object]] = []
        self._ends: list[Callable[[], object]] = []
        self._checks: dict[str, Check] = {}
        self._opening = threading.Lock()

    @property
    def checks(self) -> Mapping[str, Check]:
        """Return the readiness checks by name."""
        return MappingProxyType(self._checks)

    def add(
        self,
        part: T,
        *,
        start: Callable[[T, int], object] | None = None,
        close: Callable[[T], object] | None = None,
        checks: Mapping[str, Callable[[T], CheckResult]] | None = None,
    ) -> T:
        """Return `part`, once its start, its end and its readiness checks are in the list.

        `start` is given the server's thread count too. `close` may come for a part that never started, and twice.
        """
        if start is not None:
            self._starts.append(partial(start, part))
        if close is not None:
            self._ends.append(partial(close, part))
        for name, check in (checks or {}).items():
            self._checks[name] = partial(check, part)
        return part

    def open(self, threads: int) -> None:
        """Start every part for a server with so many threads; do nothing when already open."""
        with self._opening:
            if self.is_open:
                return
            for start in self._starts:
                start(threads)
            atexit.register(self.close)  # a server that handles SIGTERM itself (gunicorn) ends its workers so
            self.is_open = True

    def close(self) -> None:
        """End every part, the last one first; one part's trouble does not keep the others open."""
        atexit.unregister(self.close)
        with contextlib.ExitStack() as closing:
            for end in self._ends:
                closing.callback(end)
