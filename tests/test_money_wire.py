"""Money at the wire: what requests cost, what they may cost, and what becomes of it when the disk is full."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import resource
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app import Api
from mtllm.billing.cli import main as cost_tracker
from mtllm.billing.export import COLUMNS
from mtllm.domain.money import format_usd
from mtllm.domain.times import rfc3339
from mtllm.emulator import EmulatedReply, GeminiCall, answered, candidate
from mtllm.ledger.ledger import Attempt, Hit, open_ledger
from tests.support.fakes import FakeClock
from tests.support.ledgers import until
from tests.support.scripted_gemini import (
    ScriptedGemini,
    Step,
    blocked_prompt,
    cut,
    finished,
    no_usage,
    status,
    text,
    usage,
)

MakeApp = Callable[..., Api]

TEXT = "/api/v1/generate/text"
CLASSIFY = "/api/v1/classify/text"
EXPORT = "/api/v1/usage/export?format=jsonl"
ADMIN = {"X-API-Key": "admin-secret"}
DAY = 86_400
TOGETHER = 50


@pytest.fixture
def make_app(make_app: MakeApp) -> MakeApp:
    """Applications without rate limits, with an admin, who may export."""
    given = {"rate_limits": "", "admin_api_key": "admin-secret", "ledger_sync": "normal"}
    return lambda **settings: make_app(**{**given, **settings})


@pytest.fixture
def app(make_app: MakeApp) -> Api:
    return make_app()


def ask(app: Api, prompt: str = "x", **more: Any) -> TestResponse:
    """One text request."""
    headers = more.pop("headers", {})
    return app.test_client().post(TEXT, json={"prompt": prompt, **more}, headers=headers)


def nano(answer: TestResponse) -> int:
    return int(answer.headers["X-Cost-Nanodollars"])


def rows_of(app: Api) -> list[dict[str, Any]]:
    """The export."""
    answer = app.test_client().get(EXPORT, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return [json.loads(line, parse_float=str) for line in answer.text.splitlines()]


def stats_of(app: Api) -> Any:
    return app.test_client().get("/stats", headers=ADMIN).json


def by(model: str) -> Step:
    """An answer of another model than the one that was asked: 10 tokens in, 20 out at most."""

    def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        used = {"promptTokenCount": 10, "candidatesTokenCount": 20, "totalTokenCount": 30}
        payload = candidate(call, "fine", finish_reason="STOP") | {"modelVersion": model, "usageMetadata": used}
        return answered(call, [payload])

    return step


def prices_file(folder: Path, *entries: tuple[str, str, str, str]) -> str:
    """A price table of (model, from, input and cached input, output)."""
    lines = [
        f'[[price]]\nmodel = "{model}"\nfrom = {since}\ninput = {rate}\ncached_input = {rate}\noutput = {output}\n'
        for model, since, rate, output in entries
    ]
    file = folder / "prices.toml"
    file.write_text("\n".join(lines))
    return str(file)


def to_midnight(app: Api, clock: FakeClock, seconds_before: float) -> None:
    """Move the clock to so many seconds before the next UTC midnight."""
    clock.advance((DAY - app.clock() % DAY - seconds_before) % DAY)  # never back, late in the evening too


# Prices


def test_thinking_and_cached_input_are_paid_for_at_their_own_rates(app: Api, gemini: ScriptedGemini) -> None:
    """Output is what Gemini's total leaves after the prompt; cached input costs a tenth of the default model's rate."""
    gemini.answers(usage("fine", thoughts=7, cached=40))
    answer, used = ask(app), gemini.delivered
    assert nano(answer) == (used.prompt - 40) * 100 + 40 * 10 + (used.candidates + 7) * 400
    [row] = rows_of(app)
    assert (row["cached_input_tokens"], row["output_tokens"]) == (40, used.candidates + 7)
    assert int(answer.headers["X-Tokens-Output"]) == row["output_tokens"]


@pytest.mark.parametrize(
    ("step", "code", "tokens_out"),
    [
        (blocked_prompt(), 422, 0),
        (finished("SAFETY", thoughts=3), 422, 3),
        (finished("MAX_TOKENS", thoughts=9), 422, 9),
    ],
    ids=["blocked prompt", "blocked answer", "limit eaten by thinking"],
)
def test_a_refusal_that_gemini_bills_is_paid_for(
    app: Api, gemini: ScriptedGemini, step: Step, code: int, tokens_out: int
) -> None:
    """In the header, in the ledger, in the totals."""
    gemini.answers(step)
    answer = ask(app)
    assert (answer.status_code, int(answer.headers["X-Tokens-Output"])) == (code, tokens_out)
    assert nano(answer) == gemini.delivered.prompt * 100 + tokens_out * 400 > 0
    assert [row["status"] for row in rows_of(app)] == [answer.json["code"]]  # type: ignore[index]
    assert stats_of(app)["overall_stats"]["total_cost_all_time"] * 10**9 == pytest.approx(nano(answer))


def test_an_answer_outside_the_list_and_its_repair_are_both_paid_for(app: Api, gemini: ScriptedGemini) -> None:
    """One header sums what two rows have."""
    gemini.answers(text("something else"), text("b"))
    answer = app.test_client().post(CLASSIFY, json={"text": "x", "categories": ["a", "b"]})
    rows = rows_of(app)
    assert [(row["status"], row["attempt"]) for row in rows] == [("upstream_invalid_answer", 1), ("ok", 2)]
    assert sum(float(row["total_cost"]) for row in rows) * 10**9 == pytest.approx(nano(answer))
    assert nano(answer) == gemini.delivered.prompt * 100 + gemini.delivered.candidates * 400


def test_a_stale_answer_shows_what_the_failed_attempts_cost(
    make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock
) -> None:
    """The answer itself is free; what Gemini billed for its unusable ones is in the header as it is in the ledger."""
    app = make_app(response_cache_stale_seconds="3600", response_cache_ttl_seconds="10")
    body = {"text": "x", "categories": ["a", "b"]}
    gemini.answers(text("a"), text("neither"), text("nor"))
    first = app.test_client().post(CLASSIFY, json=body)
    clock.advance(11)
    stale = app.test_client().post(CLASSIFY, json=body)
    assert (stale.status_code, stale.headers["X-Cached"]) == (200, "true")
    assert nano(stale) > 0
    spent = gemini.delivered.prompt * 100 + gemini.delivered.candidates * 400
    assert nano(first) + nano(stale) == spent
    assert sum(float(row["total_cost"]) for row in rows_of(app)) * 10**9 == pytest.approx(spent)


def test_without_gemini_s_counts_the_cost_is_marked_as_estimated(app: Api, gemini: ScriptedGemini) -> None:
    """In the body, in the ledger; and never more than the call was allowed to generate."""
    gemini.answers(no_usage(), no_usage("words " * 500))
    short, long = ask(app, "short").json, ask(app, "long", max_output_tokens=10)
    assert short is not None
    assert (short["estimated"], short["usage"]["source"]) == (True, "tiktoken")
    assert long.headers["X-Tokens-Output"] == "10"
    assert [row["estimated"] for row in rows_of(app)] == [True, True]


def test_the_model_that_answered_is_the_one_that_is_paid(app: Api, gemini: ScriptedGemini) -> None:
    """Not the one that was asked; by its exact name or the longest that it continues."""
    gemini.answers(by("gemini-3.1-pro-preview"), by("gemini-2.5-flash-lite-preview-09-2025"))
    assert [nano(ask(app, prompt)) for prompt in "ab"] == [10 * 2000 + 20 * 12_000, 10 * 100 + 20 * 400]
    assert [(row["model"], row["output_price"]) for row in rows_of(app)] == [
        ("gemini-3.1-pro-preview", "12.000000000"),
        ("gemini-2.5-flash-lite-preview-09-2025", "0.400000000"),
    ]


def test_a_model_without_a_price_is_marked_everywhere(
    app: Api, gemini: ScriptedGemini, make_app: MakeApp, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the body, the ledger and the statistics; at the start when it is the configured one."""
    gemini.answers(by("gemini-99"))
    answer = ask(app).json
    assert answer is not None
    assert answer["unpriced"] is True
    [row] = rows_of(app)
    assert (row["unpriced"], row["total_cost"], row["output_price"]) == (True, "0.000000000", None)
    assert stats_of(app)["overall_stats"]["unpriced_requests_all_time"] == 1
    assert "gemini-99" not in capsys.readouterr().err
    badly_set = make_app(gemini_model="gemini-99")
    assert "gemini-99" in capsys.readouterr().err
    badly_set.service.logger.flush()
    assert "unpriced_model" in (badly_set.settings.log_dir / "api_errors.log").read_text()


def test_both_price_settings_hold_for_every_model(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Known or not, cached input included."""
    app = make_app(input_price_per_million="2", output_price_per_million="3", gemini_model="gemini-99")
    gemini.answers(usage("fine", cached=40))
    assert nano(ask(app)) == gemini.delivered.prompt * 2000 + gemini.delivered.candidates * 3000
    assert stats_of(app)["overall_stats"]["unpriced_requests_all_time"] == 0


def test_a_new_price_holds_from_its_midnight_for_calls_that_begin_then(
    app: Api, make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock, tmp_path: Path
) -> None:
    """A call that began before and was answered after costs what its reservation was made for."""
    model, tomorrow = "gemini-2.5-flash-lite", rfc3339(app.clock() + DAY)[:10]
    prices = prices_file(tmp_path, (model, "2000-01-01", "1", "1"), (model, tomorrow, "5", "5"))
    app = make_app(prices_file=prices, gemini_timeout_seconds="60")
    gemini.answers(*[text("fine")] * 3)
    to_midnight(app, clock, 1)
    before = ask(app, "before")
    gemini.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(ask, app, "middle")
        assert gemini.wait_for_calls(2)
        clock.advance(2)
        gemini.gate.set()
        middle = begun.result()
    after = ask(app, "after")
    tokens = [int(answer.headers["X-Tokens-Input"]) + 1 for answer in (before, middle, after)]
    assert [nano(answer) for answer in (before, middle, after)] == [
        tokens[0] * 1000,
        tokens[1] * 1000,
        tokens[2] * 5000,
    ]


def test_a_changed_table_rewrites_nothing(make_app: MakeApp, tmp_path: Path) -> None:
    """What was recorded keeps its cost and its price after a restart with other prices."""
    model = "gemini-2.5-flash-lite"
    first = make_app(prices_file=prices_file(tmp_path, (model, "2000-01-01", "1", "1")))
    ask(first, "one")
    [recorded] = rows_of(first)
    first.service.close()
    second = make_app(prices_file=prices_file(tmp_path, (model, "2000-01-01", "7", "9")))
    ask(second, "two")
    kept, fresh = rows_of(second)
    assert kept == recorded
    assert (fresh["input_price"], fresh["output_price"]) == ("7.000000000", "9.000000000")


# The total since the start


def test_the_overall_cost_includes_the_request_and_never_falls(app: Api, gemini: ScriptedGemini) -> None:
    """Under eight clients at once: nobody ever sees less than before, nor less than what they have paid for."""
    start = threading.Barrier(7)

    def one(number: int) -> tuple[int, str]:
        client, paid, seen = app.test_client(), 0, "0.000000"
        start.wait()
        for turn in range(8):
            answer = client.post(TEXT, json={"prompt": f"{number} {turn % 6}"})
            paid += nano(answer)
            overall = answer.headers["X-Cost-Overall"]
            assert seen <= overall
            assert format_usd(paid) <= overall
            seen = overall
        return paid, seen

    with ThreadPoolExecutor(7) as pool:
        outcomes = list(pool.map(one, range(7)))
    total = sum(paid for paid, _ in outcomes)
    assert (
        max(seen for _, seen in outcomes)
        == format_usd(total)
        == app.test_client().get("/health").headers["X-Cost-Overall"]
    )
    assert total == gemini.delivered.prompt * 100 + gemini.delivered.candidates * 400


# Budgets

BODY = {"max_output_tokens": 1000}


def bound(prompt: str) -> int:
    """The reservation of a text request: every byte of its body a token, and all the output it may have."""
    return len(json.dumps({"prompt": prompt, **BODY})) * 100 + 1000 * 400


def dollars(amount: int) -> str:
    return f"{amount / 10**9:.9f}"


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    """A key with a budget for three calls, and one without."""
    alice, bob = (hashlib.sha256(name.encode()).hexdigest() for name in ("alice-secret", "bob-secret"))
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[key]]\nname = "alice"\nsha256 = "{alice}"\ndaily_budget_usd = {dollars(3 * bound("00"))}\n'
        f'[[key]]\nname = "bob"\nsha256 = "{bob}"\n'
    )
    return str(file)


def all_at_once(app: Api, gemini: ScriptedGemini, admitted: int, headers: dict[str, str]) -> list[TestResponse]:
    """50 requests that begin together and hold their reservations until all others are refused."""
    gemini.gate.clear()
    start, refused = threading.Barrier(TOGETHER), threading.Semaphore(0)

    def one(number: int) -> TestResponse:
        start.wait()
        answer = ask(app, f"{number:02}", **BODY, headers=headers)
        if answer.status_code == 402:
            refused.release()
        return answer

    with ThreadPoolExecutor(TOGETHER) as pool:
        futures = [pool.submit(one, number) for number in range(TOGETHER)]
        try:
            for _ in range(TOGETHER - admitted):
                assert refused.acquire(timeout=20)
            assert gemini.wait_for_calls(admitted)
        finally:
            gemini.gate.set()
        return [future.result() for future in futures]


def test_fifty_at_once_never_pass_the_service_s_budget(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """As many calls as the budget can cover at their bounds are made; the others are told when it resets."""
    app = make_app(daily_budget_usd=dollars(5 * bound("00")), threads=TOGETHER + 2)
    answers = all_at_once(app, gemini, 5, {})
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [402] * 45
    assert gemini.count == 5
    assert {answer.json["code"] for answer in answers if answer.status_code == 402} == {"budget_exceeded"}  # type: ignore[index]
    spent = sum(map(nano, answers))
    assert spent <= 5 * bound("00")
    budget = stats_of(app)["budget"]
    assert [budget[name] for name in ("limit", "spent", "reserved")] == [
        float(dollars(5 * bound("00"))),
        spent / 10**9,
        0.0,
    ]


def test_fifty_at_once_never_pass_a_key_s_budget(make_app: MakeApp, gemini: ScriptedGemini, keys_file: str) -> None:
    """Another key is not concerned."""
    app = make_app(api_keys_file=keys_file, threads=TOGETHER + 2)
    answers = all_at_once(app, gemini, 3, {"X-API-Key": "alice-secret"})
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [402] * 47
    assert ask(app, "another", **BODY, headers={"X-API-Key": "bob-secret"}).status_code == 200


def test_a_spent_budget_is_there_again_at_midnight_utc(
    make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock
) -> None:
    """402 says how long that is: a second before, nothing has changed; who waits so long is served."""
    app = make_app(daily_budget_usd=dollars(bound("00") + 100))
    to_midnight(app, clock, 1000.5)
    gemini.answers(cut(10))
    assert ask(app, "00", **BODY).status_code == 502
    refused = ask(app, "01", **BODY)
    assert (refused.status_code, refused.headers["Retry-After"]) == (402, "1001")
    clock.advance(999)
    assert ask(app, "01", **BODY).status_code == 402
    clock.advance(2)
    assert ask(app, "01", **BODY).status_code == 200


def test_what_may_have_been_billed_counts_against_the_budget(
    make_app: MakeApp, gemini: ScriptedGemini, environment: dict[str, str], clock: FakeClock
) -> None:
    """A call of a process that was killed: unsettled, at no cost, its bound still reserved."""
    app = make_app(daily_budget_usd=dollars(2 * bound("00") - 1))
    with closing(open_ledger(Path(environment["DATA_DIR"]) / "ledger.sqlite3", sync="normal")) as killed:
        attempt = Attempt("lost", "text", "10.0.0.1", "gemini-2.5-flash-lite", app.clock(), app.clock(), bound("00"))
        killed.open(attempt)
        killed.mark_unsettled(app.clock() + 1)
    assert ask(app, "00", **BODY).status_code == 402
    assert gemini.count == 0
    [row] = rows_of(app)
    assert (row["status"], row["total_cost"]) == ("unsettled", "0.000000000")
    assert row["reserved"] == dollars(bound("00"))
    assert stats_of(app)["budget"]["reserved"] == bound("00") / 10**9


def test_more_than_the_bound_is_recorded_and_told(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Should a dearer model have answered: the ledger has the truth, the log a line, and the budget is used up."""
    app = make_app(daily_budget_usd=dollars(bound("00")))
    gemini.answers(by("gemini-2.5-pro"))
    answer = ask(app, "00", max_output_tokens=1)
    assert (answer.status_code, nano(answer)) == (200, 10 * 1250 + 20 * 10_000)
    assert stats_of(app)["budget"]["spent"] == nano(answer) / 10**9
    app.service.logger.flush()
    assert "billed_past_bound" in (app.settings.log_dir / "api_errors.log").read_text()


def test_failures_that_cost_nothing_give_their_reservation_back(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """A refusal by Gemini is not billed."""
    app = make_app(daily_budget_usd=dollars(bound("00")))
    gemini.answers(*[status(404)] * 5)
    for _ in range(5):
        assert ask(app, "00", **BODY).status_code == 502
    assert stats_of(app)["budget"]["reserved"] == 0
    assert ask(app, "00", **BODY).status_code == 200


# A disk without space


@contextmanager
def full_disk(*files: Path) -> Iterator[None]:
    """No file of this process may grow past the largest of `files`: the kernel refuses what is appended to that one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(file.stat().st_size for file in files), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def ledger_files(app: Api, environment: dict[str, str]) -> tuple[Path, Path]:
    """The database and its log of changes, after an answer that is kept."""
    ask(app, "kept")
    file = Path(environment["DATA_DIR"]) / "ledger.sqlite3"
    return file, file.with_name("ledger.sqlite3-wal")


def healed(app: Api) -> None:
    """Wait until the ledger has seen that it can write again; it looks by itself."""
    until(lambda: app.service.ledger.health().writable)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size is tested where the service runs")
class TestFullDisk:
    def test_no_call_is_made_that_could_not_be_recorded(
        self, app: Api, gemini: ScriptedGemini, ledger_files: tuple[Path, Path]
    ) -> None:
        """503 `ledger_unavailable`; kept answers are still handed out, readiness tells, and it heals by itself."""
        with full_disk(*ledger_files):
            refused = ask(app, "new")
            assert (refused.status_code, refused.json["code"]) == (503, "ledger_unavailable")  # type: ignore[index]
            assert int(refused.headers["Retry-After"]) >= 1
            assert gemini.count == 1
            assert ask(app, "kept").headers["X-Cached"] == "true"
            assert app.test_client().get("/api/v1/health/ready").json["checks"]["ledger"]["status"] == "fail"  # type: ignore[index]
        healed(app)
        assert ask(app, "new").status_code == 200
        assert [row["status"] for row in rows_of(app)] == ["ok", "hit", "ok"]

    def test_an_answer_that_cannot_be_recorded_is_not_handed_out(
        self, app: Api, gemini: ScriptedGemini, ledger_files: tuple[Path, Path]
    ) -> None:
        """The disk fills while Gemini answers: 503; once there is space the row gets its true cost all the same."""
        gemini.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, app, "paid in vain")
            assert gemini.wait_for_calls(2)
            with full_disk(*ledger_files):
                gemini.gate.set()
                refused = asked.result()
        assert (refused.status_code, refused.json["code"], nano(refused)) == (503, "ledger_unavailable", 0)  # type: ignore[index]
        healed(app)
        app.service.maintenance.run_due()
        billed = gemini.delivered.prompt * 100 + gemini.delivered.candidates * 400
        rows = rows_of(app)
        assert [row["status"] for row in rows] == ["ok", "ok"]
        assert sum(float(row["total_cost"]) for row in rows) * 10**9 == pytest.approx(billed)
        assert app.test_client().get("/health").headers["X-Cost-Overall"] == format_usd(billed)
        assert ask(app, "paid in vain").headers["X-Cached"] == "false"


# Export


def fill(app: Api, count: int) -> None:
    """So many hits, a second apart, all before now."""
    ledger, now = app.service.ledger, app.clock()
    for number in range(count):
        if not number % 5000:
            ledger.flush()
        ledger.record_hit(Hit(f"r-{number}", now - count + number, "text", "10.0.0.1", "model", 400, 120, 88_000))
    ledger.flush()


def export_peak(app: Api) -> tuple[int, int]:
    """Lines of a streamed export, and the most memory that it took beside what was there."""
    tracemalloc.start()
    try:
        response = app.test_client().get(EXPORT, headers=ADMIN, buffered=False)
        lines = sum(str(part).count("\\n") for part in response.response)
        response.close()
        return lines, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_export_takes_no_more_memory_for_more_rows(app: Api) -> None:
    """It is sent as it is read."""
    fill(app, 1_000)
    few, small = export_peak(app)
    fill(app, 4_000)
    many, large = export_peak(app)
    assert (few, many) == (1_000, 5_000)
    assert large < 1.5 * small


def test_an_export_is_in_flight_until_its_end_and_disturbs_nobody(app: Api) -> None:
    """Requests are answered and recorded meanwhile; every row that was there is in it once."""
    fill(app, 3_000)
    response = app.test_client().get(EXPORT, headers=ADMIN, buffered=False)
    parts = iter(response.response)
    begin = next(parts)
    assert app.lifecycle.in_flight == 1
    assert [ask(app, prompt).status_code for prompt in "ab"] == [200, 200]
    lines = (begin + b"".join(parts)).decode().splitlines()  # type: ignore[operator, arg-type]
    response.close()
    assert app.lifecycle.in_flight == 0
    ids = [json.loads(line)["request_id"] for line in lines]
    assert ids[:3_000] == [f"r-{number}" for number in range(3_000)]


def test_a_spreadsheet_runs_nothing_that_a_client_sent(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Request ids, names and models that begin like a formula get a quote in CSV; JSON lines keep them as they are."""
    app = make_app(api_keys="-boss:boss-secret")
    gemini.answers(by("=HYPERLINK(A1)"))
    ask(app, headers={"X-API-Key": "boss-secret", "X-Request-ID": "-1-2"})
    exported = app.test_client().get("/api/v1/usage/export?format=csv", headers=ADMIN).text
    [row] = csv.DictReader(io.StringIO(exported))
    assert [row[name] for name in ("request_id", "client", "key", "model")] == [
        "'-1-2",
        "'-boss",
        "'-boss",
        "'=HYPERLINK(A1)",
    ]
    [line] = rows_of(app)
    assert [line[name] for name in ("request_id", "client", "model")] == ["-1-2", "-boss", "=HYPERLINK(A1)"]


def test_command_line_and_http_export_the_same(
    app: Api, environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """While the service runs, in both formats, with the documented columns in their order."""
    for prompt in "aab":
        ask(app, prompt)
    file = str(Path(environment["DATA_DIR"]) / "ledger.sqlite3")
    for kind in ("csv", "jsonl"):
        over_http = app.test_client().get(f"/api/v1/usage/export?format={kind}", headers=ADMIN).data.decode()
        capfd.readouterr()
        assert cost_tracker(["export", "--format", kind, "--database", file]) == 0
        assert capfd.readouterr().out == over_http
    assert list(json.loads(over_http.splitlines()[0])) == [column.name for column in COLUMNS]


def test_a_shared_answer_is_exported_as_shared(app: Api, gemini: ScriptedGemini) -> None:
    """A hit that was never in the cache when it was asked for."""
    gemini.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, app) for _ in range(2)]
        until(lambda: app.service.admission.state().following == 1)
        gemini.gate.set()
        answers = [future.result() for future in asked]
    assert {answer.headers["X-Cached"] for answer in answers} == {"true", "false"}
    assert ask(app).headers["X-Cached"] == "true"
    assert [(row["status"], row["shared"]) for row in rows_of(app)] == [("ok", False), ("hit", True), ("hit", False)]
