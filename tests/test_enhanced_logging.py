"""The five log files: which line goes where, what survives a bad disk, and how processes share a folder."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtllm.domain.completion import StoredAnswer
from mtllm.domain.findings import Finding
from mtllm.domain.money import Amount, Cost, TokenUsage
from mtllm.logs.files import LogFile
from mtllm.logs.writer import FILES, PromptLogging, RequestEvent, RequestLogger
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock

NOON = 1_769_860_800.25  # 2026-01-31T12:00:00.250Z

MakeLogger = Callable[..., RequestLogger]


def event(request_id: str = "r1", **facts: Any) -> RequestEvent:
    return RequestEvent(request_id, NOON, **facts)


def stored(body: bytes) -> StoredAnswer:
    return StoredAnswer(body, TokenUsage(), 0, "m", "stop", NOON)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rotated(folder: Path, name: str) -> list[Path]:
    """The file's predecessors and itself, oldest first."""
    numbered = sorted(folder.glob(f"{name}.*"), key=lambda p: int(p.suffix[1:]), reverse=True)
    return [*numbered, folder / name]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def make_logger(logs: Path) -> Iterator[MakeLogger]:
    made: list[RequestLogger] = []

    def make(**settings: Any) -> RequestLogger:
        made.append(RequestLogger(logs, **settings))
        return made[-1]

    yield make
    for logger in made:
        logger.close()


class TestWhichFile:
    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            ({"status": 200}, {"api_requests.log", "performance.log"}),
            ({"status": 200, "cached": False}, {"api_requests.log", "performance.log", "cost_tracking.log"}),
            ({"status": 200, "cached": True}, {"api_requests.log", "performance.log", "cost_tracking.log"}),
            ({"status": 502, "amount": Amount(cost=Cost(5))}, {*FILES} - {"security_audit.log"}),
            ({"status": 404}, {"api_requests.log", "performance.log"}),
            ({"status": 400}, {"api_requests.log", "performance.log", "api_errors.log"}),
            ({"status": 401}, {*FILES} - {"cost_tracking.log"}),
            ({"status": 403}, {*FILES} - {"cost_tracking.log"}),
            ({"status": 429}, {"api_requests.log", "performance.log", "api_errors.log"}),
            ({"status": 500}, {"api_requests.log", "performance.log", "api_errors.log"}),
            (
                {"status": 404, "findings": (Finding("probing_path", "medium", "/.env"),)},
                {"api_requests.log", "performance.log", "security_audit.log"},
            ),
        ],
    )
    def test_a_request_is_on_each_file_it_belongs_to_exactly_once(
        self, make_logger: MakeLogger, logs: Path, facts: dict[str, Any], expected: set[str]
    ) -> None:
        """Every file that concerns the request has one line of it, the others none."""
        logger = make_logger()
        logger.record(event(**facts))
        logger.close()
        assert {name: len(lines(logs, name)) for name in FILES} == {name: int(name in expected) for name in FILES}

    def test_every_line_says_which_request_when_and_who(self, make_logger: MakeLogger, logs: Path) -> None:
        """request_id, timestamp (UTC, milliseconds), client and trace_id are on all five files."""
        logger = make_logger()
        logger.record(event(status=403, client="10.0.0.7", trace_id="ab" * 16, cached=False))
        logger.close()
        for name in FILES:
            (line,) = lines(logs, name)
            assert line["request_id"] == "r1"
            assert line["timestamp"] == "2026-01-31T12:00:00.250Z"
            assert line["client"] == "10.0.0.7"
            assert line["trace_id"] == "ab" * 16

    def test_costs_are_dollars_exact_to_the_nano_dollar(self, make_logger: MakeLogger, logs: Path) -> None:
        """The figures of the event come back as decimal numbers."""
        logger = make_logger()
        logger.record(
            event(cached=False, amount=Amount(TokenUsage(150, 425), Cost(15_000, 2_000_170_001)), saved=0)
        )  # fmt: skip
        logger.close()
        written = (logs / "cost_tracking.log").read_text()
        assert '"input_cost":0.000015000,"output_cost":2.000170001,"total_cost":2.000185001,"saved":0}' in written
        assert '"input_tokens":150,"output_tokens":425' in written

    def test_performance_says_where_the_time_went(self, make_logger: MakeLogger, logs: Path) -> None:
        """Own time is what neither the queue nor Gemini took; slow begins at the limit."""
        logger = make_logger(slow_request_seconds=5.0)
        logger.record(
            event(duration=5.0, queue_seconds=1.0, upstream_seconds=3.5, amount=Amount(TokenUsage(0, 70)), attempts=2)
        )
        logger.record(event(duration=4.999))
        logger.close()
        slow, quick = lines(logs, "performance.log")
        assert (slow["duration_ms"], slow["queue_ms"], slow["upstream_ms"], slow["app_ms"]) == (5000, 1000, 3500, 500)
        assert (slow["slow"], slow["output_tokens_per_second"], slow["attempts"]) == (True, 20.0, 2)
        assert quick["slow"] is False

    def test_each_finding_is_a_line(self, make_logger: MakeLogger, logs: Path) -> None:
        """A finding keeps kind, severity and evidence; a 403 adds its own line, with the note as evidence."""
        findings = (Finding("path_traversal", "high", "/../etc"), Finding("scanner_user_agent", "low", "sqlmap"))
        logger = make_logger()
        logger.record(event(status=403, findings=findings, note="blocked path"))
        logger.close()
        assert [(x["kind"], x["severity"], x["evidence"]) for x in lines(logs, "security_audit.log")] == [
            ("path_traversal", "high", "/../etc"),
            ("scanner_user_agent", "low", "sqlmap"),
            ("forbidden", "medium", "blocked path"),
        ]

    def test_what_no_request_caused_is_an_error_line_too(self, make_logger: MakeLogger, logs: Path) -> None:
        """An operational event has a name, a sentence and figures."""
        logger = make_logger(clock=FakeClock(NOON))
        logger.operational(
            "ledger_down", "The ledger cannot be written.", tries=3, wait=float("inf"), disk=True, x=None
        )
        logger.close()
        assert lines(logs, "api_errors.log") == [
            {"timestamp": "2026-01-31T12:00:00.250Z", "request_id": None, "client": None, "event": "ledger_down",
             "message": "The ledger cannot be written.", "tries": 3, "wait": "inf", "disk": True, "x": None}
        ]  # fmt: skip

    def test_order_in_a_file_is_completion(self, make_logger: MakeLogger, logs: Path) -> None:
        """Lines stand in the order of `record`, errors among the rest."""
        logger = make_logger()
        for n in range(300):
            logger.record(event(str(n), status=500 if n % 7 == 0 else 200))
        assert logger.flush()
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == [str(n) for n in range(300)]

    def test_lines_arrive_without_being_asked_for(self, make_logger: MakeLogger, logs: Path) -> None:
        """The writer wakes by itself: nothing is left waiting for a flush."""
        logger = make_logger()
        (logs).mkdir()
        os.mkfifo(logs / "api_requests.log")
        reader = os.open(logs / "api_requests.log", os.O_RDWR | os.O_NONBLOCK)
        try:
            logger.record(event())
            ready, _, _ = select.select([reader], [], [], 5.0)
            assert ready
        finally:
            os.close(reader)


class TestWords:
    PROMPT = "My password: hunter2. Write a poem about the sea " + "and its waves " * 500

    @pytest.mark.parametrize("mode", ["off", "preview", "full"])
    def test_prompts_are_shown_as_far_as_allowed(
        self, make_logger: MakeLogger, logs: Path, mode: PromptLogging
    ) -> None:
        """Off: length and hash only. Preview: the beginning. Full: all of it. Secrets never."""
        logger = make_logger(prompts=mode)
        logger.record(event(cached=False, prompt=self.PROMPT, answer="Blue.", status=500))
        logger.close()
        (line,) = lines(logs, "api_requests.log")
        everything = "".join(path.read_text() for path in logs.iterdir())
        assert (line["prompt_chars"], line["answer_chars"]) == (len(self.PROMPT), 5)
        assert "hunter2" not in everything
        assert ("poem" in everything, "Blue." in everything) == ((mode != "off"), (mode != "off"))
        assert line.get("prompt", "").endswith("[cut]") == (mode == "preview")
        assert everything.count("waves") == {"off": 0, "preview": 3, "full": 500}[mode]

    @pytest.mark.parametrize("mode", ["off", "preview", "full"])
    def test_an_answer_may_come_as_the_body_that_was_sent(
        self, make_logger: MakeLogger, logs: Path, mode: PromptLogging
    ) -> None:
        """It is read by the writer, and only where it may be seen."""
        logger = make_logger(prompts=mode)
        logger.record(event(prompt="x", answer=stored(b'{"generated_text": "Blue, token=abc123", "model": "m"}\n')))
        logger.close()
        (line,) = lines(logs, "api_requests.log")
        expected = None if mode == "off" else "Blue, token=[redacted]"
        assert (line.get("answer"), line.get("answer_chars")) == (expected, expected and 18)

    def test_the_hash_tells_equal_prompts_but_not_what_they_were(self, make_logger: MakeLogger, logs: Path) -> None:
        """Equal prompts share a hash within a key; another key gives another hash."""
        for key in (b"one", b"two"):
            logger = make_logger(prompt_key=key)
            for prompt in ("a", "a", "b\ud800"):
                logger.record(event(prompt=prompt))
            logger.close()
        first, again, other, elsewhere, *_ = [line["prompt_hash"] for line in lines(logs, "api_requests.log")]
        assert first == again
        assert len({first, other, elsewhere}) == 3


def store() -> None:
    try:
        Path("/dev/null/canary").mkdir()
    except OSError as error:
        raise RuntimeError("could not store token=abc123 of canary prompt") from error


def fault_with_cause() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        store()
    return caught.value


class TestFaults:
    def test_a_fault_is_told_by_type_and_place(self, make_logger: MakeLogger, logs: Path) -> None:
        """Types, file names, lines and functions of the whole chain; messages not, since they may quote a prompt."""
        logger = make_logger()
        logger.record(event(status=500, fault=fault_with_cause()))
        logger.close()
        (line,) = lines(logs, "api_errors.log")
        assert re.fullmatch(
            r"RuntimeError at test_enhanced_logging.py:\d+ store, test_enhanced_logging.py:\d+ fault_with_cause; "
            r"caused by NotADirectoryError ENOTDIR at \S+:\d+ mkdir, test_enhanced_logging.py:\d+ store",
            line["fault"],
        )

    def test_where_words_may_be_seen_so_may_the_message(self, make_logger: MakeLogger, logs: Path) -> None:
        """With LOG_PROMPTS=preview the message is told, redacted."""
        logger = make_logger(prompts="preview")
        logger.record(event(status=500, fault=fault_with_cause()))
        logger.close()
        (line,) = lines(logs, "api_errors.log")
        assert "(could not store token=[redacted] of canary prompt)" in line["fault"]

    def test_an_endless_recursion_is_a_bounded_line(self, make_logger: MakeLogger, logs: Path) -> None:
        """The innermost frames are kept, the rest is not."""

        def deeper() -> None:
            deeper()

        with pytest.raises(RecursionError) as caught:
            deeper()
        logger = make_logger()
        logger.record(event(status=500, fault=caught.value))
        logger.close()
        assert lines(logs, "api_errors.log")[0]["fault"].count("deeper") == 12

    def test_an_event_that_defies_its_types_does_not_end_the_log(self, make_logger: MakeLogger, logs: Path) -> None:
        """It becomes an error line; the others are written."""
        logger = make_logger()
        logger.record(event("bad", path=None))
        logger.record(event("good"))
        logger.close()
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["good"]
        assert lines(logs, "api_errors.log")[0]["event"] == "event_unreadable"


class TestQuiet:
    def test_nothing_happens_before_the_first_event(self, make_logger: MakeLogger, logs: Path) -> None:
        """Making a logger starts no thread and touches no file; flush and close have nothing to do."""
        before = threading.active_count()
        logger = make_logger()
        assert logger.flush()
        assert threading.active_count() == before
        assert not logs.exists()
        assert logger.health().writable

    def test_the_logging_module_is_left_alone(
        self, make_logger: MakeLogger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No logger is made, no handler added, nothing printed."""
        known, handlers = set(logging.root.manager.loggerDict), list(logging.root.handlers)
        logger = make_logger()
        logger.record(event(status=500))
        logger.close()
        assert set(logging.root.manager.loggerDict) == known
        assert logging.root.handlers == handlers
        assert capsys.readouterr() == ("", "")

    def test_after_close_only_what_matters_is_told(
        self, make_logger: MakeLogger, logs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Errors go to stderr, redacted; the rest is counted. Closing again is harmless."""
        logger = make_logger()
        logger.close()
        logger.record(event("plain"))
        logger.record(event("bad", status=500, path="/x?token=abc123"))
        logger.close()
        told = capsys.readouterr().err
        assert json.loads(told)["request_id"] == "bad"
        assert "abc123" not in told
        assert logger.health().dropped == 2
        assert not logs.exists()


class TestBadDisk:
    def test_a_full_disk_costs_lines_not_requests(
        self, make_logger: MakeLogger, logs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Lost lines are counted, errors told on stderr, the other files written; it heals when there is room."""
        logs.mkdir()
        for name in ("api_requests.log", "api_errors.log"):
            (logs / name).symlink_to("/dev/full")
        logger = make_logger()
        logger.record(event("lost", status=500))
        assert logger.flush()
        health = logger.health()
        assert (health.writable, health.last_error, health.failed_writes, health.queued) == (False, "ENOSPC", 2, 0)
        assert json.loads(capsys.readouterr().err)["request_id"] == "lost"
        assert len(lines(logs, "performance.log")) == 1

        for name in ("api_requests.log", "api_errors.log"):
            (logs / name).unlink()
        logger.record(event("kept"))
        logger.close()
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["kept"]
        assert logger.health().writable, "the error file was tried again without an error to write"
        assert (logs / "api_errors.log").read_bytes() == b""

    def test_a_file_in_place_of_the_folder(self, make_logger: MakeLogger, logs: Path) -> None:
        """An impossible folder is a failure like any other, and heals like any other."""
        logs.write_text("not a folder")
        logger = make_logger()
        logger.record(event("lost"))
        logger.flush()
        assert logger.health().last_error == "EEXIST"
        logs.unlink()
        logger.record(event("kept"))
        logger.close()
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["kept"]
        assert logger.health().writable

    def test_a_deleted_folder_or_moved_file_loses_nothing(self, make_logger: MakeLogger, logs: Path) -> None:
        """Each batch looks whether the path still names its file."""
        logger = make_logger()
        logger.record(event("1"))
        logger.flush()
        (logs / "api_requests.log").rename(logs / "taken-by-logrotate")
        logger.record(event("2"))
        logger.flush()
        assert [line["request_id"] for line in lines(logs, "taken-by-logrotate")] == ["1"]
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["2"]
        for file in logs.iterdir():
            file.unlink()
        logs.rmdir()
        logger.record(event("3"))
        logger.close()
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["3"]

    def test_a_disk_that_hangs_fills_the_queue_and_nothing_else(
        self, make_logger: MakeLogger, logs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """While a write hangs, ordinary events are dropped first, then errors go to stderr; it all shows, and heals."""
        logs.mkdir()
        os.mkfifo(logs / "api_requests.log")  # takes 64 KiB, then blocks
        reader = os.open(logs / "api_requests.log", os.O_RDWR | os.O_NONBLOCK)
        monotonic = FakeClock()
        logger = make_logger(queue_bytes=400 * 1024, monotonic=monotonic)
        try:
            for n in range(400):
                logger.record(event(str(n), path="/" + "x" * 900))
            select.select([reader], [], [], 5.0)  # the writer is in its write now, and cannot end it
            for n in range(401):
                logger.record(event(str(n)))
            assert logger.health().dropped == 1
            for n in range(101):
                logger.record(event(f"bad{n}", status=500))
            assert json.loads(capsys.readouterr().err)["request_id"] == "bad100"
            assert not logger.flush(timeout=0.01)
            monotonic.advance(6)
            assert (logger.health().writable, logger.health().last_error) == (False, "stuck")
            while not logger.flush(timeout=0.01):
                select.select([reader], [], [], 1.0)
                os.read(reader, 1 << 20)
            assert logger.health().writable
            assert len(lines(logs, "performance.log")) == 900
            assert len(lines(logs, "api_errors.log")) == 100
        finally:
            logger.close()
            os.close(reader)


class TestRotation:
    def test_files_stay_within_their_size_and_number(self, make_logger: MakeLogger, logs: Path) -> None:
        """What is kept is the newest, without a gap."""
        logger = make_logger(max_bytes=3000, backup_count=3)
        for n in range(200):
            logger.record(event(str(n)))
        logger.close()
        files = rotated(logs, "api_requests.log")
        assert len(files) == 4
        assert all(0 < file.stat().st_size <= 3000 for file in files)
        kept = [line["request_id"] for file in files for line in lines(logs, file.name)]
        assert kept == [str(n) for n in range(200 - len(kept), 200)]

    def test_old_files_go_once_a_day(self, make_logger: MakeLogger, logs: Path) -> None:
        """A predecessor older than the retention is deleted at start and a day later; anything else stays."""
        clock, monotonic = FakeClock(NOON), FakeClock()
        logs.mkdir()

        def put(name: str, days: float) -> Path:
            (logs / name).write_text("{}\n")
            os.utime(logs / name, (NOON - days * 86_400,) * 2)
            return logs / name

        old, young, foreign = (
            put("performance.log.7", 91),
            put("performance.log.1", 89),
            put("performance.log.bak", 900),
        )
        logger = make_logger(retention_days=90, clock=clock, monotonic=monotonic)
        logger.record(event())
        logger.close()
        assert (old.exists(), young.exists(), foreign.exists()) == (False, True, True)

        logger = make_logger(retention_days=90, clock=clock, monotonic=monotonic)
        logger.record(event())
        logger.flush()
        old = put("performance.log.7", 91)
        logger.record(event())
        logger.flush()
        assert old.exists(), "a day has not passed"
        monotonic.advance(86_400)
        logger.record(event())
        logger.close()
        assert not old.exists()

    def test_old_files_go_at_rotation(self, logs: Path) -> None:
        """Rotation deletes what is past its retention."""
        clock = FakeClock(NOON)
        file = LogFile(logs / "a.log", max_bytes=4, backup_count=9, retention_seconds=10, clock=clock)
        file.append(b"1\n2\n")
        os.utime(logs / "a.log", (NOON - 11,) * 2)
        file.append(b"3\n")
        file.close()
        assert [path.name for path in rotated(logs, "a.log")] == ["a.log"]


def half_then_full(fd: int, data: bytes) -> int:
    """A disk with room for half of what comes, once."""
    if len(data) > 4:
        return os.write(fd, data[: len(data) // 2])
    raise OSError(28, "No space left on device")


class TestLogFile:
    @staticmethod
    def make(logs: Path, **settings: Any) -> LogFile:
        return LogFile(logs / "a.log", **{"max_bytes": 10, "backup_count": 2, "retention_seconds": 1e9, **settings})

    def test_a_half_written_batch_is_taken_back(self, logs: Path) -> None:
        """When the disk fills up in the middle of a line, the file ends with the last whole line."""
        file = self.make(logs, max_bytes=0)
        file.append(b"whole\n")
        file.close()
        full = self.make(logs, max_bytes=0, write=half_then_full)
        with pytest.raises(OSError, match="No space"):
            full.append(b"0123456789\n")
        assert (logs / "a.log").read_bytes() == b"whole\n"

    def test_half_a_line_left_by_a_power_cut_spoils_no_other(self, logs: Path) -> None:
        """The next line starts on its own."""
        logs.mkdir()
        (logs / "a.log").write_bytes(b'{"half":')
        file = self.make(logs, max_bytes=0)
        file.append(b"{}\n")
        file.append(b"[]\n")
        file.close()
        assert (logs / "a.log").read_bytes() == b'{"half":\n{}\n[]\n'

    def test_a_line_longer_than_a_file_has_one_of_its_own(self, logs: Path) -> None:
        """It is not cut and not dropped."""
        file = self.make(logs)
        file.append(b"1\n" + b"x" * 20 + b"\n2\n")
        file.close()
        assert [path.read_bytes() for path in rotated(logs, "a.log")] == [b"1\n", b"x" * 20 + b"\n", b"2\n"]

    def test_without_backups_the_file_begins_anew(self, logs: Path) -> None:
        """A backup count of 0 keeps the current file only."""
        file = self.make(logs, backup_count=0)
        file.append(b"1234567\n")
        file.append(b"89\nab\n")
        file.close()
        assert [path.read_bytes() for path in rotated(logs, "a.log")] == [b"89\nab\n"]
        assert list(logs.iterdir()) == [logs / "a.log"]

    def test_a_probe_leaves_no_trace(self, logs: Path) -> None:
        """Trying whether the file takes lines adds none."""
        file = self.make(logs)
        file.append(b"1\n")
        file.probe()
        file.close()
        assert (logs / "a.log").read_bytes() == b"1\n"


FORKS_WITH_THREADS = ("-W", "ignore:This process:DeprecationWarning")
"""Python 3.12 and newer warn of a fork beside threads; that it goes well here is what is tested."""


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    preamble = "import os, sys, time\nfrom enhanced_logging import RequestEvent, RequestLogger\n"
    return subprocess.Popen(
        [sys.executable, *FORKS_WITH_THREADS, "-c", preamble + textwrap.dedent(script), *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestProcesses:
    def test_processes_that_rotate_one_folder_lose_no_line(self, logs: Path) -> None:
        """Three processes write and rotate the same small files at once; every line is there, whole, once."""
        script = """
            logger = RequestLogger(sys.argv[2], max_bytes=4000, backup_count=500)
            for n in range(200):
                logger.record(RequestEvent(f"{sys.argv[1]}-{n}", time.time()))
                if n % 10 == 9:
                    logger.flush()
            logger.close()
            health = logger.health()
            sys.exit(not health.writable or health.failed_writes)
        """
        writers = [run(script, name, str(logs)) for name in "abc"]
        assert [(w.communicate(timeout=60)[1], w.returncode) for w in writers] == [("", 0)] * 3
        files = rotated(logs, "api_requests.log")
        assert len(files) > 10
        assert all(file.stat().st_size <= 4000 for file in files)
        seen = [line["request_id"] for file in files for line in lines(logs, file.name)]
        for name in "abc":
            assert [i for i in seen if i.startswith(name)] == [f"{name}-{n}" for n in range(200)]

    def test_a_forked_child_writes_its_own_events_only(self, logs: Path) -> None:
        """What waited in the parent is written by the parent, and both go on logging."""
        script = """
            logger = RequestLogger(sys.argv[1])
            logger.record(RequestEvent("before", time.time()))
            logger.flush()
            logger.record(RequestEvent("waiting", time.time()))
            child = os.fork()
            logger.record(RequestEvent("after-" + ("parent" if child else "child"), time.time()))
            logger.close()
            if child == 0:
                os._exit(0)
            sys.exit(os.waitpid(child, 0)[1])
        """
        process = run(script, str(logs))
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
        seen = sorted(line["request_id"] for line in lines(logs, "api_requests.log"))
        assert seen == ["after-child", "after-parent", "before", "waiting"]

    def test_a_process_that_ends_without_close_loses_nothing(self, logs: Path) -> None:
        """The interpreter's end flushes."""
        process = run("RequestLogger(sys.argv[1]).record(RequestEvent('last', time.time()))", str(logs))
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
        assert [line["request_id"] for line in lines(logs, "api_requests.log")] == ["last"]
