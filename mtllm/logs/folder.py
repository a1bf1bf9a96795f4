"""The five log files of one folder, and how they do."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from mtllm.logs.files import BACKUP_COUNT, MAX_BYTES, RETENTION_SECONDS, LogFile
from mtllm.logs.lines import COSTS, ERRORS, PERFORMANCE, REQUESTS, SECURITY, error_name

FILES: Final = (REQUESTS, PERFORMANCE, COSTS, ERRORS, SECURITY)

PROBE_SECONDS: Final = 5.0
"""How often a failing file is tried while nothing happens."""
SWEEP_SECONDS: Final = 86_400.0


class LogFolder:
    """Writes whole lines to the five files. One thread writes and tends, any may ask how they do."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        backup_count: int = BACKUP_COUNT,
        retention_seconds: float = RETENTION_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = {
            name: LogFile(
                folder / name,
                max_bytes=max_bytes,
                backup_count=backup_count,
                retention_seconds=retention_seconds,
                clock=clock,
            )
            for name in FILES
        }
        self._monotonic = monotonic
        self._counting = threading.Lock()
        self._failing: dict[str, str] = {}
        self._failed_writes = 0
        self._next_sweep = 0.0

    def create(self) -> None:
        """Make the files that are missing, so that whoever follows one finds it from the first event on."""
        for name, file in self._files.items():
            self._try(name, file.create)

    def write(self, pages: Mapping[str, list[str]]) -> None:
        """Append lines by file name; those that a file does not take are counted, the important ones go to stderr."""
        for name, lines in pages.items():
            if not self._try(name, partial(self._files[name].append, "".join(lines).encode("ascii"))):
                with self._counting:
                    self._failed_writes += len(lines)
                tell_stderr(name, lines)

    def tend(self) -> None:
        """Try the files that failed, so that they heal without traffic; once a day delete what is past its time."""
        for name in tuple(self._failing):
            self._try(name, self._files[name].probe)
        if self._monotonic() >= self._next_sweep:
            self._next_sweep = self._monotonic() + SWEEP_SECONDS
            for file in self._files.values():
                file.sweep()

    def seconds_until_due(self) -> float:
        """Return after how many seconds `tend` has something to do; at least one."""
        if self._failing:
            return PROBE_SECONDS
        return max(1.0, self._next_sweep - self._monotonic())

    def close(self) -> None:
        """Let go of the files; the next write opens them again."""
        for file in self._files.values():
            file.close()

    def failures(self) -> tuple[str | None, int]:
        """Return the kind of a failure that lasts (`ENOSPC`), and how many lines were not taken so far."""
        with self._counting:
            return next(iter(self._failing.values()), None), self._failed_writes

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        """Run `work` on a file; when it raises OSError, return False and count the file as failing until it works."""
        error = None
        try:
            work()
        except OSError as refused:
            error = error_name(refused) or type(refused).__name__
        with self._counting:
            if error is None:
                self._failing.pop(name, None)
            else:
                self._failing[name] = error
        return error is None


def tell_stderr(name: str, lines: list[str]) -> None:
    """Write lines that their file did not take to stderr, if they are errors or security events."""
    if name in (ERRORS, SECURITY) and sys.stderr is not None:
        with suppress(OSError, ValueError):  # what stderr does not take either is gone
            sys.stderr.writelines(lines)
