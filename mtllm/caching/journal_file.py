"""The file of the response journal: a header and records, each `mark, checksum, length, payload`.

A payload is a line of JSON (the key's digest, times, counts, never a prompt) and the body of the answer. A reader skips
a damaged record and goes on at the next mark. Several processes may share the file: each batch is appended, and the
file rewritten, under its lock, and whoever finds that the file was replaced or deleted meanwhile opens it again.
Nothing is synced: a power cut may leave a torn end, which is skipped.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage

if sys.platform != "win32":
    import fcntl

HEADER = b"multi-task-llm-api responses 1\n"
MARK = b"\xf5rec"  # 0xf5 never occurs in UTF-8, so not in a body either
PREFIX = struct.Struct(">4sII")
SMALL_FILE_BYTES = 1024 * 1024
"""Below this size, rewriting the file is not worth it."""
SCAN_BYTES = 1024 * 1024
"""How much of a damaged stretch is searched for a mark at once."""


class Record(NamedTuple):
    """One line of the journal: an answer and the end of its freshness (epoch seconds), or, without it, a use."""

    key: bytes
    answer: StoredAnswer | None
    expires_at: float


class _Position(NamedTuple):
    """Where a record stands in the file."""

    start: int
    end: int
    expires_at: float


def lock_exclusively(descriptor: int) -> None:
    """Wait until no other process has the file locked, and lock it."""
    if sys.platform != "win32":  # there, one process a folder
        fcntl.flock(descriptor, fcntl.LOCK_EX)


class JournalFile:
    """The journal in `folder`, at most about `max_bytes`. Every method may raise OSError.

    `warn` is told, in a sentence, when a file is damaged or foreign. An answer is of use until `stale_seconds` after
    its freshness. `lock` locks a descriptor against other processes until that is closed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        stale_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
        warn: Callable[[str], None],
        small_file_bytes: int = SMALL_FILE_BYTES,
        scan_bytes: int = SCAN_BYTES,
        lock: Callable[[int], None] = lock_exclusively,
    ) -> None:
        self.path = folder / "responses.journal"
        self._max_bytes = max_bytes
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._warn = warn
        self._small_file_bytes = small_file_bytes
        self._scan_bytes = scan_bytes
        self._lock = lock
        self._rewrite_at = min(small_file_bytes, max_bytes)

    def read(self) -> Iterator[tuple[bytes, StoredAnswer, float]]:
        """Yield the newest answer under each key as (key, answer, fresh until), used least recently first."""
        with self.path.open("rb") as file:
            if not HEADER.startswith(file.read(len(HEADER))):
                self._set_aside()
                return
            positions, damaged = self._survey(file)
            if damaged:
                self._warn(f"{self.path} is damaged; what could not be read of it is left out.")
            for position in positions.values():
                record = _decode(_read_at(file, position.start) or b"")
                if record is not None and record.answer is not None:
                    yield record.key, record.answer, record.expires_at

    def append(self, records: Iterable[Record]) -> None:
        """Append all of `records` or none, and rewrite the file where it has grown too large."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open_locked() as descriptor:
            if _append(descriptor, b"".join(map(_encode, records))) > self._rewrite_at:
                self._rewrite()

    def delete(self) -> None:
        """Delete the file if there is one."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _open_locked(self) -> Iterator[int]:
        """Open the journal that stands at the path now, locked against other processes."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                self._lock(descriptor)
                if not _is_at(self.path, descriptor):
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
        aside = self.path.with_suffix(".unreadable")
        self.path.replace(aside)
        self._warn(f"{self.path} is no journal of this version; it is not used, and moved to {aside.name}.")

    def _rewrite(self) -> None:
        """Replace the file by one with the chosen records alone."""
        fresh = self.path.with_suffix(".new")  # the lock on the journal makes it ours
        with self.path.open("rb") as file, open(fresh, "wb", opener=_open_private) as target:
            file.seek(len(HEADER))
            target.write(HEADER)
            for position in self._choose(file):
                file.seek(position.start)
                target.write(file.read(position.end - position.start))
            size = target.tell()
        fresh.replace(self.path)
        self._rewrite_at = min(max(self._small_file_bytes, 2 * size), self._max_bytes)

    def _choose(self, file: BinaryIO) -> list[_Position]:
        """Return the records that a reader would use, those used last first of all, at most half of `max_bytes`."""
        positions, _ = self._survey(file)
        room = self._max_bytes // 2
        chosen: list[_Position] = []
        for position in reversed(positions.values()):
            room -= position.end - position.start
            if room < 0:
                break
            chosen.append(position)
        return chosen[::-1]

    def _survey(self, file: BinaryIO) -> tuple[dict[bytes, _Position], bool]:
        """Return where the newest, unexpired answer of each key stands, in the order of use; and if any was damaged."""
        positions: dict[bytes, _Position] = {}
        damaged = False
        oldest = self._clock() - self._stale_seconds
        for start, payload in _read_payloads(file, self._scan_bytes):
            record = None if payload is None else _decode(payload)
            if record is None:
                damaged = True
                continue
            former = positions.pop(record.key, None)
            if record.answer is not None:
                positions[record.key] = _Position(start, file.tell(), record.expires_at)
            elif former is not None:
                positions[record.key] = former
        return {key: position for key, position in positions.items() if position.expires_at > oldest}, damaged


# The format


def _encode(record: Record) -> bytes:
    key, answer, expires_at = record
    facts: list[str | int | float] = [key.hex()]
    body = b""
    if answer is not None:
        body = answer.body
        facts += [expires_at, answer.usage.input, answer.usage.output, answer.cost]
        facts += [answer.model, answer.finish_reason, answer.stored_at]
    payload = json.dumps(facts).encode() + b"\n" + body
    return PREFIX.pack(MARK, crc32(payload), len(payload)) + payload


def _decode(payload: bytes) -> Record | None:
    """Return the record in `payload`, None when it says something else."""
    line, _, body = payload.partition(b"\n")
    try:
        key, *facts = json.loads(line)
        if not facts:
            return Record(bytes.fromhex(key), None, 0.0)
        expires_at, input_tokens, output_tokens, cost, model, finish_reason, stored_at = facts
        answer = StoredAnswer(body, TokenUsage(input_tokens, output_tokens), cost, model, finish_reason, stored_at)
        return Record(bytes.fromhex(key), answer, expires_at)
    except (ValueError, TypeError):
        return None


def _read_payloads(file: BinaryIO, scan_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield each record's start and payload, None for a damaged stretch; a torn end is no damage."""
    start: int | None = file.tell()
    while start is not None:
        payload = _read_at(file, start)
        if payload is not None:
            yield start, payload
            start = file.tell()
            continue
        start = _next_mark(file, start + 1, scan_bytes)
        if start is not None:
            yield start, None


def _read_at(file: BinaryIO, start: int) -> bytes | None:
    """Return the payload of the whole, undamaged record at `start`, or None; `file` stands behind it then."""
    file.seek(start)
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    mark, checksum, length = PREFIX.unpack(prefix)
    if mark != MARK or length > os.fstat(file.fileno()).st_size - start:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and crc32(payload) == checksum else None


def _next_mark(file: BinaryIO, start: int, scan_bytes: int) -> int | None:
    """Return where the next mark stands from `start` on."""
    while True:
        file.seek(start)
        stretch = file.read(scan_bytes)
        found = stretch.find(MARK)
        if found >= 0:
            return start + found
        if len(stretch) < scan_bytes:
            return None
        start += scan_bytes - len(MARK) + 1


# The file system


def _append(descriptor: int, data: bytes) -> int:
    """Write all of `data` at the end, or nothing; return the size of the file then."""
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


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
