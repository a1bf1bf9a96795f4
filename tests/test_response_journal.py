"""The response cache on disk: what comes back after a restart, a kill, damage, or other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from mtllm.caching import journal_file
from mtllm.caching.journal import ResponseJournal
from mtllm.caching.journal_file import JournalFile
from mtllm.caching.responses import AnswerStore
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock

OpenJournal = Callable[..., ResponseJournal]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def open_journal(tmp_path: Path, clock: FakeClock, warnings: list[str]) -> Iterator[OpenJournal]:
    """Opens journals on one folder, as restarts or other processes would, and closes them at the end."""
    opened = []

    def open_journal(max_bytes: int = 10_000_000, **options: Any) -> ResponseJournal:
        writer = {name: options.pop(name) for name in ("queue_bytes", "batch_seconds") if name in options}
        file = JournalFile(tmp_path / "cache", max_bytes=max_bytes, clock=clock, warn=warnings.append, **options)
        journal = ResponseJournal(file, warn=warnings.append, **writer)
        opened.append(journal)
        return journal

    yield open_journal
    for journal in opened:
        journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "responses.journal"


def answer(body: bytes = b'{"generated_text": "hi"}', stored_at: float = 1_000_000.0) -> StoredAnswer:
    return StoredAnswer(body, TokenUsage(8, 425), 170_800, "gemini-2.5-flash-lite", "stop", stored_at)


def write(journal: ResponseJournal, *keys: bytes, body: bytes = b"{}", ttl: float = 100) -> None:
    for key in keys:
        journal.append(key, answer(body), 1_000_000.0 + ttl)
    journal.flush()


def keys_of(journal: ResponseJournal) -> list[bytes]:
    return [key for key, _, _ in journal.load()]


def test_answers_come_back(open_journal: OpenJournal) -> None:
    """After a restart every answer is there, byte for byte, with its expiry."""
    journal = open_journal()
    journal.append(b"\x00\xff", answer('{"a": "\u20ac\\n"}\n\n'.encode()), 1_000_100.5)
    journal.close()
    assert list(open_journal().load()) == [(b"\x00\xff", answer('{"a": "\u20ac\\n"}\n\n'.encode()), 1_000_100.5)]


FIRST_JOURNAL = (
    b"multi-task-llm-api responses 1\n"
    b'\xf5rec\xaeqY\xf9\x00\x00\x00h["00ff", 1000100.5, 8, 425, 170800, "gemini-2.5-flash-lite", "stop", 1000000.0]\n'
    b'{"generated_text": "hi"}'
)
"""A file of one record as version 1.0.0 wrote it."""


def test_a_journal_of_the_first_version_is_read(open_journal: OpenJournal, path: Path) -> None:
    """The values changed their classes since; the format on disk did not."""
    path.parent.mkdir()
    path.write_bytes(FIRST_JOURNAL)
    assert list(open_journal().load()) == [(b"\x00\xff", answer(), 1_000_100.5)]


def test_nothing_happens_before_it_is_used(open_journal: OpenJournal, tmp_path: Path) -> None:
    """Making a journal touches no file; loading from a folder that is not there gives nothing."""
    assert list(open_journal().load()) == []
    open_journal().close()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_answer_in_the_order_of_use(open_journal: OpenJournal) -> None:
    """One answer a key, the newest; those used last come last."""
    journal = open_journal()
    write(journal, b"a", b"b", b"c")
    journal.append(b"b", answer(b"newer"), 1_000_100)
    journal.flush()
    journal.touch(b"a")
    journal.touch(b"unknown")
    journal.flush()
    loaded = list(open_journal().load())
    assert [key for key, _, _ in loaded] == [b"c", b"b", b"a"]
    assert loaded[1][1].body == b"newer"


def test_expired_answers_stay_away_unless_stale_ones_are_wanted(open_journal: OpenJournal, clock: FakeClock) -> None:
    """An answer past its freshness, and past stale_seconds, is not loaded."""
    write(open_journal(), b"a", ttl=100)
    clock.advance(100)
    assert keys_of(open_journal()) == []
    assert keys_of(open_journal(stale_seconds=1)) == [b"a"]


def test_clear_reaches_the_disk_and_the_queue(open_journal: OpenJournal, path: Path) -> None:
    """After clear nothing comes back, neither what was written nor what was still queued."""
    journal = open_journal()
    write(journal, b"a")
    journal.append(b"b", answer(), 1_000_100)
    journal.clear()
    journal.flush()
    assert not path.exists()
    write(journal, b"c")
    assert keys_of(open_journal()) == [b"c"]


def test_no_words_of_a_prompt_and_nobody_elses_to_read(open_journal: OpenJournal, path: Path) -> None:
    """The file holds digests and answers, and only its owner may read it."""
    write(open_journal(), b"a")
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_end_is_skipped_in_silence(open_journal: OpenJournal, path: Path, warnings: list[str], cut: int) -> None:
    """A record that a kill cut short is as if it had not been written; what is appended behind it is found."""
    write(open_journal(), b"a", b"b")
    os.truncate(path, path.stat().st_size - cut)
    journal = open_journal()
    assert keys_of(journal) == [b"a"]
    assert warnings == []
    write(journal, b"c")
    assert keys_of(journal) == [b"a", b"c"]


@pytest.mark.parametrize("length", [0, 5, 31])
def test_a_torn_beginning_is_begun_anew(
    open_journal: OpenJournal, path: Path, warnings: list[str], length: int
) -> None:
    """A file whose maker was killed within the header is an empty journal."""
    write(open_journal(), b"a")
    os.truncate(path, length)
    journal = open_journal()
    assert keys_of(journal) == []
    write(journal, b"b")
    assert keys_of(journal) == [b"b"]
    assert warnings == []


def test_damage_costs_only_what_it_hit(open_journal: OpenJournal, path: Path, warnings: list[str]) -> None:
    """A damaged record is left out with one warning, those around it are there."""
    write(open_journal(), b"a", b"b", b"c", body=b"x" * 100)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert keys_of(open_journal()) == [b"a", b"c"]
    assert len(warnings) == 1
    assert "damaged" in warnings[0]


def test_an_absurd_length_is_damage(open_journal: OpenJournal, path: Path) -> None:
    """A damaged length does not make the reader ask for gigabytes; scanning goes on in stretches."""
    write(open_journal(), b"a", b"b", body=b"x" * 100)
    content = bytearray(path.read_bytes())
    start = content.index(journal_file.MARK)
    content[start + 8 : start + 12] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert keys_of(open_journal(scan_bytes=16)) == [b"b"]


@pytest.mark.parametrize("content", [b"hello, I am somebody's notes\n" * 10, bytes(100_000), b"\x80\x04pickle"])
def test_a_foreign_file_is_set_aside(
    open_journal: OpenJournal, path: Path, warnings: list[str], content: bytes
) -> None:
    """What is no journal is not touched but moved aside, with one warning, and a journal begun."""
    path.parent.mkdir()
    path.write_bytes(content)
    journal = open_journal()
    assert keys_of(journal) == []
    write(journal, b"a")
    assert keys_of(open_journal()) == [b"a"]
    assert path.with_suffix(".unreadable").read_bytes() == content
    assert len(warnings) == 1


def test_a_foreign_file_that_comes_while_running_is_set_aside(
    open_journal: OpenJournal, path: Path, warnings: list[str]
) -> None:
    """The writer does not append to what is no journal."""
    journal = open_journal()
    write(journal, b"a")
    path.write_bytes(b"something else, longer than a header is")
    write(journal, b"b")
    assert keys_of(open_journal()) == [b"b"]
    assert len(warnings) == 1


def test_deleting_the_folder_while_running(open_journal: OpenJournal, path: Path, warnings: list[str]) -> None:
    """The folder may go at any time: what comes later is kept, nothing fails."""
    journal = open_journal()
    write(journal, b"a")
    path.unlink()
    path.parent.rmdir()
    write(journal, b"b")
    assert keys_of(open_journal()) == [b"b"]
    assert (warnings, journal.stats().dropped) == ([], 0)


def test_an_unwritable_folder_is_counted_and_heals(open_journal: OpenJournal, path: Path, warnings: list[str]) -> None:
    """While the file cannot be written answers are dropped and counted, with one warning; then it goes on."""
    path.parent.write_bytes(b"a file where the folder should be")
    journal = open_journal()
    assert keys_of(journal) == []
    warnings.clear()
    write(journal, b"a")
    write(journal, b"b")
    journal.clear()
    assert len(warnings) == 1
    assert journal.stats().dropped == 2
    path.parent.unlink()
    write(journal, b"c")
    assert keys_of(open_journal()) == [b"c"]
    assert journal.stats().written == 1


def test_a_full_queue_drops(open_journal: OpenJournal) -> None:
    """More than the queue holds is dropped and counted, never waited for."""
    journal = open_journal(queue_bytes=100, batch_seconds=60)
    for key in (b"a", b"b", b"c"):
        journal.append(key, answer(bytes(40)), 1_000_100)
    assert journal.stats().dropped == 1
    journal.close()
    journal.append(b"d", answer(), 1_000_100)
    assert journal.stats().dropped == 2
    assert keys_of(open_journal()) == [b"a", b"b"]


def test_a_partial_write_is_taken_back(open_journal: OpenJournal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up in the middle of a batch, the file is as it was before."""
    journal = open_journal()
    write(journal, b"a")
    before, real_write = path.read_bytes(), os.write

    def fills_up(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return real_write(descriptor, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fills_up)
        journal.append(b"b", answer(bytes(9)), 1_000_100)
        journal.flush()
    assert path.read_bytes() == before
    assert journal.stats().failures == 1


def test_the_file_stays_bounded(open_journal: OpenJournal, path: Path) -> None:
    """Rewriting drops what is replaced, expired or too much; the newest stay."""
    journal = open_journal(max_bytes=20_000, small_file_bytes=2_000)
    for number in range(500):
        write(journal, b"%d" % (number % 7), b"same", body=b"%03d" % number + bytes(300))
        assert path.stat().st_size < 20_000 + 1_000
    loaded = {key: stored.body[:3] for key, stored, _ in open_journal().load()}
    assert loaded == {b"same": b"499"} | {b"%d" % (number % 7): b"%03d" % number for number in range(493, 500)}
    write(journal, *(b"k%d" % number for number in range(200)), body=bytes(300))
    assert path.stat().st_size <= 10_000
    assert keys_of(open_journal())[-1] == b"k199"
    assert list(path.parent.iterdir()) == [path]


def test_a_rewritten_file_is_found_by_the_others(open_journal: OpenJournal, path: Path) -> None:
    """A journal that was open while another rewrote or cleared the file writes to the new one."""
    one, other = open_journal(small_file_bytes=1_000), open_journal(small_file_bytes=1_000)
    write(other, b"other")
    for number in range(20):
        write(one, b"one", body=b"%d" % number + bytes(200))
    write(other, b"later")
    assert keys_of(open_journal()) == [b"other", b"one", b"later"]
    one.clear()
    write(other, b"last")
    assert keys_of(open_journal()) == [b"last"]


WRITER = """
import sys
from pathlib import Path
from mtllm.caching.journal import ResponseJournal
from mtllm.caching.journal_file import JournalFile
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage
limits = {"max_bytes": 10_000_000, "small_file_bytes": 20_000}
journal = ResponseJournal(JournalFile(Path(sys.argv[1]), clock=lambda: 0.0, warn=print, **limits), warn=print)
for number in range(int(sys.argv[3])):
    key = f"{sys.argv[2]}-{number % 50}".encode()
    journal.append(key, StoredAnswer(b"x" * 500, TokenUsage(1, 2), 3, "m", "stop", 0.0), 100.0)
    if number % 10 == 9:
        journal.flush()
    if number == 200:
        print("going", flush=True)
journal.close()
"""


def writer(folder: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)


def test_several_processes_share_a_folder(
    open_journal: OpenJournal, path: Path, clock: FakeClock, warnings: list[str]
) -> None:
    """Processes that append and rewrite at once lose and damage nothing of each other."""
    processes = [writer(path.parent, name, 1000) for name in ("a", "b", "c")]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert (output, process.returncode) == (b"going\n", 0)
    clock.now = 0.0
    assert set(keys_of(open_journal())) == {f"{name}-{n}".encode() for name in "abc" for n in range(50)}
    assert warnings == []


def test_kill_9_loses_only_the_last_moment(open_journal: OpenJournal, path: Path, clock: FakeClock) -> None:
    """What was written before a kill is there afterwards, and the file goes on being used."""
    with writer(path.parent, "a", 100_000_000) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
    clock.now = 0.0
    journal = open_journal()
    assert len(keys_of(journal)) == 50
    journal.append(b"next", answer(), 100.0)
    journal.close()
    assert b"next" in keys_of(open_journal())


def test_a_cache_comes_back_as_it_was(open_journal: OpenJournal, clock: FakeClock) -> None:
    """The answers used last survive a restart of a full cache, whenever they were stored."""
    journal = open_journal()
    cache = AnswerStore(3, 100, journal=journal, clock=clock, monotonic=clock)
    cache.store(b"hot", answer())
    for number in range(20):
        cache.store(b"%d" % number, answer())
        assert cache.look_up(b"hot") is not None
    journal.close()
    clock.advance(40)
    restored = AnswerStore(3, 100, clock=clock, monotonic=clock)
    restored.restore(open_journal().load())
    assert restored.look_up(b"hot") == (answer(), 40, 60)
    assert restored.look_up(b"19") is not None


@pytest.mark.parametrize("payload", [b"no JSON\n", b"[]\n", b'["zz"]\n', b'["00", 1]\n', b"7"])
def test_a_record_that_says_something_else_is_damage(
    open_journal: OpenJournal, path: Path, warnings: list[str], payload: bytes
) -> None:
    """A whole record whose content is not ours is left out like a damaged one."""
    write(open_journal(), b"a")
    prefix = journal_file.PREFIX.pack(journal_file.MARK, crc32(payload), len(payload))
    path.write_bytes(path.read_bytes() + prefix + payload)
    assert keys_of(open_journal()) == [b"a"]
    assert len(warnings) == 1


def test_a_file_deleted_while_waiting_for_its_lock_is_opened_anew(open_journal: OpenJournal, path: Path) -> None:
    """What is written goes to the file that stands at the path, not to one that has just gone."""
    waits = iter([path.unlink])
    write(open_journal(lock=lambda descriptor: next(waits, lambda: None)()), b"a")
    assert keys_of(open_journal()) == [b"a"]
