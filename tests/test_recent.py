"""What happened lately, and how /stats tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.routing import Map

from app import Api
from mtllm.domain.completion import Origin
from mtllm.domain.events import RequestEvent
from mtllm.stats.metrics import Metrics
from mtllm.stats.recent import ERRORS_KEPT, TIMES_KEPT, Recent
from tests.support.scripted_gemini import ScriptedGemini, status

ANSWERED = RequestEvent("id", 1000.0, method="POST", path="/api/v1/generate/text", duration=1.0)
FAILED = replace(ANSWERED, status=503, code="overloaded")


def test_percentiles_are_values_that_occurred() -> None:
    """By nearest rank: of 1 to 100, p95 is 95."""
    recent = Recent()
    for number in range(100, 0, -1):
        recent.observe(replace(ANSWERED, duration=float(number), origin=Origin.HIT))
    hit = recent.latencies().hit
    assert (hit.samples, hit.p50, hit.p95, hit.p99, hit.longest) == (100, 50.0, 95.0, 99.0, 100.0)


@pytest.mark.parametrize(
    ("origin", "kind"), [(Origin.HIT, "hit"), (Origin.STALE, "hit"), (Origin.SHARED, "miss"), (Origin.PAID, "miss")]
)
def test_what_waited_for_gemini_is_a_miss(origin: Origin, kind: str) -> None:
    """And only what came from the cache is a hit."""
    recent = Recent()
    recent.observe(replace(ANSWERED, origin=origin))
    latencies = recent.latencies()
    assert {"hit": latencies.hit.samples, "miss": latencies.miss.samples} == {"hit": 0, "miss": 0} | {kind: 1}


def test_what_came_to_no_answer_has_no_latency() -> None:
    """Health checks and refusals would make the service look fast."""
    recent = Recent()
    recent.observe(ANSWERED)
    assert recent.latencies().miss == recent.latencies().own == recent.latencies().hit
    assert recent.latencies().own.samples == 0


def test_the_own_share_is_without_gemini_and_queue() -> None:
    """Nor is it ever negative, whatever the clocks say."""
    recent = Recent()
    recent.observe(replace(ANSWERED, queue_seconds=0.25, upstream_seconds=0.5, origin=Origin.PAID))
    assert recent.latencies().own.longest == 0.25
    recent.observe(replace(ANSWERED, upstream_seconds=2.0, origin=Origin.PAID))
    assert recent.latencies().own.p50 == 0.0


def test_old_times_are_forgotten() -> None:
    """Percentiles are those of the latest requests."""
    recent = Recent()
    for _ in range(TIMES_KEPT):
        recent.observe(replace(ANSWERED, duration=9.0, origin=Origin.HIT))
    for _ in range(TIMES_KEPT):
        recent.observe(replace(ANSWERED, origin=Origin.HIT))
    assert recent.latencies().hit.longest == 1.0


def observe_both(recent: Recent, metrics: Metrics, event: RequestEvent) -> None:
    """What an application does with a finished request."""
    metrics.observe(event)
    recent.observe(event)


def test_a_flood_of_one_error_leaves_the_others() -> None:
    """Each code keeps its own latest cases, and the metrics count them all."""
    recent, metrics = Recent(), Metrics(Map())
    observe_both(recent, metrics, replace(FAILED, code="internal_error", status=500))
    for number in range(10 * ERRORS_KEPT):
        observe_both(recent, metrics, replace(FAILED, timestamp=2000.0 + number, request_id=str(number)))
    (flood, latest), (single, _) = recent.errors().items()
    counts = metrics.snapshot()
    assert (flood, counts.errors(flood), len(latest), latest[-1].request_id) == ("overloaded", 50, ERRORS_KEPT, "49")
    assert (single, counts.errors(single)) == ("internal_error", 1)


@pytest.mark.parametrize(
    "noise",
    [
        replace(FAILED, status=404, code="not_found"),
        replace(FAILED, status=401, code="unauthorized", path="/dashboard"),
    ],
)
def test_noise_is_not_noted(noise: RequestEvent) -> None:
    """Paths that are not there, and the way a browser is asked for a key."""
    recent, metrics = Recent(), Metrics(Map())
    observe_both(recent, metrics, noise)
    assert recent.errors() == {}
    assert noise.code is not None
    assert metrics.snapshot().errors(noise.code) == 0


def ask(client: FlaskClient, prompt: str, **headers: str) -> int:
    answer = client.post("/api/v1/generate/text", json={"prompt": prompt}, headers=headers)
    return answer.status_code


def stats(client: FlaskClient, **headers: str) -> dict[str, Any]:
    answer = client.get("/stats", headers=headers)
    assert answer.status_code == 200
    body: Any = answer.json
    return dict(body)


def test_stats_tell_tasks_by_outcome(client: FlaskClient) -> None:
    """Every finished request of a task is in one place."""
    ask(client, "a"), ask(client, "a"), ask(client, "b"), ask(client, "")
    told = stats(client)["requests_by_task"]
    assert told["text"] == {"paid": 2, "hit": 1, "shared": 0, "stale": 0, "errors": {"invalid_request": 1}}
    assert told["code"] == {"paid": 0, "hit": 0, "shared": 0, "stale": 0, "errors": {}}


def test_stats_tell_the_last_errors_with_their_ids(client: FlaskClient) -> None:
    """The last first."""
    for name in ("first", "second"):
        ask(client, "", **{"X-Request-ID": name})
    (told,) = stats(client)["last_errors"]
    assert (told["code"], told["count"]) == ("invalid_request", 2)
    assert [case["request_id"] for case in told["latest"]] == ["second", "first"]
    assert told["latest"][0].items() >= {"status": 400, "method": "POST", "path": "/api/v1/generate/text"}.items()


def test_a_secret_in_a_path_is_masked(make_app: Callable[..., Api]) -> None:
    """Paths are shown as the log files show them."""
    client = make_app(security_mode="block", admin_api_key="very-secret-word").test_client()
    assert client.get("/../etc/passwd?x=1", headers={}).status_code == 403
    client.get("/../../etc/passwd/very-secret-word")
    assert "very-secret-word" not in client.get("/stats").text


def test_stats_tell_budget_breaker_admission_and_estimate(make_app: Callable[..., Api], gemini: ScriptedGemini) -> None:
    """In dollars, seconds and counts."""
    client = make_app(daily_budget_usd="2", gemini_max_attempts="1", threads=4).test_client()
    assert ask(client, "a") == 200
    gemini.answers(status(503))
    assert ask(client, "b") == 503
    told = stats(client)
    budget = [told["budget"][name] for name in ("limit", "spent", "reserved")]
    assert budget == [2.0, told["overall_stats"]["total_cost_all_time"], 0.0]
    assert told["breaker"] == {"state": "closed", "consecutive_failures": 1, "retry_in_seconds": 0.0, "times_opened": 0}
    assert told["admission"] == {"in_use": 0, "places": 2, "queued": 0, "waited": 0, "shed": 0, "abandoned": 0}
    assert set(told["token_estimate"]) == {"samples", "input_ratio", "output_ratio", "dropped"}
    assert told["rate_limit_stats"]["limits"][0] == {"requests": 60, "seconds": 60}
    assert told["latency"]["miss"]["samples"] == 2


def test_without_a_budget_there_is_none(client: FlaskClient) -> None:
    """And a caller without a key is nobody."""
    told = stats(client)
    assert told["budget"] is None
    assert told["caller"] == {"key": None, "admin": False}


def test_stats_know_who_asks(make_app: Callable[..., Api]) -> None:
    """So that a page need not try what it may not."""
    client = make_app(api_keys="app:one", admin_api_key="two").test_client()
    assert stats(client, **{"X-API-Key": "one"})["caller"] == {"key": "app", "admin": False}
    assert stats(client, **{"X-API-Key": "two"})["caller"] == {"key": "admin", "admin": True}


def test_rejections_are_counted(make_app: Callable[..., Api]) -> None:
    """And the clients that are at a limit."""
    client = make_app(rate_limits="1/minute").test_client()
    assert [ask(client, "a"), ask(client, "a"), ask(client, "a")] == [200, 429, 429]
    assert stats(client)["rate_limit_stats"].items() >= {"rejected": 2, "protected": 1}.items()
