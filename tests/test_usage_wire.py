"""Usage over HTTP: whose it is, what it was for, where its days begin, and one request's attempts."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini, status, text, usage

TEXT, USAGE = "/api/v1/generate/text", "/api/v1/usage"
ALICE, BOB, ADMIN = ({"X-API-Key": secret} for secret in ("alice-secret", "bob-secret", "admin-secret"))


@pytest.fixture
def client(make_app: Callable[..., Api]) -> FlaskClient:
    """A service with two keys and an admin."""
    return make_app(api_keys="alice:alice-secret,bob:bob-secret", admin_api_key="admin-secret").test_client()


def groups(client: FlaskClient, query: str, headers: dict[str, str]) -> dict[str, int]:
    """Requests by group."""
    body: Any = client.get(f"{USAGE}?{query}", headers=headers).json
    return {group["key"]: group["total_requests"] for group in body["groups"]}


def test_a_key_sees_what_it_used_and_the_admin_sees_all(client: FlaskClient) -> None:
    """By any group that is not the admin's alone."""
    for caller, prompt in ((ALICE, "a"), (ALICE, "b"), (BOB, "a")):
        assert client.post(TEXT, json={"prompt": prompt}, headers=caller).status_code == 200
    assert groups(client, "group_by=task", ALICE) == {"text": 2}
    assert groups(client, "group_by=task", BOB) == {"text": 1}
    assert groups(client, "group_by=task", ADMIN) == {"text": 3}
    assert groups(client, "group_by=key", ADMIN) == {"alice": 2, "bob": 1}


def test_a_tag_is_a_group_of_its_own_and_a_column(client: FlaskClient) -> None:
    """Paid and cached requests alike."""
    for tag in ("news", "news", ""):
        client.post(TEXT, json={"prompt": "x"}, headers=ALICE | ({"X-Tag": tag} if tag else {}))
    assert groups(client, "group_by=tag", ALICE) == {"": 1, "news": 2}
    rows = client.get(f"{USAGE}/export?format=csv", headers=ADMIN).text.splitlines()
    assert [row.rpartition(",")[2] for row in rows] == ["tag", "news", "news", ""]


@pytest.mark.parametrize("group_by", ["day", "minute", "task"])
def test_usage_is_narrowed_to_a_key_task_model_or_tag(client: FlaskClient, group_by: str) -> None:
    """One filter or several together; what nothing matches is no group."""
    for caller, prompt, tag in ((ALICE, "a", "news"), (ALICE, "b", "mail"), (BOB, "c", "news")):
        assert client.post(TEXT, json={"prompt": prompt}, headers=caller | {"X-Tag": tag}).status_code == 200
    for filters, requests in (
        ("key=alice", 2),
        ("tag=news", 2),
        ("key=alice&tag=news", 1),
        ("task=text&model=gemini-2.5-flash-lite", 3),
        ("task=code", 0),
        ("model=gemini", 0),
    ):
        found = groups(client, f"group_by={group_by}&{filters}", ADMIN)
        assert sum(found.values()) == requests, filters


def test_a_key_may_narrow_usage_to_itself_and_to_no_other(client: FlaskClient) -> None:
    """Another key's name is 403, whether or not there is such a key."""
    client.post(TEXT, json={"prompt": "a"}, headers=ALICE)
    assert groups(client, "key=alice&group_by=task", ALICE) == {"text": 1}
    for name in ("bob", "nobody"):
        assert client.get(f"{USAGE}?key={name}", headers=ALICE).status_code == 403


@pytest.mark.parametrize("tag", ["a b", "x" * 65, "a,b", "ü"])
def test_a_tag_that_could_not_stand_in_a_bill_is_refused(client: FlaskClient, tag: str) -> None:
    """400 that names the header; nothing is asked."""
    answer = client.post(TEXT, json={"prompt": "x"}, headers=ALICE | {"X-Tag": tag})
    assert answer.status_code == 400
    assert answer.json is not None
    assert [detail["field"] for detail in answer.json["details"]] == ["X-Tag"]


def test_a_zone_moves_the_days(client: FlaskClient) -> None:
    """An unknown one is 400 that names the field."""
    client.post(TEXT, json={"prompt": "x"}, headers=ALICE)
    [east], [west] = (list(groups(client, f"group_by=day&tz={zone}", ALICE)) for zone in ("Etc/GMT-14", "Etc/GMT%2B12"))
    assert east > west
    answer = client.get(f"{USAGE}?tz=Atlantis", headers=ALICE)
    assert answer.status_code == 400
    assert answer.json is not None
    assert [detail["field"] for detail in answer.json["details"]] == ["tz"]


def test_a_request_shows_every_attempt_to_the_admin(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """The failed ones, the paid one and the hit that repeated its id."""
    gemini.answers(status(503), text("fine"))
    headers = ALICE | {"X-Request-ID": "mine", "X-Tag": "news"}
    for _ in range(2):
        assert client.post(TEXT, json={"prompt": "x"}, headers=headers).status_code == 200
    body: Any = client.get(f"{USAGE}/requests/mine", headers=ADMIN).json
    assert body["request_id"] == "mine"
    assert [(one["attempt"], one["status"]) for one in body["attempts"]] == [
        (1, "upstream_unavailable"),
        (2, "ok"),
        (0, "hit"),
    ]
    assert {one["tag"] for one in body["attempts"]} == {"news"}
    assert client.get(f"{USAGE}/requests/other", headers=ADMIN).json == {"request_id": "other", "attempts": []}


def test_a_fallback_stands_in_the_ledger(make_app: Callable[..., Api], gemini: ScriptedGemini) -> None:
    """Which model was asked for, which answered, why; paid and cached."""
    gemini.answers(status(404), text("fine"))
    app = make_app(gemini_fallback_models="gemini-3.1-flash-lite")
    for _ in range(2):
        app.test_client().post(TEXT, json={"prompt": "x"})
    app.service.ledger.flush()
    rows = [(row.status, row.requested_model, row.model, row.fallback) for row in app.service.ledger.export(0, 4e9)]
    first, following = "gemini-2.5-flash-lite", "gemini-3.1-flash-lite"
    assert rows == [
        ("model_unavailable", first, first, ""),
        ("ok", first, following, "unavailable"),
        ("hit", first, following, "unavailable"),
    ]
    assert groups(app.test_client(), "group_by=requested_model", {}) == {first: 2}


def test_a_key_sees_what_it_may_and_what_it_did(make_app: Callable[..., Api], tmp_path: Path) -> None:
    """Its limits with what remains, its budgets, its own usage of the day and of the month."""
    digest = sha256(b"alice-secret").hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[[key]]\nname = "alice"\nsha256 = "{digest}"\nrate_limits = "10/minute"\nmonthly_budget_usd = 2\n'
        'models = ["gemini-2.5-flash-lite"]\nexpires = 2099-01-31\n'
    )
    app = make_app(api_keys_file=str(keys), api_keys="bob:bob-secret", daily_budget_usd="1", rate_limits="5/hour")
    client = app.test_client()
    paid = [client.post(TEXT, json={"prompt": prompt}, headers=ALICE) for prompt in "aab"]
    client.post(TEXT, json={"prompt": "c"}, headers=BOB)
    mine: Any = client.get("/api/v1/me", headers=ALICE).json
    cost = sum(int(answer.headers["X-Cost-Nanodollars"]) for answer in paid) / 1e9
    assert (mine["key"], mine["admin"], mine["models"]) == ("alice", False, ["gemini-2.5-flash-lite"])
    assert mine["expires"].startswith("2099-01-31")
    assert mine["rate_limits"] == [{"limit": 10, "window_seconds": 60, "remaining": 7}]
    assert [(budget["scope"], budget["period"], budget["limit"]) for budget in mine["budgets"]] == [
        ("service", "day", 1.0),
        ("key", "month", 2.0),
    ]
    assert mine["budgets"][1]["spent"] == pytest.approx(cost)
    for period in ("today", "this_month"):
        assert (mine[period]["total_requests"], mine[period]["cached_requests"]) == (3, 1)
        assert mine[period]["total_cost"] == pytest.approx(cost)
    assert client.get("/api/v1/me", headers=BOB).json["today"]["total_requests"] == 1  # type: ignore[index]
    looks = client.get("/api/v1/me", headers=ALICE)
    assert looks.json["rate_limits"][0]["remaining"] == 7  # type: ignore[index]


def test_without_keys_the_view_is_everybodys(make_app: Callable[..., Api]) -> None:
    """The service is open, so nothing is private."""
    client = make_app().test_client()
    client.post(TEXT, json={"prompt": "x"})
    mine: Any = client.get("/api/v1/me").json
    assert (mine["key"], mine["today"]["total_requests"], mine["budgets"]) == (None, 1, [])


def test_a_key_is_bound_to_its_models(make_app: Callable[..., Api], tmp_path: Path, gemini: ScriptedGemini) -> None:
    """`models` of the keys file; another one is refused with those that are."""
    digest = sha256(b"alice-secret").hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "alice"\nsha256 = "{digest}"\nmodels = ["gemini-3.8-flash"]\n')
    client = make_app(api_keys_file=str(keys)).test_client()
    assert client.post(TEXT, json={"prompt": "x"}, headers=ALICE).headers["X-Model"] == "gemini-3.8-flash"
    refused = client.post(TEXT, json={"prompt": "x", "model": "gemini-2.5-flash-lite"}, headers=ALICE)
    assert refused.json["details"][0]["message"] == "must be one of gemini-3.8-flash"  # type: ignore[index]


def test_a_budget_says_when_it_is_used_up_at_this_pace(
    make_app: Callable[..., Api], gemini: ScriptedGemini, clock: FakeClock
) -> None:
    """0.4 of 0.9 thousandths are gone after six hours of the day: the rest is gone at half past one."""
    clock.advance(86_400 - time.time() % 86_400 + 6 * 3600)
    client = make_app(daily_budget_usd="0.0009", monthly_budget_usd="1000").test_client()
    gemini.answers(usage(thoughts=1000))
    client.post(TEXT, json={"prompt": "x"})
    stats: Any = client.get("/stats").json
    budget = stats["budget"]
    assert budget["spent"] == pytest.approx(0.0004, rel=0.02)
    hours = 6 * budget["limit"] / budget["spent"]
    midnight = datetime.fromisoformat(budget["ends_at"]) - timedelta(days=1)
    expected = midnight + timedelta(hours=hours)
    assert abs(datetime.fromisoformat(budget["used_up_at"]) - expected) < timedelta(minutes=1)
    assert (midnight.hour, midnight.minute) == (0, 0)
    assert stats["monthly_budget"]["used_up_at"] is None


def test_stats_name_the_next_price_of_a_model(make_app: Callable[..., Api], tmp_path: Path) -> None:
    """The soonest entry of the table that begins after today."""
    rows = "".join(
        f'[[price]]\nmodel = "gemini-2.5-flash-lite"\nfrom = {day}\ninput = {rate}\ncached_input = 0\noutput = 1\n'
        for day, rate in (("2020-01-01", 1), ("2190-01-01", 3), ("2191-01-01", 4))
    )
    (tmp_path / "table.toml").write_text(rows, encoding="utf-8")
    stats: Any = make_app(prices_file=str(tmp_path / "table.toml")).test_client().get("/stats").json
    model = stats["models"][0]
    assert (model["input_price"], model["next_price"]) == (
        1,
        {"since": "2190-01-01", "input_price": 3, "output_price": 1},
    )
