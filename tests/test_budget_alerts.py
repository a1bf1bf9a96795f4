"""Alerts of budgets: told once a period, sent to a real listener, retried until it takes them."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app import Api
from mtllm.billing.alerts import RETRY_SECONDS, BudgetAlerts, Webhook
from mtllm.domain.caller import Budget
from mtllm.ledger.ledger import Ledger, open_ledger
from tests.support.fakes import FakeClock
from tests.support.ledgers import NOON, Database, attempt, settlement

SERVICE, MONTH = Budget("service", 1000), Budget("key:alice", 4000, "month")


class Listener:
    """An HTTP server that answers with the next of `statuses`, then with 200, and keeps what came."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.received: list[tuple[dict[str, Any], str | None, bytes]] = []
        self.url = ""

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.received.append((json.loads(body), self.headers["X-Signature"], body))
                self.send_response(listener.statuses.pop(0) if listener.statuses else 200)
                self.send_header("Location", listener.url)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}/alerts"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield self
            server.shutdown()
            thread.join()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


@pytest.fixture
def ledger(database: Database, clock: FakeClock) -> Iterator[Ledger]:
    with closing(Ledger(database.engine(), clock=clock)) as opened:
        yield opened


def spend(ledger: Ledger, cost: int, at: float, key: str | None = None) -> None:
    ledger.settle(ledger.open(attempt(at, key=key)), settlement(cost))


def watch(ledger: Ledger, clock: FakeClock, told: list[str], webhook: Webhook | None = None) -> BudgetAlerts:
    return BudgetAlerts(
        ledger, lambda: (SERVICE, MONTH), percents=(100, 80), webhook=webhook, report=told.append, clock=clock
    )


def test_each_percentage_is_told_once_a_period(ledger: Ledger, clock: FakeClock) -> None:
    """The next day anew; another process, or the next start, does not repeat it."""
    told: list[str] = []
    alerts, another = (watch(ledger, clock, told) for _ in range(2))
    for cost, expected in ((799, 0), (1, 1), (100, 1), (100, 2), (500, 2)):
        spend(ledger, cost, clock())
        alerts.check()
        another.check()
        assert len(told) == expected, cost
    assert told[0] == "80 % of the budget of the service for the day is spent: $0.000000800 of $0.000001000."
    clock.advance(86_400)
    spend(ledger, 1000, clock())
    alerts.check()
    assert [sentence[:4] for sentence in told[2:]] == ["80 %", "100 "]
    assert alerts.told == 4


def test_a_key_has_alerts_of_its_own(ledger: Ledger, clock: FakeClock) -> None:
    """Of its month."""
    told: list[str] = []
    spend(ledger, 3500, clock(), key="alice")
    watch(ledger, clock, told).check()
    assert told[-1] == "80 % of the budget of key alice for the month is spent: $0.000003500 of $0.000004000."


def test_a_post_is_signed_and_sent_until_it_is_taken(ledger: Ledger, clock: FakeClock) -> None:
    """A failure and a redirect are no taking; the same words come again after a minute, from whichever process."""
    told: list[str] = []
    with Listener(500, 302).listening() as listener:
        webhook = Webhook(listener.url, "a-secret")
        alerts, another = (watch(ledger, clock, told, webhook) for _ in range(2))
        spend(ledger, 800, clock())
        for process in (alerts, another, another, alerts, another):
            process.check()
            clock.advance(RETRY_SECONDS / 2)
        clock.advance(RETRY_SECONDS)
        alerts.check()
    assert len(listener.received) == 3
    body, signature, raw = listener.received[-1]
    assert signature == hmac.new(b"a-secret", raw, hashlib.sha256).hexdigest()
    assert (body["event"], body["scope"], body["key"], body["period"], body["percent"]) == (
        "budget_alert",
        "service",
        None,
        "day",
        80,
    )
    assert (body["limit"], body["spent"]) == (1e-6, 8e-7)
    assert alerts.failed_posts + another.failed_posts == 2
    assert len(told) == 1


def test_a_listener_that_is_away_is_asked_after_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    """What was not taken is in the ledger."""
    path = tmp_path / "ledger.sqlite3"
    with closing(open_ledger(path, clock=clock)) as ledger:
        spend(ledger, 800, clock())
        watch(ledger, clock, [], Webhook("http://127.0.0.1:1/alerts")).check()
    clock.advance(RETRY_SECONDS)
    with Listener().listening() as listener, closing(open_ledger(path, clock=clock)) as ledger:
        watch(ledger, clock, [], Webhook(listener.url)).check()
    assert [body["percent"] for body, _, _ in listener.received] == [80]


def test_the_service_watches_its_budgets(make_app: Callable[..., Api]) -> None:
    """In a thread of its own; the log and the metrics show it."""
    with Listener().listening() as listener:
        app = make_app(daily_budget_usd="0.001", budget_webhook_url=listener.url, budget_alerts_percent="1")
        client = app.test_client()
        assert client.post("/api/v1/generate/text", json={"prompt": "x" * 400}).status_code == 200
        app.service.alerts.check()
        assert [body["percent"] for body, _, _ in listener.received] == [1]
    assert "mtllm_budget_alerts_total 1.0" in client.get("/metrics").text
