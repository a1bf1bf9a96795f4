"""The alert rules, evaluated by Prometheus' own promtool on what the real service showed during provoked outages.

The service runs on a clock that moves only when told. It is scraped every 15 seconds of that clock while something goes
wrong at the wire or on the disk; what was scraped becomes the series of a `promtool test rules` file.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from mtllm.domain.errors import LedgerUnavailable
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import CUT, ScriptedGemini, cut, offline, status, stream, text
from tests.support.serving import eventually

ALERTS = PROJECT / "docs" / "monitoring" / "alerts.yml"
TEXT = "/api/v1/generate/text"
SCRAPE = 15
MINUTE = 60
HOUR = 3600
ASKED = set(re.findall(r"\bmtllm_\w+", ALERTS.read_text()))
"""The metrics that the rules use."""

SAMPLE = re.compile(r"^(mtllm_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)

MakeApp = Callable[..., Api]


class Watch:
    """One service that is asked, scraped and watched, `every` so many seconds of its clock."""

    def __init__(self, app: Api, clock: FakeClock, every: int = SCRAPE) -> None:
        self.app = app
        self.client: FlaskClient = app.test_client()
        self.every = every
        self._clock = clock
        self._scrapes = 0
        self._series: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self._number = 0

    @property
    def now(self) -> int:
        """Seconds since the watch began."""
        return self._scrapes * self.every

    def pass_time(self, seconds: int, *, pause: int | None = None, ask: Callable[[str], Any] | None = None) -> None:
        """Let so much time pass, with a request after each `pause`, if any, and all scrapes."""
        end = self.now + seconds
        asked_at = self.now
        while self.now < end:
            for _ in range(self.every // pause if pause and pause < self.every else 0):
                self._ask(ask)
            if pause and pause >= self.every and self.now - asked_at >= pause:
                asked_at = self.now
                self._ask(ask)
            self._scrape()

    def be_gone(self, seconds: int) -> None:
        """Let so much time pass in which nobody answers a scrape."""
        for _ in range(seconds // self.every):
            self._clock.advance(self.every)
            self._series["up", ""][self._scrapes] = 0.0
            self._scrapes += 1

    def _ask(self, ask: Callable[[str], Any] | None) -> None:
        self._number += 1
        (ask or self.generate)(f"prompt {self._number}")

    def generate(self, prompt: str) -> int:
        """A text's status."""
        return self.client.post(TEXT, json={"prompt": prompt}).status_code

    def _scrape(self) -> None:
        self._clock.advance(self.every)
        if self.app.service.ledger.health().writable:
            with suppress(LedgerUnavailable):
                self.app.service.ledger.flush()  # its writer lives in real time, which has hardly passed
        page = self.client.get("/metrics").get_data(as_text=True)
        self._series["up", ""][self._scrapes] = 1.0
        for name, labels, value in SAMPLE.findall(page):
            if name in ASKED:
                self._series[name, labels and f", {labels}"][self._scrapes] = float(value)
        self.client.get("/health")
        self._scrapes += 1

    def series(self) -> list[dict[str, str]]:
        """What was scraped, as promtool wants it; `_` where a scrape did not have it."""
        return [
            {
                "series": f'{name}{{job="mtllm", instance="mtllm:5000"{labels}}}',
                "values": " ".join(_text(values.get(number)) for number in range(self._scrapes)),
            }
            for (name, labels), values in self._series.items()
        ]


def _text(value: float | None) -> str:
    return "_" if value is None else f"{value:.12g}"


class Moody(ScriptedGemini):
    """A Gemini that answers each call as its `mood` is."""

    def __init__(self) -> None:
        self.mood = offline()
        super().__init__(default=lambda gemini, call: self.mood(gemini, call))


@pytest.fixture
def gemini() -> Iterator[Moody]:
    """Well at first."""
    with Moody() as moody:
        yield moody


@pytest.fixture
def watch(make_app: MakeApp, clock: FakeClock) -> Callable[..., Watch]:
    """Makes a service and watches it. Each request calls Gemini once, and no client has a limit."""

    def begin(every: int = SCRAPE, **settings: str) -> Watch:
        return Watch(make_app(gemini_max_attempts="1", rate_limits="", **settings), clock, every)

    return begin


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., None]:
    """Asks promtool whether of all alerts exactly the `expected` fire, each from a time to a time.

    An alert (`name=(begun, within, over, gone)`) is silent until `begun`, fires without a pause from `within` seconds
    later until `over`, and is silent from `gone` seconds after that. Times are looked at scrape by scrape.
    """
    yaml = pytest.importorskip("yaml")
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")

    def asked(watched: Watch, **expected: tuple[int, int, int, int]) -> None:
        names = [rule["alert"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]]
        assert set(expected) <= set(names)
        tests = [_verdict(expected, second) for second in range(0, watched.now, watched.every)]
        whole = {
            "rule_files": [str(ALERTS)],
            "evaluation_interval": f"{watched.every}s",
            "tests": [
                {"interval": f"{watched.every}s", "input_series": watched.series(), "promql_expr_test": tests},
            ],
        }
        file = tmp_path / "alerts_test.yml"
        file.write_text(yaml.safe_dump(whole, width=1_000_000))
        said = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        if said.returncode != 0:
            pytest.fail(said.stderr[:1500], pytrace=False)

    return asked


def _verdict(expected: dict[str, tuple[int, int, int, int]], second: int) -> dict[str, Any]:
    """What promtool has to find at one time, those alerts left out that may or may not fire by then."""
    times = expected.items()
    firing = [name for name, (begun, within, over, _) in times if begun + within <= second < over]
    open_ = [name for name, (begun, _, over, gone) in times if begun < second < over + gone and name not in firing]
    return {
        "expr": f'count by (alertname) (ALERTS{{alertstate="firing", alertname!~"{"|".join(open_)}"}})',
        "eval_time": f"{second}s",
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
    }


# Gemini fails


@pytest.mark.parametrize("fault", [status(503), status(500), status(504), cut()], ids=["503", "500", "504", "cut off"])
def test_an_outage_of_gemini_pages_once(watch: Any, judge: Any, gemini: Moody, fault: Any) -> None:
    """With steady traffic: the breaker's alert within 2 minutes, the errors' within 10."""
    watched = watch()
    watched.pass_time(10 * MINUTE, pause=5)
    gemini.mood, begun = fault, watched.now
    watched.pass_time(20 * MINUTE, pause=5)
    gemini.mood, over = offline(), watched.now
    watched.pass_time(20 * MINUTE, pause=5)
    judge(
        watched,
        MtllmBreakerOpen=(begun, 2 * MINUTE, over, MINUTE),
        MtllmErrors=(begun, 10 * MINUTE, over, 15 * MINUTE),
    )


def test_an_outage_that_few_meet_pages_too(watch: Any, judge: Any, gemini: Moody) -> None:
    """One request every four minutes, from the very first on, beside all the scrapes and health checks."""
    watched = watch()
    gemini.mood = status(503)
    watched.pass_time(60 * MINUTE, pause=4 * MINUTE)
    gemini.mood, over = offline(), watched.now
    watched.pass_time(40 * MINUTE, pause=4 * MINUTE)
    judge(
        watched,
        MtllmErrors=(4 * MINUTE, 16 * MINUTE, over, 15 * MINUTE),
        MtllmBreakerOpen=(20 * MINUTE, 2 * MINUTE, over, 5 * MINUTE),
    )


def test_two_failures_in_slow_traffic_page_nobody(watch: Any, judge: Any, gemini: Moody) -> None:
    """That would be half of the requests of ten minutes, and nothing that a person could do."""
    watched = watch()
    watched.pass_time(20 * MINUTE, pause=4 * MINUTE)
    gemini.mood = status(500)
    watched.pass_time(8 * MINUTE, pause=4 * MINUTE)
    gemini.mood = offline()
    watched.pass_time(20 * MINUTE, pause=4 * MINUTE)
    judge(watched)


def test_streams_that_break_off_page_as_errors(watch: Any, judge: Any, gemini: Moody) -> None:
    """Their status was 200. Each second one is well, so that the breaker stays closed."""
    watched = watch()
    turns = iter(range(100_000))
    broken, whole = stream("half ", CUT), stream("half ", "whole")

    def ask(prompt: str) -> None:
        with watched.client.post(TEXT, json={"prompt": prompt, "stream": True}) as answer:
            answer.get_data()

    watched.pass_time(10 * MINUTE, pause=15, ask=ask)
    gemini.mood = lambda gemini, call: (broken if next(turns) % 2 else whole)(gemini, call)
    begun = watched.now
    watched.pass_time(20 * MINUTE, pause=15, ask=ask)
    gemini.mood, over = whole, watched.now
    watched.pass_time(20 * MINUTE, pause=15, ask=ask)
    judge(watched, MtllmErrors=(begun, 10 * MINUTE, over, 16 * MINUTE))


def test_a_day_without_faults_is_silent(watch: Any, judge: Any) -> None:
    """Callers' own mistakes, hits and pauses alert nobody."""
    watched = watch(daily_budget_usd="100")

    def ask(prompt: str) -> None:
        watched.generate("the same")
        watched.client.post(TEXT, json={"wrong": prompt})

    watched.pass_time(20 * MINUTE, pause=5, ask=ask)
    watched.pass_time(20 * MINUTE)
    watched.pass_time(20 * MINUTE, pause=4 * MINUTE, ask=ask)
    judge(watched)


# The service is gone, full, or cannot write


def test_a_service_that_is_gone_pages_once(watch: Any, judge: Any) -> None:
    """Within 3 minutes."""
    watched = watch()
    watched.pass_time(5 * MINUTE)
    begun = watched.now
    watched.be_gone(10 * MINUTE)
    over = watched.now
    watched.pass_time(5 * MINUTE)
    judge(watched, MtllmDown=(begun, 3 * MINUTE, over, MINUTE))


def test_a_ledger_that_cannot_be_written_pages_once(
    watch: Any, judge: Any, environment: dict[str, str], gemini: Moody
) -> None:
    """Within 2 minutes of the first refusal; here another program has it. Nothing is asked of Gemini meanwhile."""
    watched = watch()
    watched.pass_time(5 * MINUTE, pause=MINUTE)
    begun, calls = watched.now, gemini.count
    with closing(sqlite3.connect(Path(environment["DATA_DIR"]) / "ledger.sqlite3", timeout=20)) as other:
        other.execute("BEGIN EXCLUSIVE")
        watched.pass_time(6 * MINUTE, pause=2 * MINUTE)  # each waits for the other program, in real time
        assert gemini.count == calls
    over = watched.now
    watched.pass_time(20 * MINUTE, pause=MINUTE)
    judge(
        watched,
        MtllmLedgerNotWritable=(begun, 4 * MINUTE, over, 2 * MINUTE),
        MtllmErrors=(begun, 10 * MINUTE, over, 15 * MINUTE),
    )


def test_logs_that_cannot_be_written_are_told_at_once(watch: Any, judge: Any, environment: dict[str, str]) -> None:
    """Here their folder has become a file; it is told for ten minutes after the last loss."""
    watched = watch()
    watched.pass_time(5 * MINUTE, pause=15)
    assert watched.app.service.logger.flush()  # what was asked before is no loss
    folder, begun = Path(environment["LOG_DIR"]), watched.now
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("in the way")
    watched.pass_time(10 * MINUTE, pause=15, ask=lambda prompt: asked_and_lost(watched, prompt))
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    over = watched.now
    watched.pass_time(15 * MINUTE, pause=15)
    judge(watched, MtllmLogLoss=(begun, MINUTE, over, 11 * MINUTE))


def asked_and_lost(watched: Watch, prompt: str) -> None:
    """Ask, and wait until the writer of the logs has tried."""
    before = watched.app.service.logger.health().failed_writes
    watched.generate(prompt)
    assert eventually(lambda: watched.app.service.logger.health().failed_writes > before)


def test_a_full_house_is_told_once(watch: Any, judge: Any) -> None:
    """Within 10 minutes, where requests are refused all the time; a burst of a minute tells nobody."""
    watched = watch(gemini_queue_seconds="0")
    admission = watched.app.service.admission
    for minutes in (1, 15):
        watched.pass_time(20 * MINUTE, pause=15)
        for _ in range(admission.state().slots):
            admission.enter(0.0)
        begun = watched.now
        watched.pass_time(minutes * MINUTE, pause=15)
        for _ in range(admission.state().slots):
            admission.leave()
    over = watched.now
    watched.pass_time(20 * MINUTE, pause=15)
    judge(watched, MtllmLoadShed=(begun, 10 * MINUTE, over, 15 * MINUTE))


# Money and cache


def test_calls_without_a_price_are_told_at_once(watch: Any, judge: Any) -> None:
    """Also in the first hour of a service; for an hour after the last one."""
    watched = watch(gemini_model="gemini-nobody-knows")
    watched.pass_time(5 * MINUTE)
    begun = watched.now
    watched.pass_time(10 * MINUTE, pause=MINUTE)
    over = watched.now
    watched.pass_time(70 * MINUTE)
    judge(watched, MtllmUnpricedModel=(begun, 2 * MINUTE, over, 61 * MINUTE))


def test_a_budget_that_is_nearly_used_is_told_at_once(watch: Any, judge: Any, gemini: Moody) -> None:
    """Once four fifths are spent; it stays so for the day."""
    watched = watch(daily_budget_usd="0.0003")
    gemini.mood = text("word " * 40)

    def ask(prompt: str) -> None:
        watched.client.post(TEXT, json={"prompt": prompt, "max_output_tokens": 50})

    watched.pass_time(MINUTE, pause=SCRAPE, ask=ask)
    while budget_used(watched) < 0.8:
        begun = watched.now
        ask(f"then {begun}")
        watched.pass_time(SCRAPE)
        assert watched.now < HOUR
    watched.pass_time(10 * MINUTE)
    judge(watched, MtllmBudgetNearlyUsed=(begun - SCRAPE, SCRAPE, watched.now, 0))


def budget_used(watched: Watch) -> float:
    """Which part of the budget is spent or reserved."""
    page = watched.client.get("/metrics").get_data(as_text=True)
    found = dict(re.findall(r"^mtllm_budget_(\w+)_usd (\S+)$", page, re.MULTILINE))
    return (float(found["spent"]) + float(found["reserved"])) / float(found["limit"])


def test_a_cache_that_answers_less_than_yesterday_is_told_within_two_hours(watch: Any, judge: Any) -> None:
    """Its callers ask nothing twice any more. A scrape every five minutes, for a day and a half."""
    watched = watch(every=5 * MINUTE)
    watched.pass_time(26 * HOUR, pause=30, ask=lambda _: watched.generate("the same"))
    begun = watched.now
    watched.pass_time(4 * HOUR, pause=30)
    over = watched.now
    watched.pass_time(3 * HOUR, pause=30, ask=lambda _: watched.generate("the same"))
    judge(watched, MtllmHitRatioDropped=(begun, 2 * HOUR, over, HOUR))
