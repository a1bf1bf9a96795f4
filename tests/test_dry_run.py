"""`"dry_run": true`: what a request would cost, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from mtllm.emulator.models import parse_model
from tests.support.scripted_gemini import ScriptedGemini, text

TEXT, CODE, CLASSIFY = "/api/v1/generate/text", "/api/v1/generate/code", "/api/v1/classify/text"
CHAT = "/v1/chat/completions"
LABELS = {"text": "I love it", "categories": ["good", "bad"]}
MakeApp = Callable[..., Api]


def estimate(client: FlaskClient, path: str = TEXT, **body: Any) -> Any:
    """The body of a dry run."""
    answer = client.post(path, json={"dry_run": True, **(body or {"prompt": "What is the sea?"})})
    assert answer.status_code == 200, answer.json
    return answer.json


@pytest.fixture(params=["sdk", "rest"])
def client(request: pytest.FixtureRequest, make_app: MakeApp) -> FlaskClient:
    """A service, asked through either client of Gemini."""
    return make_app(gemini_client=request.param).test_client()


def test_tells_the_upper_bound_by_geminis_own_count(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """The real call's input costs just that, and its output at most that."""
    told = estimate(client)
    assert told == {
        "dry_run": True,
        "model": "gemini-2.5-flash-lite",
        "cached": False,
        "input_tokens": told["input_tokens"],
        "source": "gemini",
        "max_output_tokens": 2048,
        "cost": {
            "input": told["input_tokens"] * 1e-7,
            "output_max": 0.0008192,
            "total_max": pytest.approx(told["input_tokens"] * 1e-7 + 0.0008192),
            "nanodollars_max": told["input_tokens"] * 100 + 2048 * 400,
        },
        "budget": None,
    }
    real = client.post(TEXT, json={"prompt": "What is the sea?"})
    assert int(real.headers["X-Tokens-Input"]) == told["input_tokens"]
    assert int(real.headers["X-Cost-Nanodollars"]) <= told["cost"]["nanodollars_max"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CODE, {"prompt": "Reverse a string", "language": "python"}),
        (CLASSIFY, LABELS),
        (CHAT, {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]}),
    ],
)
def test_counts_all_that_is_sent(client: FlaskClient, path: str, body: dict[str, Any]) -> None:
    """Our own instruction and the conversation included."""
    told = estimate(client, path, **body)
    assert int(client.post(path, json=body).headers["X-Tokens-Input"]) == told["input_tokens"]


def test_buys_stores_reserves_and_counts_nothing(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Headers say 0, /stats knows no completion, the ledger no row."""
    app = make_app(daily_budget_usd="1")
    client = app.test_client()
    answer = client.post(TEXT, json={"prompt": "x", "dry_run": True})
    assert [answer.headers[name] for name in ("X-Cost-Nanodollars", "X-Tokens-Input", "X-Cached")] == [
        "0",
        "0",
        "false",
    ]
    assert gemini.count == 0
    stats: Any = client.get("/stats").json
    assert stats["usage_stats"]["last_hour"]["total_requests"] == 0
    assert (stats["cache_stats"]["hits"], stats["cache_stats"]["misses"]) == (0, 0)
    assert list(app.service.ledger.export(0, 4e9)) == []
    assert app.service.ledger.budget_state("service", app.clock()).reserved == 0


def test_knows_what_is_stored(client: FlaskClient) -> None:
    """A hit would cost nothing."""
    client.post(TEXT, json={"prompt": "x"})
    told = estimate(client, prompt="x")
    assert (told["cached"], told["cost"]["nanodollars_max"]) == (True, 0)
    assert client.post(TEXT, json={"prompt": "x"}).headers["X-Cached"] == "true"


def test_says_whether_it_fits_the_tightest_budget(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """As the reservation of the real request would."""
    gemini.answers(text("fine"))
    client = make_app(daily_budget_usd="0.0009", monthly_budget_usd="5").test_client()
    before = estimate(client, prompt="x")["budget"]
    assert (before["scope"], before["period"], before["limit"], before["fits"]) == ("service", "day", 0.0009, True)
    assert client.post(TEXT, json={"prompt": "x" * 400, "max_output_tokens": 2000}).status_code == 200
    small, large = (estimate(client, prompt="y", max_output_tokens=tokens)["budget"] for tokens in (100, 8000))
    assert (small["fits"], large["fits"]) == (True, False)
    assert client.post(TEXT, json={"prompt": "y", "max_output_tokens": 8000}).status_code == 402
    assert client.post(TEXT, json={"prompt": "y", "max_output_tokens": 100}).status_code == 200


def test_considers_the_fallback(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """The model that would answer, at its price, with room for its thoughts."""
    gemini.plays(parse_model("gemini-2.5-flash-lite=closed"))
    app = make_app(gemini_fallback_models="gemini-3.1-flash-lite")
    assert app.service.free_look.looked.wait(10)
    told = estimate(app.test_client())
    assert (told["model"], told["max_output_tokens"]) == ("gemini-3.1-flash-lite", 2048 + 1024)
    assert told["cost"]["output_max"] == pytest.approx((2048 + 1024) * 1.5e-6)


def test_estimates_where_gemini_cannot_be_asked(make_app: MakeApp) -> None:
    """tiktoken's count, and said so; without a key too."""
    client = make_app(google_api_key="").test_client()
    told = estimate(client, prompt="What is the sea?")
    assert (told["source"], told["input_tokens"]) == ("tiktoken", 6)


def test_is_refused_as_the_request_would_be(client: FlaskClient) -> None:
    """400 for what is not valid, a model that is not served included."""
    for body in ({"prompt": ""}, {"prompt": "x", "model": "gpt-9"}, {"prompt": "x", "dry_run": "yes"}):
        assert client.post(TEXT, json={"dry_run": True} | body).status_code == 400


def test_costs_a_place_in_the_rate_limit(make_app: MakeApp) -> None:
    """Like any request of a task."""
    client = make_app(rate_limits="2/minute").test_client()
    statuses = [client.post(TEXT, json={"prompt": "x", "dry_run": True}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
