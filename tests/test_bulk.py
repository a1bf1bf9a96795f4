"""`bulk.py`: rows in, the same rows with answers out, whatever happens in between."""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import Api
from mtllm.bulk.command import main
from mtllm.bulk.journal import RunJournal
from mtllm.bulk.run import fill
from mtllm.bulk.tables import COLUMNS, Outcome, TableError, open_table
from mtllm.client import Reply, TokenCount, Unreachable
from mtllm.project import PROJECT
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import PATIENCE, eventually, free_port, serving

DONE = Outcome("fine", "model", 1_500, None)


@pytest.fixture
def url(make_app: Callable[..., Api]) -> Iterator[str]:
    """The address of a service without limits."""
    with serving(make_app(RATE_LIMITS="")) as port:
        yield f"http://127.0.0.1:{port}"


def read(path: Path) -> list[list[str]]:
    """What Python's csv finds in a file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, strict=True))


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    """The command's arguments for the task text."""
    return [str(source), "--task", "text", "--column", "text", "--output", str(output), *more]


def table_of(folder: Path, count: int) -> Path:
    """A file of so many different texts."""
    path = folder / "in.csv"
    path.write_text("id,text\n" + "".join(f"a{number},text {number}\n" for number in range(count)))
    return path


class Asked:
    """Answers each text and remembers what was asked; from call number `dies` on it is gone."""

    def __init__(self, dies: float = float("inf")) -> None:
        self.texts: list[str] = []
        self._dies = dies

    def __call__(self, text: str) -> Reply:
        if len(self.texts) >= self._dies:
            raise Unreachable("gone")
        self.texts.append(text)
        return Reply(text.upper(), "m", TokenCount(1, 1, "gemini"), 10, False, "r", "stop")


def run(source: Path, output: Path, ask: Callable[[str], Reply], job: str = "job") -> None:
    """One run without a command line."""
    with RunJournal(output.with_suffix(".journal"), job) as journal:
        fill(
            open_table(source, "text"),
            ask,
            output,
            journal,
            concurrency=3,
            limit=None,
            seen=lambda _: None,
            stop=lambda: None,
        )


def test_rows_come_back_in_order_with_answers(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell is kept, each row has its answer and cost, equal texts are bought once, and a last line sums up."""
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('id;text\r\n007;"a;b"\r\n1,50;"two\r\nlines"\r\n', encoding="utf-8-sig", newline="")
    assert main(arguments(source, output, "--url", url)) == 0
    head, *rows = read(output)
    assert head == ["id", "text", *COLUMNS]
    assert [row[:2] for row in rows] == [["007", "a;b"], ["1,50", "two\r\nlines"]]
    assert all(row[2] and row[3] and float(row[4]) > 0 and row[5] == "" for row in rows)
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 rows in ")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv"]


def test_a_row_that_is_refused_does_not_end_the_run(url: str, tmp_path: Path) -> None:
    """Its error stands in its row, `null` in every other."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"n": 1.50, "text": "one"}\n\n{"text": "", "n": 1e5}\n')
    assert main(arguments(source, output, "--url", url)) == 0
    lines = output.read_bytes().split(b"\n")
    assert lines[0].startswith(b'{"n": 1.50, "text": "one", "answer": ')
    first, second = (json.loads(line) for line in lines[:2])
    assert (first["error"], second["answer"], second["cost"]) == (None, None, "0.000000000")
    assert second["error"].startswith("invalid_request: ")


def test_a_dead_service_loses_nothing(tmp_path: Path) -> None:
    """What was bought before it died is not bought again."""
    source, output, first, second = table_of(tmp_path, 20), tmp_path / "out.csv", Asked(dies=9), Asked()
    with pytest.raises(Unreachable):
        run(source, output, first)
    assert not output.exists()
    run(source, output, second)
    assert sorted(first.texts + second.texts) == sorted(f"text {number}" for number in range(20))
    assert [row[2] for row in read(output)[1:]] == [f"TEXT {number}" for number in range(20)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_journal_that_ends_in_mid_line_is_cut_back(tmp_path: Path, cut: int) -> None:
    """After a power cut only whole lines count; the rows after them are asked for again."""
    source, output = table_of(tmp_path, 10), tmp_path / "out.csv"
    with pytest.raises(Unreachable):
        run(source, output, Asked(dies=5))
    journal = output.with_suffix(".journal")
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = Asked()
    run(source, output, again)
    assert len(again.texts) == 6
    assert len(read(output)) == 11


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stop_and_the_same_command_again(
    url: str, tmp_path: Path, gemini: ScriptedGemini, number: signal.Signals, status: int
) -> None:
    """The second run goes on; Gemini is asked once for each text, and the output is that of a run in peace."""
    source, output = table_of(tmp_path, 300), tmp_path / "out.csv"
    command = [sys.executable, str(PROJECT / "bulk.py"), *arguments(source, output, "--url", url)]
    journal = tmp_path / "out.csv.journal"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 20)
        process.send_signal(number)
        assert process.wait(PATIENCE) == status
    assert not output.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert " 0 from an earlier run" not in done.stdout
    assert [row[0] for row in read(output)[1:]] == [f"a{number}" for number in range(300)]
    assert len(gemini.calls) == 300


def test_another_job_or_a_changed_input_is_told(tmp_path: Path) -> None:
    """A journal is never mixed with what it does not belong to."""
    source, output = table_of(tmp_path, 10), tmp_path / "out.csv"
    with pytest.raises(Unreachable):
        run(source, output, Asked(dies=5))
    with pytest.raises(Exception, match="another task"):
        run(source, output, Asked(), job="other")
    source.write_text(source.read_text().replace("text 0", "changed"))
    with pytest.raises(Exception, match="Row 1 of the input has changed"):
        run(source, output, Asked())


def test_a_service_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with status 1 and says that it can go on."""
    url = f"http://127.0.0.1:{free_port()}"
    assert main(arguments(table_of(tmp_path, 3), tmp_path / "o.csv", "--url", url, "--patience", "0")) == 1
    assert "goes on where this one stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"text,b\nx\n", "Line 2 has 1 cells"),
        (b"text,b\n\xe4,1\n", "--encoding"),
        (b"a,b\n1,2\n", "one column 'text'"),
        (b"text,cost\n1,2\n", "'cost' already"),
        (b'text,b\n"x,1\n', "not CSV"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    """The message names the line and what to do."""
    path = tmp_path / "in.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=told):
        list(open_table(path, "text").rows())


def test_an_answer_is_no_formula(tmp_path: Path) -> None:
    """A spreadsheet shows an answer that begins with `=`, and the input's cells stay as they are."""
    path = tmp_path / "in.csv"
    path.write_text("text\n=1+1\n")
    table = open_table(path, "text")
    (row,) = table.rows()
    assert table.line(row, Outcome("=1+1", "m", 1_500, None)) == b"=1+1,'=1+1,m,0.000001500,\r\n"


def test_blank_lines_are_rows_only_in_one_column(tmp_path: Path) -> None:
    """A spreadsheet saves an empty cell of its only column as a blank line."""
    path = tmp_path / "in.csv"
    path.write_text("text\na\n\nb\n")
    assert [row.text for row in open_table(path, "text").rows()] == ["a", "", "b"]
    path.write_text("text,x\na,1\n\nb,2\n")
    assert [row.text for row in open_table(path, "text").rows()] == ["a", "b"]


CELLS = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=5),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_dialect_goes_through(rows: Sequence[tuple[str, str]], delimiter: str, quoting: int, encoding: str) -> None:
    """Cells come out as they went in, from every separator, quoting and encoding that is read."""
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter, quoting=quoting).writerows([("id", "text"), *rows])  # type: ignore[arg-type]  # the enumeration is newer than 3.11
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.csv", Path(folder) / "out.csv"
        source.write_bytes(written.getvalue().encode(encoding))
        table = open_table(source, "text")
        output.write_bytes(table.head() + b"".join(table.line(row, DONE) for row in table.rows()))
        assert [tuple(row[:2]) for row in read(output)[1:]] == list(rows)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Only the rows in flight are held: far less than what is written."""

    def ask(text: str) -> Reply:
        return Reply("a" * 2_000, "m", TokenCount(1, 1, "gemini"), 10, False, "r", "stop")

    output = tmp_path / "out.csv"
    source = table_of(tmp_path, 4_000)
    tracemalloc.start()
    try:
        run(source, output, ask)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < output.stat().st_size / 8


def test_a_full_disk_loses_nothing(url: str, tmp_path: Path, gemini: ScriptedGemini) -> None:
    """The run ends with a reason; with room again the same command goes on and buys nothing twice."""
    source, output = table_of(tmp_path, 60), tmp_path / "out.csv"
    given = arguments(source, output, "--url", url)
    small = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    program = f"{small}from mtllm.bulk.command import main; sys.exit(main({given!r}))"
    full = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert full.returncode == 1, full.stderr
    assert "goes on where this one stopped" in full.stderr
    assert main(given) == 0
    assert len(read(output)) == 61
    assert len(gemini.calls) == 60


def test_the_commands_of_the_page_work(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/bulk.md shows is run as it stands, against another address."""
    page = (PROJECT / "docs" / "bulk.md").read_text()
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("python bulk.py")]
    assert commands
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("id,text\na1,one\n")
    Path("prompts.jsonl").write_text('{"prompt": "one"}\n')
    for command in commands:
        status = main([*command, "--url", url])
        assert status == 0, capsys.readouterr().err
