"""The fault table of docs/operations.md, row by row at the wire: what the client sees, what is billed, kept, logged."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import Api
from mtllm.emulator import EmulatedReply
from mtllm.gemini.client import Gemini
from mtllm.project import PROJECT
from mtllm.resilience import retry
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import (
    PER_DAY,
    PER_MINUTE,
    ScriptedGemini,
    Step,
    blocked_prompt,
    cut,
    drip,
    empty_body,
    empty_object,
    finished,
    garbage,
    hang,
    invalid_key,
    no_candidates,
    no_usage,
    offline,
    slow_headers,
    status,
    text,
    wrong_content_type,
)
from tests.support.serving import eventually, free_port

REPORT = (PROJECT / "docs") / "operations.md"
TEXT = "/api/v1/generate/text"
CLASSIFY = "/api/v1/classify/text"
ASK: dict[str, Any] = {"prompt": "Tell me."}
ATTEMPTS = 3
SHORT, SLACK = 0.4, 0.3
"""Seconds until a silent Gemini is given up, and how much later its caller may learn of it."""

MakeApp = Callable[..., Api]


# The table


@dataclass(frozen=True, slots=True)
class Row:
    """One fault and what the table promises of it."""

    fault: str
    status: int
    code: str | None
    retry_after: str | None
    calls: int
    ledger: str | None
    cost: str
    reservation: str
    kept: bool
    logs: frozenset[str]


def table() -> Iterator[Row]:
    """A row that names several faults in backticks is a row for each."""
    section = REPORT.read_text(encoding="utf-8").split("<!-- faults -->")[1].split("<!-- end faults -->")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    for line in lines:
        faults, seen, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        kind, items = faults.split("`")[0], re.findall(r"`([^`]+)`", faults)
        for item in items:
            yield _row(kind + item, seen, cells)


def _row(fault: str, seen: str, cells: Sequence[str]) -> Row:
    retry_after, calls, ledger, cost, reservation, kept, logs = cells
    return Row(
        fault,
        status=int(seen[:3]),
        code=_quoted(seen),
        retry_after=None if retry_after == "-" else retry_after,
        calls=ATTEMPTS if calls == "all" else int(calls),
        ledger=_quoted(ledger),
        cost=cost,
        reservation=reservation,
        kept={"yes": True, "no": False}[kept],
        logs=frozenset(re.findall(r"`([^`]+)`", logs)),
    )


def _quoted(cell: str) -> str | None:
    return next(iter(re.findall(r"`([^`]+)`", cell)), None)


ROWS = {row.fault: row for row in table()}


# The faults


@dataclass(frozen=True, slots=True)
class Fault:
    """What Gemini does at every call, and what else it takes to see it."""

    step: Step = field(default_factory=offline)
    settings: dict[str, str] = field(default_factory=dict)
    task: str = TEXT
    body: dict[str, Any] = field(default_factory=lambda: dict(ASK))
    failures_before: int = 0
    """Requests that fail before the one that is looked at."""


NO_TLS = "https://"
"""Stands for an endpoint where somebody speaks, and not TLS."""
IN_A_HURRY = {"gemini_timeout_seconds": f"{SHORT}"}
LABELS = {"text": "Which one?", "categories": ["this", "that"]}

FAULTS = {
    **{f"Status {code}": Fault(status(code)) for code in (400, 401, 403, 404, 429, 500, 502, 503, 504)},
    "Status 400 API_KEY_INVALID": Fault(invalid_key()),
    "Status 429 retryDelay 45.8s": Fault(status(429, retry_delay="45.8s", quota_id=PER_MINUTE)),
    "Status 503 retryDelay 45.8s": Fault(status(503, retry_delay="45.8s")),
    "Status 429 per day": Fault(status(429, quota_id=PER_DAY)),
    "Breaker open": Fault(status(504), failures_before=5),
    "Connection refused": Fault(settings={"gemini_api_endpoint": f"http://127.0.0.1:{free_port()}"}),
    "Connection TLS failure": Fault(settings={"gemini_api_endpoint": NO_TLS}),
    "Connection cut before the first byte": Fault(cut(0)),
    "Connection cut in the answer": Fault(cut(150)),
    "Time hang": Fault(hang(), IN_A_HURRY),
    "Time drip of headers": Fault(slow_headers(0.05), IN_A_HURRY),
    "Time drip of body": Fault(drip(0.05), IN_A_HURRY),
    "Body not JSON": Fault(garbage()),
    "Body empty": Fault(empty_body()),
    "Body not HTTP": Fault(lambda _gemini, _call: EmulatedReply((b"SSH-2.0-OpenSSH_9.6\r\n\r\n",), closes=True)),
    "Body a page of HTML": Fault(wrong_content_type()),
    "Body {}": Fault(empty_object()),
    "Answer without candidates": Fault(no_candidates()),
    "Answer without text": Fault(finished("STOP")),
    **{
        f"Prompt blocked for {reason}": Fault(blocked_prompt(reason))
        for reason in ("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "A_NEW_REASON")
    },
    **{
        f"Finish reason {reason}": Fault(finished(reason, "Half a"))
        for reason in (
            *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
            *("OTHER", "A_NEW_REASON"),
        )
    },
    "Finish reason MAX_TOKENS without text": Fault(finished("MAX_TOKENS", thoughts=64)),
    "Label outside the list": Fault(text("neither"), task=CLASSIFY, body=LABELS),
    "No fault: MAX_TOKENS with text": Fault(finished("MAX_TOKENS", "Half an ans")),
    'No fault: a text about "429 rate limit"': Fault(text("HTTP 429 rate limit: quota exceeded, 503, retry")),
    "No fault: no usage reported": Fault(no_usage()),
}


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The SDK's import takes longer than the deadlines of these tests."""
    with Gemini(api_key="key", model="model") as client:
        client.warm_up()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that nobody asked for are short."""
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.01)


def test_every_row_has_its_fault_and_every_fault_its_row() -> None:
    """The table and the tests name the same."""
    assert ROWS.keys() == FAULTS.keys()


@pytest.mark.parametrize(
    ("fault", "streamed"),
    [
        pytest.param(fault, streamed, id=f"{fault}-{'stream' if streamed else 'plain'}")
        for fault in sorted(ROWS)
        for streamed in (False, True)
        if not (streamed and FAULTS[fault].task == CLASSIFY)  # which does not stream
    ],
)
def test_a_fault_is_what_the_table_says(
    make_app: MakeApp, gemini: ScriptedGemini, no_tls: str, fault: str, streamed: bool
) -> None:
    """To the client, in the ledger, in the cache and in the logs."""
    row, case = ROWS[fault], FAULTS[fault]
    gemini.answers(*[case.step] * 10)
    app = make_app(real_time=True, **_settings(case, no_tls))
    client = app.test_client()
    for number in range(case.failures_before):
        client.post(TEXT, json={"prompt": f"{number}"})
    asked_before, booked_before = gemini.count, len(_booked(app))
    body = case.body | ({"stream": True} if streamed else {})
    begun = time.monotonic()
    answer = client.post(case.task, json=body, headers={"X-Request-ID": "looked-at"}, buffered=True)
    assert time.monotonic() - begun < app.settings.gemini_timeout_seconds + SLACK
    _check_what_the_client_sees(row, answer)
    assert gemini.count - asked_before == (0 if case.settings.get("gemini_api_endpoint") else row.calls)
    _check_the_ledger(row, _booked(app)[booked_before:], _told_cost(answer))
    assert _is_kept(client, case) is row.kept
    _check_the_logs(row, app)


def _settings(case: Fault, no_tls: str) -> dict[str, str]:
    settings = {"gemini_max_attempts": f"{ATTEMPTS}", "ledger_sync": "normal"} | case.settings
    if settings.get("gemini_api_endpoint") == NO_TLS:
        settings["gemini_api_endpoint"] = no_tls
    return settings


def _check_what_the_client_sees(row: Row, answer: TestResponse) -> None:
    if answer.mimetype == "text/event-stream":
        _, told = _end_of(answer)
    else:
        assert answer.status_code == row.status
        assert answer.headers.get("Retry-After") == row.retry_after
        told = answer.json
    assert told.get("code") == row.code
    assert "Something is wrong." not in answer.text


def _end_of(answer: TestResponse) -> tuple[str, Any]:
    """The last event: `done` or `error`, and what it says."""
    name, data = answer.text.rstrip().rsplit("event: ", 1)[1].split("\ndata: ")
    return name, json.loads(data)


def _told_cost(answer: TestResponse) -> int | None:
    """Nano-dollars, from the end of a stream or from the headers; None for a stream that broke off."""
    if answer.mimetype != "text/event-stream":
        return int(answer.headers["X-Cost-Nanodollars"])
    name, told = _end_of(answer)
    return int(told["cost"]["nanodollars"]) if name == "done" else None


def _booked(app: Api) -> list[Any]:
    """The attempts in the ledger, all of them ended."""
    assert eventually(lambda: app.service.admission.state().in_use == 0, seconds=5)
    app.service.ledger.flush()
    return [row for row in app.service.ledger.export(0, time.time() + 60) if not row.cached]


def _check_the_ledger(row: Row, attempts: list[Any], told: int | None) -> None:
    assert [attempt.status for attempt in attempts] == [row.ledger] * row.calls
    assert [attempt.attempt for attempt in attempts] == list(range(1, row.calls + 1))
    for attempt in attempts:
        assert (attempt.total_cost > 0) is (row.cost != "nothing")
        assert attempt.estimated is (row.cost == "estimated")
        assert (attempt.reserved > 0) is (row.reservation == "kept")
    assert told in (None, sum(attempt.total_cost for attempt in attempts))


def _is_kept(client: FlaskClient, case: Fault) -> bool:
    again = client.post(case.task, json=case.body, headers={"Cache-Control": "only-if-cached"})
    return again.status_code == 200


def _check_the_logs(row: Row, app: Api) -> None:
    app.service.logger.flush()
    written = {
        log.name
        for log in app.settings.log_dir.glob("*.log")
        if any(json.loads(line)["request_id"] == "looked-at" for line in log.read_text().splitlines())
    }
    assert written == row.logs | {"api_requests.log", "performance.log"}


# Retries, the breaker and the deadline, through HTTP


def test_an_absurd_wait_is_capped(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Nobody is locked out for longer than an hour."""
    gemini.answers(status(429, retry_delay="99999999.9s"))
    answer = make_app().test_client().post(TEXT, json=ASK)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3600")


@pytest.mark.parametrize(("asked", "seconds"), [("373.8ms", 0.3738), ("0.25s", 0.25)])
def test_a_wait_that_gemini_asks_for_is_kept(
    make_app: MakeApp, gemini: ScriptedGemini, asked: str, seconds: float
) -> None:
    """Not shorter, and at most a tenth longer."""
    gemini.answers(status(429, retry_delay=asked))
    client, begun = make_app(real_time=True).test_client(), time.monotonic()
    assert client.post(TEXT, json=ASK).status_code == 200
    assert seconds <= time.monotonic() - begun < seconds * 1.1 + SLACK


def test_an_outage_does_not_multiply_traffic(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Ten retries and a tenth of the calls: 40 failing requests of four attempts each make 54 calls, not 160."""
    gemini.answers(*[status(503, retry_delay="0.001s")] * 200)
    app = make_app(rate_limits="")
    app.service.breakers.of(app.service.chain.models[0])._threshold = 1000
    client = app.test_client()
    statuses = {client.post(TEXT, json={"prompt": f"{number}"}).status_code for number in range(40)}
    assert statuses == {503}
    assert gemini.count <= 40 + 10 + 4


def test_the_breaker_opens_tells_the_truth_and_heals(
    make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock
) -> None:
    """Refused at once and without a call; readiness and stats say so; one probe closes it."""
    app = make_app()
    gemini.answers(*[status(504)] * 5)
    client = app.test_client()
    for number in range(5):
        assert client.post(TEXT, json={"prompt": f"{number}"}).status_code == 504
    clock.advance(3.5)
    refused = client.post(TEXT, json=ASK)
    assert (refused.status_code, refused.headers["Retry-After"], gemini.count) == (503, str(ceil(10 - 3.5)), 5)
    assert _state(client) == ("degraded", "open")
    clock.advance(7)
    assert client.post(TEXT, json=ASK).status_code == 200
    assert _state(client) == ("ready", "closed")


def test_what_is_not_geminis_fault_leaves_the_breaker_closed(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Bad requests and blocked content, however many."""
    gemini.answers(*[step for _ in range(6) for step in (status(400), blocked_prompt(), finished("SAFETY"))])
    client = make_app().test_client()
    for number in range(18):
        client.post(TEXT, json={"prompt": f"{number}"})
    assert _state(client) == ("ready", "closed")
    assert client.post(TEXT, json=ASK).status_code == 200


def _state(client: FlaskClient) -> tuple[str, str]:
    """What readiness and stats say."""
    ready, stats = client.get("/api/v1/health/ready").json, client.get("/stats").json
    assert ready is not None
    assert stats is not None
    return ready["status"], stats["breaker"]["state"]


def test_hits_are_served_while_gemini_is_gone(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """With the breaker open too."""
    client = make_app().test_client()
    client.post(TEXT, json=ASK)
    gemini.answers(*[status(504)] * 5)
    for number in range(6):
        client.post(TEXT, json={"prompt": f"{number}"})
    assert client.post(TEXT, json=ASK).headers["X-Cached"] == "true"


def test_a_call_that_is_given_up_is_counted(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """A drip is cut off at the deadline; until its end is booked it has its place."""
    gemini.answers(drip(0.05), hang())
    app = make_app(real_time=True, **IN_A_HURRY)
    client = app.test_client()
    for number in range(2):
        begun = time.monotonic()
        assert client.post(TEXT, json={"prompt": f"{number}"}).status_code == 504
        assert time.monotonic() - begun < SHORT + SLACK
    assert eventually(lambda: app.service.admission.state().in_use == 0, seconds=5)
    assert client.get("/stats").json["admission"]["abandoned"] == 2  # type: ignore[index]
