"""The journal: every outcome on disk before it counts, so that a run that was killed goes on and buys nothing twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from mtllm.bulk.tables import Outcome, Row, force


class JournalError(Exception):
    """The journal belongs to another run; the message says what to do."""


class RunJournal:
    """A file of one line for each row that is done, in the order in which they were done.

    `job` is what changes the answers. Raises JournalError when the file is another job's or in use, and OSError.
    """

    def __init__(self, path: Path, job: str) -> None:
        self._path = path
        self._file = path.open("a+b")
        try:
            self._claim()
            self._begin(job)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._file.close()

    def reader(self) -> JournalReader:
        """Return what looks up the outcomes of earlier runs, row after row."""
        return JournalReader(self._path)

    def add(self, row: Row, outcome: Outcome) -> None:
        """Put an outcome on disk. Raises OSError."""
        self._write({"row": row.number, "digest": _digest(row), **asdict(outcome)})

    def remove(self) -> None:
        """Delete the file, once the output is whole."""
        self._path.unlink()

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError("Another run writes to this output now.") from error

    def _begin(self, job: str) -> None:
        """Cut off a line that was begun and not ended; write the job, or compare it."""
        self._file.seek(0)
        whole, first = 0, b""
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            first, whole = first or line, whole + len(line)
        self._file.truncate(whole)
        if not first:
            self._write({"job": job})
        elif json.loads(first).get("job") != job:
            raise JournalError(
                f"{self._path.name} was begun with another task, column or options: "
                "repeat those, or delete it to begin anew."
            )

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        force(self._file)


class JournalReader:
    """Finds the outcomes of rows asked for in order; holds only those that were done before their turn."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.readline()
        self._end = path.stat().st_size
        self._early: dict[int, dict[str, Any]] = {}

    def find(self, row: Row) -> Outcome | None:
        """Return what became of the row in an earlier run. Raises JournalError when the input has changed since."""
        while row.number not in self._early and self._file.tell() < self._end:
            done = json.loads(self._file.readline())
            self._early[done.pop("row")] = done
        found = self._early.pop(row.number, None)
        if found is None:
            return None
        if found.pop("digest") != _digest(row):
            raise JournalError(f"Row {row.number} of the input has changed since: delete the journal to begin anew.")
        return Outcome(**found)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps(row.source).encode()).hexdigest()[:16]
