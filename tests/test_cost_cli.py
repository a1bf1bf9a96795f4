"""The ledger's records outside the service: export, report and prune, from the command line and from Python."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks import cost_savings
from cost_tracker import CostTracker
from mtllm.billing.cli import Progress, main
from mtllm.billing.export import COLUMNS, export_csv, export_jsonl
from mtllm.billing.prices import Price, PriceTable
from mtllm.billing.report import LINES_A_TABLE, report
from mtllm.domain.events import RequestEvent
from mtllm.domain.money import Amount, Charge, Cost, TokenUsage
from mtllm.domain.times import LATEST, parse_time, rfc3339
from mtllm.ledger.ledger import Attempt, ExportRow, Hit, Ledger, Settlement, open_ledger
from mtllm.logs.writer import RequestLogger
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
DAY = 86_400.0
REQUIRED = (
    "request_id,timestamp,task,client,model,status,cached,input_tokens,output_tokens,"
    "input_cost,output_cost,total_cost,saved"
)
ROW = ExportRow(
    request_id="r-1",
    timestamp=NOON + 0.123456,
    task="text",
    client="203.0.113.9",
    model="gemini-2.5-flash-lite",
    status="ok",
    cached=False,
    input_tokens=150,
    output_tokens=425,
    input_cost=15_000,
    output_cost=170_000,
    total_cost=185_000,
    saved=0,
    attempt=1,
    cached_input_tokens=0,
    reserved=0,
    shared=False,
    estimated=False,
    unpriced=False,
    input_price=100_000_000,
    cached_input_price=10_000_000,
    output_price=400_000_000,
    key=None,
    requested_model="gemini-2.5-flash-lite",
    fallback="",
    tag="",
)


PRICE = Price("", date.min, 100_000_000, 10_000_000, 400_000_000)


def paid(
    ledger: Ledger, timestamp: float, *, request_id: str = "r", client: str = "alice", cost: int = 185_000
) -> None:
    """Record a call of 150 + 425 tokens."""
    attempt = Attempt(request_id, "text", client, "gemini-2.5-flash-lite", timestamp, timestamp + 60, reserved=cost)
    ledger.settle(
        ledger.open(attempt),
        Settlement(
            status="ok",
            model="gemini-2.5-flash-lite",
            charge=Charge(Amount(TokenUsage(150, 425), Cost(15_000, cost - 15_000)), PRICE),
        ),
    )


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A ledger of three paid calls, on three days up to 2026-11-23, and one hit."""
    file = tmp_path / "ledger.sqlite3"
    ledger = open_ledger(file, sync="normal", clock=FakeClock(NOON))
    for age in (2, 1, 0):
        paid(ledger, NOON - age * DAY, request_id=f"r-{age}")
    ledger.record_hit(Hit("r-hit", NOON, "text", "=bob", "gemini-2.5-flash-lite", 150, 425, saved=185_000))
    ledger.close()
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


class TestExportFormats:
    def test_csv_has_the_promised_columns_first(self) -> None:
        """Consumers may rely on names and order; more columns only follow."""
        [header] = export_csv([])
        assert header.startswith(REQUIRED + ",")
        assert header.rstrip("\r\n").split(",") == list(ExportRow._fields)

    def test_a_row_in_csv(self) -> None:
        """Times are UTC with microseconds, money is dollars with nine decimals, what is unknown is empty."""
        [cells] = csv.DictReader(io.StringIO("".join(export_csv([ROW]))))
        assert cells["timestamp"] == "2026-11-23T12:00:00.123456Z"
        assert (cells["input_cost"], cells["total_cost"], cells["saved"]) == (
            "0.000015000",
            "0.000185000",
            "0.000000000",
        )
        assert (cells["cached"], cells["input_price"], cells["key"]) == ("false", "0.100000000", "")

    def test_a_row_in_json_lines(self) -> None:
        """The same figures as JSON: exact decimals as numbers, null for what is unknown."""
        unpriced = ROW._replace(input_price=None, unpriced=True, client="=1+1\u2028\n")
        first, second = (
            json.loads(line, parse_float=Decimal) for line in "".join(export_jsonl([ROW, unpriced])).splitlines()
        )
        assert list(first) == [column.name for column in COLUMNS]
        assert (first["total_cost"], first["cached"], first["key"]) == (Decimal("0.000185"), False, None)
        assert (second["input_price"], second["unpriced"], second["client"]) == (None, True, "=1+1\u2028\n")

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
    def test_a_spreadsheet_runs_no_formula(self, start: str) -> None:
        """A text cell that would be one gets an apostrophe in CSV, and is left alone in JSON lines."""
        rows = [ROW._replace(client=start + "cmd", key=start)]
        [cells] = csv.DictReader(io.StringIO("".join(export_csv(rows)), newline=""))
        assert (cells["client"], cells["key"]) == (f"'{start}cmd", f"'{start}")
        assert json.loads("".join(export_jsonl(rows)))["client"] == start + "cmd"

    @pytest.mark.parametrize("export", [export_csv, export_jsonl])
    def test_rows_are_drawn_only_as_they_are_written(
        self, export: Callable[[Iterable[ExportRow]], Iterator[str]]
    ) -> None:
        """A million rows need the memory of a chunk: none is taken before its chunk is asked for."""
        rows = (ROW._replace(input_tokens=number) for number in range(1_000_000))
        chunks = export(rows)
        assert next(chunks).count("\n") + next(chunks).count("\n") <= 1001
        assert next(rows).input_tokens <= 1000


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0.0),
            ("1795435200.25", 1_795_435_200.25),
            ("2026-11-23T12:00:00Z", NOON),
            ("2026-11-23t12:00:00z", NOON),
            ("2026-11-23 12:00", NOON),
            ("2026-11-23T13:30:00.5+01:30", NOON + 0.5),
            (" 2026-11-23 ", NOON - DAY / 2),
            ("1969-12-31T23:59:59Z", -1.0),
            ("0001-01-01T00:00:00Z", -62_135_596_800.0),
            ("9999-12-31T23:59:59Z", LATEST),
        ],
    )
    def test_times_are_read(self, text: str, seconds: float) -> None:
        """RFC 3339, a date, or epoch seconds; UTC unless a zone is named. What is read can be written."""
        assert parse_time(text) == seconds
        assert parse_time(rfc3339(seconds)) == seconds

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "now",
            "-1",
            "1e9",
            "nan",
            "999999999999",
            "2026-13-01",
            "2026-02-30",
            "2026-W01",
            "2026-11-23T25:00",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            f"{LATEST + 1:.0f}",
            "\uff11",
        ],
    )
    def test_anything_else_is_refused_in_words(self, text: str) -> None:
        """The message says what would be right."""
        with pytest.raises(ValueError, match="must be a time such as 2026-01-31T12:00:00Z"):
            parse_time(text)


class TestExportCommand:
    def test_the_rows_of_a_range_go_to_standard_output(
        self, database: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`--from` is included, `--to` is not; how many there were is told on standard error."""
        range_ = ("--from", "2026-11-22T12:00:00Z", "--to", str(int(NOON)))
        status, out, err = run(capsys, "export", "--database", database, "--format", "jsonl", *range_)
        assert (status, [json.loads(line)["request_id"] for line in out.splitlines()]) == (0, ["r-1"])
        assert err == "rows exported: 1\n"

    def test_zero_is_a_time(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--to 0` is the beginning of 1970 and not the end of all days."""
        status, out, _ = run(capsys, "export", "--database", database, "--format", "jsonl", "--to", "0")
        assert (status, out) == (0, "")
        assert "Nothing was recorded" in run(capsys, "report", "--database", database, "--to", "0")[1]

    def test_a_file_is_written_whole(self, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The folder is made, the sums are right, and nothing unfinished is left beside the file."""
        file = tmp_path / "new" / "all.csv"
        assert run(capsys, "export", "--database", database, "--output", file)[:2] == (0, "")
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert sum(Decimal(row["total_cost"]) for row in rows) == Decimal("0.000555")
        assert [row["client"] for row in rows if row["cached"] == "true"] == ["'=bob"]
        assert list(file.parent.iterdir()) == [file]

    def test_a_device_is_written_and_not_replaced(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--output /dev/null` leaves a device there."""
        assert run(capsys, "export", "--database", database, "--output", os.devnull)[0] == 0
        assert Path(os.devnull).is_char_device()

    def test_the_settings_name_the_ledger(
        self, database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without `--database` it is the one in DATA_DIR; settings that cannot be used are told in words."""
        monkeypatch.setenv("DATA_DIR", str(database.parent))
        assert run(capsys, "export", "--format", "jsonl")[1].count("\n") == 4
        assert run(capsys, "prune", "--dry-run")[1].startswith("rows older than 400 days: ")
        monkeypatch.setenv("USAGE_RETENTION_DAYS", "soon")
        status, _, err = run(capsys, "prune")
        assert (status, "USAGE_RETENTION_DAYS" in err, "Traceback" in err) == (1, True, False)

    def test_an_interrupted_command_says_nothing(self, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C ends it with the status that shells expect."""

        def interrupted(*_arguments: object) -> Iterator[str]:
            raise KeyboardInterrupt

        monkeypatch.setattr("mtllm.billing.cli.report", interrupted)
        assert main(["report", "--database", str(database)]) == 130

    @pytest.mark.parametrize(
        ("arguments", "status", "told"),
        [
            (["export", "--from", "yesterday"], 2, "must be a time such as"),
            (["export", "--format", "xml"], 2, "invalid choice"),
            (["report", "--days", "0"], 2, "must be a whole number of days"),
            (["export", "--output", "/dev/null/x"], 1, "cost_tracker: "),
            ([], 2, "required"),
        ],
    )
    def test_a_mistake_is_one_sentence(
        self, database: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, told: str
    ) -> None:
        """Exit status 2 for what was asked wrongly, 1 for what could not be done; never a traceback."""
        got, out, err = run(capsys, *arguments, *(["--database", str(database)] if arguments else []))
        assert (got, out) == (status, "")
        assert told in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("command", ["export", "report", "prune"])
    def test_a_missing_ledger_is_named_and_not_made(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        """Asking for a ledger that is not there creates nothing."""
        status, out, err = run(capsys, command, "--database", tmp_path / "none.sqlite3")
        assert (status, out) == (1, "")
        assert err == f"cost_tracker: there is no ledger at {tmp_path}/none.sqlite3 (--database names another one)\n"
        assert list(tmp_path.iterdir()) == []

    def test_after_an_offline_try_its_ledger_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever has only tried the service is told where its record is."""
        monkeypatch.setenv("DATA_DIR", str(tmp_path))
        offline = tmp_path / "offline.sqlite3"
        offline.touch()
        status, _, err = run(capsys, "report")
        assert status == 1
        assert f"--database {offline}" in err

    def test_a_url_that_cannot_be_read_is_refused_in_a_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without showing any of it: it may hold a password."""
        status, _, err = run(capsys, "report", "--database", "postgresql://u:canary@[bad")
        assert status == 1
        assert err.startswith("cost_tracker: DATABASE_URL: ")
        assert "canary" not in err

    def test_a_file_that_is_no_ledger_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Any other file is left as it is."""
        (tmp_path / "x").write_bytes(b"not a database" * 100)
        status, out, err = run(capsys, "report", "--database", tmp_path / "x")
        assert (status, out, err.count("\n")) == (1, "", 1)

    def test_the_command_runs_from_any_folder_and_ends_when_its_reader_does(
        self, database: Path, tmp_path: Path
    ) -> None:
        """The command as written in the documentation; `| head` is no error."""
        read_end, write_end = os.pipe()
        os.close(read_end)
        command = [sys.executable, str(PROJECT / "cost_tracker.py"), "export", "--database", str(database)]
        with os.fdopen(write_end, "wb") as nobody:
            done = subprocess.run(command, cwd=tmp_path, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr, "Error" in done.stderr) == (0, False, False)
        assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("ledger")) == []


class TestReportCommand:
    def test_the_tables_add_up(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """By day, task, model and client; each table ends with the same total."""
        status, out, err = run(capsys, "report", "--database", database, "--from", "2026-11-22", "--to", "2026-11-24")
        lines = [line.split() for line in out.splitlines()]
        assert (status, err) == (0, "")
        assert [line[0] for line in lines if line[1:2] == ["requests"]] == ["day", "task", "model", "client"]
        total = ["total", "3", "1", "33.3", "%", "300", "850", "0.000370", "0.000185", "33.3", "%"]
        assert [line for line in lines if line[:1] == ["total"]] == [total] * 4
        assert ["2026-11-22", "1", "0", "0.0", "%", "150", "425", "0.000185", "0.000000", "0.0", "%"] in lines

    def test_without_a_range_it_covers_whole_days_up_to_today(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], database: Path
    ) -> None:
        """`--days 1` is today, from midnight to midnight UTC."""
        _, out, _ = run(capsys, "report", "--database", database, "--days", "1")
        start, end = (parse_time(word) for word in out.splitlines()[0].split() if word.startswith("20"))
        assert (end - start, start % DAY) == (DAY, 0)

    def test_nothing_recorded_is_said(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An empty range has no empty tables."""
        _, out, _ = run(capsys, "report", "--database", database, "--to", "2020-01-01")
        assert out.splitlines()[1:] == ["Nothing was recorded in that time."]

    def test_many_clients_are_summed_up_and_control_characters_escaped(self) -> None:
        """The dearest are listed, the others are one line; a name cannot play with the terminal."""
        ledger = open_ledger(":memory:", clock=FakeClock(NOON))
        for number in range(LINES_A_TABLE + 2):
            paid(ledger, NOON, client=f"c{number}\x1b", cost=1_000_000 + number)
        lines = list(report(ledger, NOON, NOON + 1))
        ledger.close()
        client_table = lines[next(number for number, line in enumerate(lines) if line.startswith("client")) :]
        assert client_table[2].startswith("c41\\x1b ")
        assert client_table[-3].split()[:3] == ["2", "others", "2"]
        assert "\x1b" not in "".join(lines)

    def test_calls_without_a_price_are_pointed_out(self) -> None:
        """What the total does not know is said below it."""
        ledger = open_ledger(":memory:", clock=FakeClock(NOON))
        row = ledger.open(Attempt("r", "text", "a", "m", NOON, NOON + 60, reserved=0))
        ledger.settle(row, Settlement(status="ok", model="m", charge=Charge(Amount(TokenUsage(1, 1)), None)))
        last = list(report(ledger, NOON, NOON + 1))[-1]
        ledger.close()
        assert last == "Paid calls to models without a known price, which count as $0: 1."


class TestPruneCommand:
    def test_old_rows_go_and_totals_stay(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A dry run says how many; then they are gone from the export and still in the sums."""
        database = tmp_path / "old.sqlite3"
        ledger = open_ledger(database, sync="normal")
        for number in range(3):
            paid(ledger, 1_000_000.0 + number)
        ledger.close()
        assert run(capsys, "prune", "--database", database, "--days", "9", "--dry-run") == (
            0,
            "rows older than 9 days: 3\n",
            "",
        )
        assert run(capsys, "prune", "--database", database, "--days", "9") == (0, "", "rows removed: 3\n")
        assert run(capsys, "export", "--database", database, "--format", "jsonl")[1] == ""
        ledger = open_ledger(database)
        assert (ledger.totals().requests, ledger.totals().cost) == (3, 555_000)
        ledger.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_a_terminal_sees_one_line_that_renews_itself(self) -> None:
        """At most twice a second."""
        clock, stream = FakeClock(0.0), Terminal()
        progress = Progress(stream, "exported", monotonic=clock)
        for rows in (1, 2, 3):
            progress.show(rows)
            clock.advance(0.3)
        progress.end(4)
        assert stream.getvalue() == "\rrows exported: 3\rrows exported: 4\n"

    def test_rows_are_counted_as_they_pass(self) -> None:
        """Passing them on changes nothing."""
        clock, stream = FakeClock(0.0), Terminal()
        progress = Progress(stream, "exported", monotonic=clock)
        clock.advance(1)
        assert sum(progress.count(range(1500))) == sum(range(1500))
        assert stream.getvalue() == "\rrows exported: 1,000\rrows exported: 1,500\n"

    def test_a_log_hears_of_every_hundred_thousand_rows(self) -> None:
        """A file is not filled with carriage returns."""
        stream = io.StringIO()
        progress = Progress(stream, "removed")
        for rows in (99_000, 150_000, 180_000, 200_000):
            progress.show(rows)
        progress.end(200_001)
        assert stream.getvalue() == "rows removed: 150,000\nrows removed: 200,000\nrows removed: 200,001\n"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[CostTracker]:
    tracker = CostTracker(tmp_path / "logs" / "cost_tracking.log", clock=FakeClock(NOON))
    yield tracker
    tracker.close()


class TestCostTracker:
    def test_making_one_opens_nothing(self, tmp_path: Path) -> None:
        """No file, no folder, no ledger before the first use; closing one unused is nothing to do."""
        CostTracker(tmp_path / "logs" / "x.log").close()
        assert list(tmp_path.iterdir()) == []

    def test_a_request_is_counted_priced_and_logged(self, tracker: CostTracker, tmp_path: Path) -> None:
        """Two tokens in, four out, at $0.10 and $0.40 per million; the log has the figures and not the words."""
        record = tracker.track_request("text", "203.0.113.9", "hello world", "the answer is 42")
        assert (record.input_tokens, record.output_tokens, record.cached) == (2, 5, False)
        assert (record.input_cost, record.output_cost, record.total_cost) == (2e-7, 2e-6, 2.2e-6)
        [line] = (tmp_path / "logs" / "cost_tracking.log").read_text().splitlines()
        event = json.loads(line)
        assert (event["timestamp"], event["client"], event["total_cost"]) == (
            "2026-11-23T12:00:00.000Z",
            "203.0.113.9",
            2.2e-6,
        )
        assert event["request_id"]
        assert "hello" not in line

    def test_a_cached_request_costs_nothing_and_is_saved(self, tracker: CostTracker) -> None:
        """All three costs are 0; the statistics say what the call would have cost."""
        full = tracker.track_request("text", "a", "hello world", "the answer is 42")
        hit = tracker.track_request("text", "a", "hello world", "the answer is 42", cached=True)
        assert (hit.input_cost, hit.output_cost, hit.total_cost, hit.output_tokens) == (0.0, 0.0, 0.0, 5)
        assert tracker.get_usage_stats(hours=24) == {
            "period_hours": 24,
            "total_requests": 2,
            "cached_requests": 1,
            "total_cost": full.total_cost,
            "cost_savings_from_cache": full.total_cost,
            "input_tokens": 2,
            "output_tokens": 5,
        }

    def test_statistics_have_the_same_keys_when_empty(self, tracker: CostTracker) -> None:
        """Nothing is zeros, not missing keys."""
        assert tracker.get_usage_stats() == {
            "period_hours": 24,
            "total_requests": 0,
            "cached_requests": 0,
            "total_cost": 0.0,
            "cost_savings_from_cache": 0.0,
            "input_tokens": 0,
            "output_tokens": 0,
        }

    @pytest.mark.parametrize(("hours", "rows"), [(None, 2), (0, 0), (1, 2), (0.5, 2)])
    def test_export_writes_so_many_hours(
        self, tracker: CostTracker, tmp_path: Path, hours: float | None, rows: int
    ) -> None:
        """None is all, 0 is none: zero is a number like any other."""
        tracker.track_request("text", "a", "x", "y")
        tracker.track_request("text", "a", "x", "y", cached=True)
        file = tmp_path / "new" / "records.csv"
        assert tracker.export_records(str(file), hours=hours) == rows
        with file.open(newline="") as lines:
            assert len(list(csv.DictReader(lines))) == rows

    def test_a_bare_file_name_is_relative_to_the_caller(
        self, tracker: CostTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What does not end in .csv is JSON lines."""
        monkeypatch.chdir(tmp_path)
        tracker.track_request("text", "a", "x", "y")
        assert tracker.export_records("records.jsonl") == 1
        assert json.loads((tmp_path / "records.jsonl").read_text())["task"] == "text"

    def test_a_given_ledger_keeps_the_records_and_stays_open(self, tmp_path: Path) -> None:
        """The same books as the service's, when they are handed in."""
        ledger = open_ledger(":memory:", clock=FakeClock(NOON))
        tracker = CostTracker(tmp_path / "c.log", ledger=ledger, clock=FakeClock(NOON))
        tracker.track_request("text", "a", "hello world", "the answer is 42")
        tracker.close()
        assert ledger.totals().cost == 2200
        ledger.close()

    def test_a_model_without_a_price_costs_nothing_known(self, tmp_path: Path) -> None:
        """It is recorded as unpriced."""
        prices = PriceTable([])
        ledger = open_ledger(":memory:", clock=FakeClock(NOON))
        tracker = CostTracker(tmp_path / "c.log", model="m", ledger=ledger, prices=prices, clock=FakeClock(NOON))
        assert tracker.track_request("text", "a", "x", "y").total_cost == 0
        assert ledger.totals().unpriced_requests == 1
        ledger.close()

    def test_a_trackers_log_is_the_services_own(self, tracker: CostTracker, tmp_path: Path) -> None:
        """Both write the same keys in the same order, so that one file can hold the lines of both."""
        logger = RequestLogger(tmp_path / "logs", clock=FakeClock(NOON))
        logger.record(RequestEvent("r-1", NOON, client="a", task="text", cached=False))
        logger.close()
        tracker.track_request("text", "a", "x", "y")
        lines = (tmp_path / "logs" / "cost_tracking.log").read_text().splitlines()
        services, trackers = (list(json.loads(line)) for line in lines)
        assert services == trackers

    def test_a_log_that_cannot_be_written_fails_no_request(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One warning, and the record all the same."""
        (tmp_path / "logs").write_text("a file where a folder should be")
        tracker = CostTracker(tmp_path / "logs" / "c.log", clock=FakeClock(NOON))
        assert tracker.track_request("text", "a", "x", "y").input_tokens == 1
        tracker.close()
        assert [record.getMessage() for record in caplog.records] == ["The cost log cannot be written: File exists."]

    def test_the_log_rotates(self, tracker: CostTracker, tmp_path: Path) -> None:
        """At 10 MiB the file makes room for a new one."""
        log = tmp_path / "logs" / "cost_tracking.log"
        log.parent.mkdir()
        log.write_bytes(b"x" * 10 * 1024 * 1024)
        tracker.track_request("text", "a", "x", "y")
        assert (len(log.read_text().splitlines()), (tmp_path / "logs" / "cost_tracking.log.1").exists()) == (1, True)

    def test_forgetting_to_close_leaks_nothing(self, tmp_path: Path) -> None:
        """A script that ends without `close` leaves no warning behind."""
        CostTracker(tmp_path / "c.log").track_request("text", "a", "x", "y")
        gc.collect()


def test_the_savings_benchmark_draws_its_tables() -> None:
    """Small, but whole: four tables, the conditions of the claim, and the same figures each time."""
    price = PriceTable.load(PROJECT / "prices.toml").price_of("gemini-2.5-flash-lite", date(2026, 11, 23))
    assert price is not None
    lines = list(cost_savings.tables(price, requests=100))
    assert sum(line.startswith("### ") for line in lines) == 5
    outcome = cost_savings.replay(cost_savings.Workload(zipf=1.2, requests=2000), price)
    assert 30 < outcome.saved_percent < 70
    assert outcome.hits < outcome.requests
