"""The benchmarks run, whatever their figures; and what makes tables and pictures of the figures is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import floor, growth, hits, isolation, load, memory, misses, profile_hit, servers, startup
from benchmarks.__main__ import BENCHMARKS, END, REPORT, main, rewritten, write
from benchmarks.hits import Measured, Pair
from benchmarks.load import Order, Request, Round
from benchmarks.plot import chart
from benchmarks.servers import Server, emulator, service

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    with emulator() as server:
        yield server


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    with servers.floor() as server:
        yield server


def test_the_floor_answers_a_prompt_with_about_400_bytes() -> None:
    """The floor's answer is as long as the measure says, and counts what it was asked."""
    answer = floor.create_app().test_client().post(floor.PATH, json={"prompt": "four"})
    assert 350 <= len(answer.data) <= 450
    assert answer.json is not None
    assert answer.json["usage"]["input_tokens"] == 4


class TestLoad:
    def test_numbers_and_addresses_make_each_request_its_own(self) -> None:
        """`{n}` and `{address}` are filled in, and the length is that of the body that is sent."""
        request = Request("/p", '{"prompt": "number {n}"}', {"X-Forwarded-For": "{address}"})
        head, _, body = request.encoded(66_051).partition(b"\r\n\r\n")
        assert request.varies
        assert json.loads(body) == {"prompt": "number 66051"}
        assert b"X-Forwarded-For: 10.1.2.3" in head
        assert f"Content-Length: {len(body)}".encode() in head

    def test_a_request_without_a_body_is_a_get(self) -> None:
        """The method follows from the body."""
        assert Request("/health").encoded(0).startswith(b"GET /health HTTP/1.1\r\n")
        assert not Request("/health").varies

    def test_the_own_generator_sends_as_many_as_ordered(self, bare: Server) -> None:
        """Exactly so many requests are answered, over the connections that were ordered."""
        request = Request(floor.PATH, json.dumps({"prompt": "number {n}"}))
        came = load.run(Order(bare.port, request, connections=3, requests=10))
        assert (came.answers, came.refused) == (10, 0)
        assert 0 < came.p50 <= came.p99

    def test_answers_other_than_2xx_are_counted_as_refused(self, bare: Server) -> None:
        """A 404 is an answer, and refused."""
        came = load.run(Order(bare.port, Request("/nowhere"), requests=2))
        assert (came.answers, came.refused) == (2, 2)

    def test_a_process_of_its_own_reports_the_same_round(self, bare: Server) -> None:
        """The order goes to the other process, and its round comes back."""
        came = load.offer(Order(bare.port, Request("/health"), connections=2, requests=5))
        assert (came.answers, came.refused) == (5, 0)

    @pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
    def test_wrk_is_told_method_body_and_headers(self, bare: Server) -> None:
        """wrk posts the body: the floor answers it with 200."""
        came = load.offer(Order(bare.port, hits.BARE, connections=2, seconds=1))
        assert came.answers > 0
        assert came.refused == 0

    def test_the_middle_of_rounds_is_their_median(self) -> None:
        """Rates and times are medians, counts are sums."""
        rounds = [Round(rate, rate / 10, rate, 3 * rate, 5, 1) for rate in (1.0, 9.0, 2.0)]
        assert load.middle(rounds) == Round(2.0, 0.2, 2.0, 6.0, 15, 3)


class TestServers:
    def test_the_service_answers_a_hit_with_everything_on(self, upstream: Server) -> None:
        """A first request buys, all others are hits; the process is measured while it lives, and ends."""
        with service(upstream, threads=4) as served:
            came = load.run(Order(served.port, hits.HIT, connections=2, requests=6))
            assert (came.answers, came.refused) == (6, 0)
            assert served.resident_mb() > 10
            assert 0 < served.seconds_to_healthy < 30

    def test_a_server_that_does_not_start_is_an_error(self) -> None:
        """What exits at once is reported, not waited for."""
        with pytest.raises(RuntimeError, match="did not become healthy"), Server(["-c", "raise SystemExit(3)"], 1):
            pass


class TestTables:
    def test_a_pair_compares_round_by_round(self) -> None:
        """Each round of the service is held against the floor's round beside it."""
        ours = Measured((Round(50, 1, 1, 1, 1, 0), Round(90, 1, 1, 1, 1, 0)), 1.0)
        bare = Measured((Round(100, 1, 1, 1, 1, 0), Round(100, 1, 1, 1, 1, 0)), 1.0)
        assert Pair(ours, bare).ratios == [0.5, 0.9]

    def test_growth_in_quick_form(self, tmp_path: Path) -> None:
        """Look-up, rate check and /stats are timed at each size, and drawn."""
        picture = tmp_path / "growth.svg"
        lines = list(growth.table(quick=True, picture=picture))
        names = [line.split("|")[1].split(",")[0].strip() for line in lines[1:]]
        assert names == ["hit look-up", "the same", "rate check", "the same", "/stats"]
        assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")

    def test_misses_in_quick_form(self, upstream: Server) -> None:
        """A round of misses and the bare SDK's calls bring figures."""
        with service(upstream) as served:
            assert misses._round(served, misses.MISS, 0.2).answers > 0
        assert misses._bare_sdk_ms(upstream.url, 2) > 0

    def test_isolation_in_quick_form(self) -> None:
        """Some slow calls find a place, the others are refused, and the row says how many."""
        with (
            emulator(latency_ms=200) as slow,
            service(slow, GEMINI_MAX_CONCURRENCY="8", GEMINI_QUEUE_SECONDS="0") as served,
        ):
            row = isolation._row("python app.py", "health", served, isolation.HEALTH, rounds=1, seconds=0.3)
        assert re.search(r"\| [1-9]\d* of 64 \|$", row)

    def test_memory_in_quick_form(self) -> None:
        """Memory is read after each stage."""
        assert len(list(startup._memory((20, 40)))) == 2
        assert len("\n".join(memory.table(answers=20, rounds=1, beside=None, later=0.1)).split("\n| ")) == 4

    def test_the_profile_names_the_parts_of_a_hit(self) -> None:
        """The floor, and the task and the headers among the parts."""
        report = "\n".join(profile_hit.lines(0.3, 5))
        assert "mtllm/tasks.py" in report
        assert "mtllm/http/headers.py" in report
        assert "bare Flask, in process" in report


class TestReport:
    def test_the_report_has_a_place_for_every_table(self) -> None:
        """No benchmark is without its markers."""
        report = REPORT.read_text(encoding="utf-8")
        for name in BENCHMARKS:
            assert rewritten(report, name, []) != ""

    def test_a_table_replaces_the_former_one_and_nothing_else(self, tmp_path: Path) -> None:
        """Only what stands between the markers changes."""
        report = tmp_path / "report.md"
        report.write_text(f"before\n<!-- table: a -->\nold\n{END}\nbetween\n<!-- table: b -->\nkept\n{END}\n")
        write("a", ["new", "rows"], report)
        expected = f"before\n<!-- table: a -->\nnew\nrows\n{END}\nbetween\n<!-- table: b -->\nkept\n{END}\n"
        assert report.read_text() == expected

    def test_a_report_without_the_place_is_an_error(self) -> None:
        """A table that nobody would see is not written silently."""
        with pytest.raises(ValueError, match="no place for the table hits"):
            rewritten("nothing here", "hits", [])

    @pytest.mark.parametrize("arguments", [["--quick", "--write"], ["nonsense"]])
    def test_orders_that_make_no_sense_are_refused(self, arguments: list[str]) -> None:
        """Quick figures never reach the report, and a misspelt name is told."""
        with pytest.raises(SystemExit, match="2"):
            main(arguments)

    def test_the_machine_is_described(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The command prints the table under its name."""
        main(["machine", "--quick"])
        assert "## machine" in capsys.readouterr().out


def test_a_chart_lays_points_out_on_logarithmic_axes() -> None:
    """Equal ratios are equal distances, and names are escaped."""
    picture = ElementTree.fromstring(chart("t", "x", "y", {"a < b": [(100, 1), (1000, 10), (10_000, 100)]}))
    line = picture.find("{http://www.w3.org/2000/svg}polyline")
    assert line is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert "a < b" in "".join(picture.itertext())
