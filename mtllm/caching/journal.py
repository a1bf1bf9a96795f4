"""The response cache kept in a file, so that a restart does not empty it.

Answers and uses are appended by a thread of its own, a fraction of a second behind; `kill -9` loses no more than that.
The file is a header and records, each `mark, checksum, length, payload`; the payload is a line of JSON (the key's
digest, times, counts, never a prompt) and the body of the answer. A reader skips what is damaged and goes on at the
next mark. Several processes may share the folder: each batch is appended, and the file rewritten, under its lock, and
whoever finds that the file was replaced or deleted meanwhile opens it anew.

Losing the file costs warmth only, so no error of the disk ever reaches a request: it is counted, warned of once, and
the next batch tries again. Nothing is synced: a power cut may leave a torn end, which is skipped.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import BinaryIO, NamedTuple
from zlib import crc32

from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage

if sys.platform != "win32":
    import fcntl

HEADER = b"multi-task-llm-api responses 1\n"
MARK = b"\xf5rec"  # 0xf5 never occurs in UTF-8, so not in a body either
PREFIX = struct.Struct(">4sII")
BATCH_SECONDS = 0.25
"""How long the writer gathers before it writes: what `kill -9` may lose."""
QUEUE_BYTES = 16 * 1024 * 1024
MOST_TOUCHED = 20_000
SMALL_FILE_BYTES = 1024 * 1024
"""Below this size, rewriting the file is not worth it."""
SCAN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What has happened since the journal was made."""

    written: int
    """Answers that reached the file."""
    dropped: int
    """Answers that did not: the queue was full, or the file could not be written."""
    failures: int
    """Batches that met an error of the disk."""


class _Record(NamedTuple):
    key: bytes
    answer: StoredAnswer | None  # None: the key was used
    expires_at: float


class _Place(NamedTuple):
    """Where a record stands in the file."""

    start: int
    end: int
    expires_at: float


class ResponseJournal:
    """The journal of a ResponseCache in `folder`, of at most about `max_bytes`.

    `warn` is told, in a sentence, what its operator should know. `stale_seconds` is how long an expired answer is worth
    keeping. No file is opened and no thread started before the first `load`, `append` or `clear`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        stale_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
        warn: Callable[[str], None],
    ) -> None:
        self._path = folder / "responses.journal"
        self._max_bytes = max_bytes
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._warn = warn
        self._queue: deque[_Record] = deque()
        self._queued_bytes = 0
        self._touched: dict[bytes, None] = {}
        self._changed = Condition()  # guards all but `_touched`; never held across I/O
        self._thread: Thread | None = None
        self._closing = False
        self._written = self._dropped = self._failures = 0
        self._failing = False
        self._file_access = Lock()  # of the writer and `clear`, which no request waits for
        self._rewrite_at = min(SMALL_FILE_BYTES, max_bytes)

    def append(self, key: bytes, answer: StoredAnswer, expires_at: float) -> None:
        """Note that `answer` is stored, fresh until `expires_at` (epoch seconds). Returns at once; may be dropped."""
        with self._changed:
            if self._closing or self._queued_bytes + len(answer.body) > QUEUE_BYTES:
                self._dropped += 1
                return
            self._queue.append(_Record(key, answer, expires_at))
            self._queued_bytes += len(answer.body)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="response-journal", daemon=True)
                self._thread.start()
            self._changed.notify()

    def touch(self, key: bytes) -> None:
        """Note that the answer under `key` was used. Written with the next answer: until one comes, none must go."""
        touched = self._touched
        if len(touched) < MOST_TOUCHED:  # a hint for the order of a restart, and no more
            touched[key] = None  # atomic, and on the path of every hit

    def load(self) -> Iterator[tuple[bytes, StoredAnswer, float]]:
        """The newest answer under each key as (key, answer, fresh until), used least recently first.

        What is damaged is left out with one warning; a file that is no journal is set aside with one.
        """
        try:
            with self._path.open("rb") as file:
                header = file.read(len(HEADER))
                if not HEADER.startswith(header):
                    self._set_aside()
                    return
                places, damaged = self._survey(file)
                if damaged:
                    self._warn(f"{self._path} is damaged; what could not be read of it is left out.")
                for place in places.values():
                    record = _decode(_read_at(file, place.start) or b"")
                    if record is not None and record.answer is not None:
                        yield record.key, record.answer, record.expires_at
        except FileNotFoundError:
            return
        except OSError as error:
            self._warn(f"{self._path} could not be read ({error.strerror}); the response cache starts empty.")

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._file_access:
            with self._changed:
                self._queue.clear()
                self._queued_bytes = 0
                self._touched.clear()
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                self._note_failure(0, error)

    def flush(self) -> None:
        """Write now what is queued."""
        with self._file_access:
            self._write(*self._taken())

    def close(self) -> None:
        """Write what is queued and stop. What comes later is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def stats(self) -> JournalStats:
        """The figures of this moment."""
        with self._changed:
            return JournalStats(self._written, self._dropped, self._failures)

    # The writer

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: self._closing, timeout=BATCH_SECONDS)
            self.flush()

    def _taken(self) -> tuple[list[_Record], list[bytes]]:
        with self._changed:
            records, touched = list(self._queue), list(self._touched)
            self._queue.clear()
            self._queued_bytes = 0
            self._touched = {}
        return records, touched

    def _write(self, records: list[_Record], touched: list[bytes]) -> None:
        if not records and not touched:
            return
        uses = [_Record(key, None, 0.0) for key in touched]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked_file() as descriptor:
                if _append(descriptor, b"".join(map(_encode, records + uses))) > self._rewrite_at:
                    self._rewrite()
        except OSError as error:
            self._note_failure(len(records), error)
        else:
            self._failing = False
            with self._changed:
                self._written += len(records)

    def _note_failure(self, lost: int, error: OSError) -> None:
        with self._changed:
            self._dropped += lost
            self._failures += 1
        if not self._failing:
            self._failing = True
            self._warn(f"{self._path} could not be written ({error.strerror}); a restart may find it incomplete.")

    @contextmanager
    def _locked_file(self) -> Iterator[int]:
        """The descriptor of the journal that stands at the path now, locked against other processes."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                _lock(descriptor)
                if not _stands_at(self._path, descriptor):
                    continue  # replaced or deleted while we waited
                header = os.read(descriptor, len(HEADER))
                if not HEADER.startswith(header):
                    self._set_aside()
                    continue
                if header != HEADER:  # new, or its maker was killed before the header was whole
                    os.ftruncate(descriptor, 0)
                    _append(descriptor, HEADER)
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def _set_aside(self) -> None:
        aside = self._path.with_suffix(".unreadable")
        self._path.replace(aside)
        self._warn(f"{self._path} is no journal of this version; it is not used, and moved to {aside.name}.")

    def _rewrite(self) -> None:
        """Keep only what a reader would use, the last used first and at most half of `max_bytes`."""
        fresh = self._path.with_suffix(".new")  # the lock on the journal makes it ours
        with self._path.open("rb") as file, open(fresh, "wb", opener=_private) as target:
            file.seek(len(HEADER))
            target.write(HEADER)
            for place in self._worth_keeping(file):
                file.seek(place.start)
                target.write(file.read(place.end - place.start))
            size = target.tell()
        fresh.replace(self._path)
        self._rewrite_at = min(max(SMALL_FILE_BYTES, 2 * size), self._max_bytes)

    def _worth_keeping(self, file: BinaryIO) -> list[_Place]:
        places, _ = self._survey(file)
        room = self._max_bytes // 2
        kept: list[_Place] = []
        for place in reversed(places.values()):
            room -= place.end - place.start
            if room < 0:
                break
            kept.append(place)
        return kept[::-1]

    def _survey(self, file: BinaryIO) -> tuple[dict[bytes, _Place], bool]:
        """Where the newest, unexpired answer of each key stands, in the order of use; and whether any was damaged."""
        places: dict[bytes, _Place] = {}
        damaged = False
        oldest = self._clock() - self._stale_seconds
        for start, payload in _payloads(file):
            record = None if payload is None else _decode(payload)
            if record is None:
                damaged = True
                continue
            former = places.pop(record.key, None)
            if record.answer is not None:
                places[record.key] = _Place(start, file.tell(), record.expires_at)
            elif former is not None:
                places[record.key] = former
        return {key: place for key, place in places.items() if place.expires_at > oldest}, damaged


# The format


def _encode(record: _Record) -> bytes:
    key, answer, expires_at = record
    facts: list[str | int | float] = [key.hex()]
    body = b""
    if answer is not None:
        body = answer.body
        facts += [expires_at, answer.usage.input, answer.usage.output, answer.cost]
        facts += [answer.model, answer.finish_reason, answer.stored_at]
    payload = json.dumps(facts).encode() + b"\n" + body
    return PREFIX.pack(MARK, crc32(payload), len(payload)) + payload


def _decode(payload: bytes) -> _Record | None:
    """The record in `payload`, None when it says something else."""
    line, _, body = payload.partition(b"\n")
    try:
        key, *facts = json.loads(line)
        if not facts:
            return _Record(bytes.fromhex(key), None, 0.0)
        expires_at, input_tokens, output_tokens, cost, model, finish_reason, stored_at = facts
        answer = StoredAnswer(body, TokenUsage(input_tokens, output_tokens), cost, model, finish_reason, stored_at)
        return _Record(bytes.fromhex(key), answer, expires_at)
    except (ValueError, TypeError):
        return None


def _payloads(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Each record's start and payload from where `file` stands, None for a damaged stretch; a torn end is no damage."""
    start: int | None = file.tell()
    while start is not None:
        payload = _read_at(file, start)
        if payload is not None:
            yield start, payload
            start = file.tell()
            continue
        start = _next_mark(file, start + 1)
        if start is not None:
            yield start, None


def _read_at(file: BinaryIO, start: int) -> bytes | None:
    """The payload of the whole, undamaged record at `start`, or None; `file` stands behind it then."""
    file.seek(start)
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    mark, checksum, length = PREFIX.unpack(prefix)
    if mark != MARK or length > os.fstat(file.fileno()).st_size - start:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and crc32(payload) == checksum else None


def _next_mark(file: BinaryIO, start: int) -> int | None:
    """Where the next mark stands from `start` on."""
    while True:
        file.seek(start)
        stretch = file.read(SCAN_BYTES)
        found = stretch.find(MARK)
        if found >= 0:
            return start + found
        if len(stretch) < SCAN_BYTES:
            return None
        start += SCAN_BYTES - len(MARK) + 1


# The file system


def _append(descriptor: int, data: bytes) -> int:
    """Write all of `data` at the end, or nothing; the size of the file then."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
    return size + len(data)


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":  # there, one process a folder
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _stands_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
