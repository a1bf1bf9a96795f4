"""The response cache on disk, so that a restart does not empty it.

Answers and uses are appended by a thread of its own, a fraction of a second behind; `kill -9` loses no more than that.
Losing the file costs warmth only, so no error of the disk ever reaches a request: it is counted, warned of once, and
the next batch tries again. The file itself is `journal_file.JournalFile`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Condition, Lock, Thread

from mtllm.caching.journal_file import JournalFile, Record
from mtllm.domain.completion import StoredAnswer

BATCH_SECONDS = 0.25
"""How long the writer gathers before it writes: the answers that `kill -9` may lose."""
QUEUE_BYTES = 16 * 1024 * 1024
MOST_TOUCHED = 20_000


@dataclass(frozen=True, slots=True)
class JournalStats:
    """The journal's figures since it was made."""

    written: int
    """Answers that reached the file."""
    dropped: int
    """Answers that did not: the queue was full, or the file could not be written."""
    failures: int
    """Batches that met an error of the disk."""


class ResponseJournal:
    """The journal of an AnswerStore in `file`.

    `warn` is told, in a sentence, when the file cannot be read or written. The file is not opened and no thread started
    before the first `load`, `append` or `clear`.
    """

    def __init__(
        self,
        file: JournalFile,
        *,
        warn: Callable[[str], None],
        batch_seconds: float = BATCH_SECONDS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._file = file
        self._file_access = Lock()  # of the writer and `clear`, which no request waits for
        self._warn = warn
        self._batch_seconds = batch_seconds
        self._queue_bytes = queue_bytes
        self._queue: deque[Record] = deque()
        self._queued_bytes = 0
        self._touched: dict[bytes, None] = {}
        self._changed = Condition()  # guards all but `_touched`; never held across I/O
        self._thread: Thread | None = None
        self._closing = False
        self._written = self._dropped = self._failures = 0
        self._failing = False

    def append(self, key: bytes, answer: StoredAnswer, expires_at: float) -> None:
        """Note that `answer` is stored, fresh until `expires_at` (epoch seconds). Returns at once; may be dropped."""
        with self._changed:
            if self._closing or self._queued_bytes + len(answer.body) > self._queue_bytes:
                self._dropped += 1
                return
            self._queue.append(Record(key, answer, expires_at))
            self._queued_bytes += len(answer.body)
            if self._thread is None:
                self._thread = Thread(target=self._write_batches, name="response-journal", daemon=True)
                self._thread.start()
            self._changed.notify()

    def touch(self, key: bytes) -> None:
        """Note that the answer under `key` was used. Written with the next answer: until one comes, none must go."""
        touched = self._touched
        if len(touched) < MOST_TOUCHED:  # a hint for the order of a restart, and no more
            touched[key] = None  # one step of the interpreter without a lock (benchmarks: hits)

    def load(self) -> Iterator[tuple[bytes, StoredAnswer, float]]:
        """Yield the newest answer under each key as (key, answer, fresh until), used least recently first.

        Damaged answers are left out with one warning; a file that is no journal is set aside with one.
        """
        try:
            yield from self._file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            self._warn(f"{self._file.path} could not be read ({error.strerror}); the response cache starts empty.")

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._file_access:
            self._take_queue()
            try:
                self._file.delete()
            except OSError as error:
                self._note_failure(0, error)

    def flush(self) -> None:
        """Write the queue now."""
        with self._file_access:
            answers, uses = self._take_queue()
            if not answers and not uses:
                return
            try:
                self._file.append(answers + uses)
            except OSError as error:
                self._note_failure(len(answers), error)
                return
            self._failing = False
            with self._changed:
                self._written += len(answers)

    def close(self) -> None:
        """Write the queue and stop. Later answers are dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def stats(self) -> JournalStats:
        """Return the figures of this moment."""
        with self._changed:
            return JournalStats(self._written, self._dropped, self._failures)

    def _write_batches(self) -> None:
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: self._closing, timeout=self._batch_seconds)
            self.flush()

    def _take_queue(self) -> tuple[list[Record], list[Record]]:
        """Empty the queue and return its answers and uses."""
        with self._changed:
            answers, uses = list(self._queue), [Record(key, None, 0.0) for key in list(self._touched)]
            self._queue.clear()
            self._queued_bytes = 0
            self._touched = {}
        return answers, uses

    def _note_failure(self, lost: int, error: OSError) -> None:
        with self._changed:
            self._dropped += lost
            self._failures += 1
        if not self._failing:
            self._failing = True
            self._warn(f"{self._file.path} could not be written ({error.strerror}); a restart may find it incomplete.")
