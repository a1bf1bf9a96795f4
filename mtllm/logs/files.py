"""Append-only files of whole lines that rotate by size, shared by any number of processes on one machine.

Each append holds an exclusive `flock` on the file itself. Whoever gets the lock and finds that the path now names
another file (rotated or deleted by someone) opens the new one and tries again, so nobody writes into a file that was
moved away, and only one process at a time moves files. Without `flock` (Windows) one process per folder is assumed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

if sys.platform == "win32":

    def _lock(fd: int) -> None:
        """Nothing to lock with."""

    def _unlock(fd: int) -> None:
        """Nothing was locked."""

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


MAX_BYTES = 10 * 1024 * 1024
BACKUP_COUNT = 5
RETENTION_SECONDS = 90 * 86_400.0

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_MODE = 0o640  # the operator's group may read, nobody else
_PROBE = b"\n" * 4096  # more than a file system can take without finding a free block


class LogFile:
    """One file and its predecessors, `path.1` (newest) to `path.<backup_count>`. For one thread at a time.

    `max_bytes` 0 means no rotation. Predecessors last written more than `retention_seconds` ago are deleted at rotation
    and by `sweep`. Each call raises OSError when the file system refuses, and the next one starts afresh.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        backup_count: int = BACKUP_COUNT,
        retention_seconds: float = RETENTION_SECONDS,
        clock: Callable[[], float] = time.time,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes or sys.maxsize
        self._backup_count = backup_count
        self._retention_seconds = retention_seconds
        self._clock = clock
        self._write = write
        self._fd: int | None = None

    def create(self) -> None:
        """Create the file if it is missing."""
        with self._lock_current():
            pass

    def append(self, lines: bytes) -> None:
        """Write whole lines, each ending in a newline. A part of them that the file system refuses is taken back."""
        while lines:
            with self._lock_current() as (fd, size):
                part = self._fitting(lines, size)
                if part:
                    self._write_all(fd, part, size)
                else:
                    self._rotate()
            lines = lines[len(part) :]

    def probe(self) -> None:
        """Raise OSError if the file could not take lines now. Leaves it as it is."""
        with self._lock_current() as (fd, size):
            self._write_all(fd, _PROBE, size)
            os.ftruncate(fd, size)

    def sweep(self) -> None:
        """Delete the predecessors that are past their retention."""
        oldest = self._clock() - self._retention_seconds
        for old in self._path.parent.glob(f"{self._path.name}.*"):
            with suppress(OSError):  # another process may sweep too
                if old.suffix[1:].isdigit() and old.stat().st_mtime < oldest:
                    old.unlink()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    @contextmanager
    def _lock_current(self) -> Iterator[tuple[int, int]]:
        """Lock the file that the path names, so that nobody else writes or moves it; its descriptor and size."""
        try:
            yield self._current()
            if self._fd is not None:
                _unlock(self._fd)
        except OSError:
            self.close()
            raise

    def _current(self) -> tuple[int, int]:
        while True:
            fd = self._fd = self._open() if self._fd is None else self._fd
            _lock(fd)
            state = os.fstat(fd)
            with suppress(FileNotFoundError):
                if os.path.samestat(state, self._path.stat()):
                    return fd, state.st_size
            self.close()

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, _FLAGS, _MODE)

    def _fitting(self, lines: bytes, size: int) -> bytes:
        """Return the first of `lines` that still fit; none when the file must rotate first."""
        room = max(0, self._max_bytes - size)
        if len(lines) <= room:
            return lines
        end = lines.rfind(b"\n", 0, room) + 1
        if not end and not size:  # one line longer than a file may be has a file of its own
            end = lines.index(b"\n") + 1
        return lines[:end]

    def _write_all(self, fd: int, lines: bytes, size: int) -> None:
        rest = lines
        if size and not _ends_whole(fd):  # a machine that lost power left half a line
            rest = b"\n" + lines
        try:
            while rest:
                rest = rest[self._write(fd, rest) :]
        except OSError:
            with suppress(OSError):  # not every file can be cut (a device behind a link)
                os.ftruncate(fd, size)
            raise

    def _rotate(self) -> None:
        """Move every file one place on; called with the lock held, which ends with the file that it is held on."""
        if sys.platform == "win32":  # where an open file cannot be renamed
            self.close()
        names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, self._backup_count + 1))]
        for newer, older in reversed(list(pairwise(names))):
            with suppress(FileNotFoundError):
                newer.replace(older)
        if not self._backup_count:
            self._path.unlink()
        self.close()
        self.sweep()


def _ends_whole(fd: int) -> bool:
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1) == b"\n"
