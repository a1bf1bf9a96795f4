"""Batches: many items in one request, answered line by line, each bought and booked as if it had come alone."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from tests.support.scripted_gemini import ScriptedGemini, status
from tests.support.serving import eventually, get, post, serving

BATCH, TEXT = "/api/v1/batch", "/api/v1/generate/text"
MakeApp = Callable[..., Api]


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """A service without limits."""
    return make_app(rate_limits="").test_client()


def ask(prompt: str, **more: Any) -> dict[str, Any]:
    """An item of the text task."""
    return {"task": "text", "prompt": prompt, **more}


def run(client: FlaskClient, *items: dict[str, Any], **headers: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a batch in the order of its items, and the summary."""
    answer = client.post(
        BATCH, json={"items": items}, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    assert answer.status_code == 200, answer.json
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    *lines, summary = map(json.loads, answer.text.splitlines())
    return sorted(lines, key=lambda line: line["index"]), summary


def raw_batch(count: int) -> bytes:
    """A batch of so many different items, as it goes over the wire."""
    body = json.dumps({"items": [ask(f"{number}") for number in range(count)]}).encode()
    head = f"POST {BATCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def test_every_item_has_a_line_and_the_summary_comes_last(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Of any task; an id of the caller's comes back; costs add up to what the ledger has."""
    lines, summary = run(
        client,
        ask("a", id="mine"),
        {"task": "classify", "text": "I love it", "categories": ["good", "bad"]},
        {"task": "code", "prompt": "Reverse a string", "id": 7},
        {"task": "chat", "messages": [{"role": "user", "content": "Hi"}]},
    )
    assert [(line["index"], line["status"], line.get("id")) for line in lines] == [
        (0, 200, "mine"),
        (1, 200, None),
        (2, 200, 7),
        (3, 200, None),
    ]
    assert lines[0]["body"]["generated_text"]
    assert lines[1]["body"]["classification"] in ("good", "bad")
    assert lines[3]["body"]["choices"][0]["message"]["content"]
    total = sum(line["cost"]["nanodollars"] for line in lines)
    assert (summary["items"], summary["succeeded"], summary["failed"], summary["not_begun"]) == (4, 4, 0, 0)
    assert summary["cost"]["nanodollars"] == total > 0
    stats: Any = client.get("/stats").json
    assert stats["overall_stats"]["total_cost_all_time"] == pytest.approx(total / 1e9)


def test_identical_items_are_bought_once(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """A thousand items with a tenth of repeats make nine hundred calls."""
    app = make_app(rate_limits="", real_time=True, batch_concurrency="4")
    items = [ask(f"{number % 900}") for number in range(1000)]
    lines, summary = run(app.test_client(), *items)
    assert gemini.count == 900
    assert Counter(line["status"] for line in lines) == {200: 1000}
    assert summary["cached"] == 100


def test_errors_of_items_do_not_end_the_batch(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Each has the status, code and details that the request alone would have."""
    gemini.answers(status(400))
    lines, summary = run(
        client,
        ask("x"),
        ask(""),
        {"task": "paint", "prompt": "x"},
        ask("y", stream=True),
        ask("z", model="gpt-9"),
    )
    assert [(line["status"], line.get("code")) for line in lines] == [
        (502, "upstream_rejected"),
        (400, "invalid_request"),
        (400, "invalid_request"),
        (400, "invalid_request"),
        (400, "invalid_request"),
    ]
    assert [line["details"][0]["field"] for line in lines[1:]] == ["prompt", "task", "stream", "model"]
    assert (summary["succeeded"], summary["failed"]) == (0, 5)


def test_limits_and_budgets_count_each_item(make_app: MakeApp) -> None:
    """An item refused is a line of its own; those before it are answered."""
    client = make_app(rate_limits="2/minute", batch_concurrency="1").test_client()
    lines, _ = run(client, ask("a"), ask("b"), ask("c"))
    assert [line["status"] for line in lines] == [200, 200, 429]
    client = make_app(rate_limits="", daily_budget_usd="0.0009", batch_concurrency="1").test_client()
    lines, _ = run(client, ask("a"), ask("b", max_output_tokens=4000), ask("c", dry_run=True))
    assert [line["status"] for line in lines] == [200, 402, 200]
    assert lines[2]["body"]["dry_run"] is True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "items"),
        ({"items": [{}] * 4}, "items"),
        ({"items": "x"}, "items"),
        ({"items": [1]}, "items.0"),
        ({}, "items"),
        ({"items": [{}], "more": 1}, "more"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(make_app: MakeApp, body: Any, field: str) -> None:
    """400 that names the field."""
    answer = make_app(batch_max_items="3").test_client().post(BATCH, json=body)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["details"][0]["field"] == field


def test_each_item_stands_in_ledger_and_logs_under_its_own_id(
    make_app: MakeApp, gemini: ScriptedGemini, tmp_path: Path
) -> None:
    """The batch's id, a dot and the item's number."""
    app = make_app(rate_limits="")
    run(app.test_client(), ask("a"), ask("b"), ask("a"), X_Request_ID="mine", X_Tag="news")
    app.service.ledger.flush()
    rows = {row.request_id: (row.status, row.tag) for row in app.service.ledger.export(0, 4e9)}
    assert rows.keys() == {"mine.0", "mine.1", "mine.2"}
    assert {tag for _, tag in rows.values()} == {"news"}

    def costs() -> list[str]:
        written = (tmp_path / "logs" / "cost_tracking.log").read_text()
        return [json.loads(line)["request_id"] for line in written.splitlines()]

    assert eventually(lambda: sorted(costs()) == ["mine.0", "mine.1", "mine.2"])


def test_needs_a_key_where_tasks_do(make_app: MakeApp) -> None:
    """And its items are the key's."""
    app = make_app(api_keys="alice:secret", rate_limits="")
    client = app.test_client()
    assert client.post(BATCH, json={"items": [ask("x")]}).status_code == 401
    run(client, ask("x"), X_API_Key="secret")
    assert [row.client for row in app.service.ledger.export(0, 4e9)] == ["alice"]


def test_others_are_answered_beside_it(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """While a batch waits for Gemini with all that it may ask at once, a hit and another miss pass."""
    app = make_app(rate_limits="", real_time=True, batch_concurrency="2")
    with serving(app) as port, socket.create_connection(("127.0.0.1", port)) as batch:
        post(port, TEXT, {"prompt": "kept"})
        gemini.gate.clear()
        batch.sendall(raw_batch(20))
        assert gemini.wait_for_calls(3)
        assert post(port, TEXT, {"prompt": "kept"}).headers["X-Cached"] == "true"
        assert get(port, "/health").status == 200
        assert gemini.count == 3
        gemini.gate.set()
        assert eventually(lambda: gemini.count == 21)


def test_a_client_that_leaves_ends_what_has_not_begun(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """What is under way is bought and booked; nothing else is asked."""
    app = make_app(rate_limits="", real_time=True, batch_concurrency="2")
    with serving(app) as port:
        gemini.gate.clear()
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(raw_batch(50))
            assert gemini.wait_for_calls(2)
        assert eventually(lambda: app.lifecycle.in_flight == 0)
        gemini.gate.set()
        app.service.ledger.flush()
        assert eventually(lambda: [row.status for row in app.service.ledger.export(0, 4e9)] == ["ok", "ok"])
        assert gemini.count == 2


def test_a_stop_ends_it_with_the_truth(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Items that come after the stop began say so, and the summary counts them."""
    app = make_app(rate_limits="", batch_concurrency="1", real_time=True)
    gemini.gate.clear()
    with serving(app) as port, socket.create_connection(("127.0.0.1", port)) as batch:
        batch.sendall(raw_batch(3))
        assert gemini.wait_for_calls(1)
        app.lifecycle.draining = True
        gemini.gate.set()
        batch.settimeout(10)
        received = b""
        while b'"summary"' not in received:
            received += batch.recv(65536)
    assert received.count(b'"code": "draining"') == 2
    assert b'"succeeded": 1, "failed": 2' in received
