"""The HTTP edge: every answer in one shape, with all its headers, whatever went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import Api
from mtllm.domain.completion import Completion, Origin
from mtllm.domain.errors import UpstreamError
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini, blocked_prompt, finished, no_usage, status, text

TEXT = "/api/v1/generate/text"
CODE = "/api/v1/generate/code"
CLASSIFY = "/api/v1/classify/text"
MakeApp = Callable[..., Api]


def code_of(answer: TestResponse) -> str:
    """The code of an error answer, once its shape is seen to be right."""
    body = answer.json
    assert body is not None
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert isinstance(body["error"], str)
    assert "X-Cost-Overall" in answer.headers
    return str(body["code"])


# Errors


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", "/nowhere", {}, (404, "not_found")),
        ("GET", TEXT, {}, (405, "method_not_allowed")),
        ("POST", "/health", {}, (405, "method_not_allowed")),
        ("POST", TEXT, {"data": b"prompt=x"}, (415, "unsupported_media_type")),
        ("POST", TEXT, {"data": b"{}", "content_type": "text/plain"}, (415, "unsupported_media_type")),
        ("POST", TEXT, {"data": b'{"prompt": "' + b"x" * 3_000_000 + b'"}', "content_type": "application/json"},
         (413, "payload_too_large")),
        ("POST", TEXT, {"json": {"prompt": "x" * 100_001}}, (400, "invalid_request")),
        ("GET", "/api/v1/usage?group_by=colour", {}, (400, "invalid_request")),
        ("GET", "/api/v1/usage?from=yesterday", {}, (400, "invalid_request")),
        ("GET", "/api/v1/usage?frm=2026-11-01", {}, (400, "invalid_request")),
    ],
)  # fmt: skip
def test_every_refusal_has_the_same_shape(
    client: FlaskClient, method: str, path: str, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    """JSON with sentence, code and request id, and all headers."""
    answer = client.open(path, method=method, **options)
    assert (answer.status_code, code_of(answer)) == expected


def test_405_says_what_is_allowed(client: FlaskClient) -> None:
    """In `Allow` (RFC 9110)."""
    assert client.get(TEXT).headers["Allow"] == "OPTIONS, POST"


def test_each_bad_parameter_is_named(client: FlaskClient) -> None:
    """All of them at once: a misspelt `from` would bring figures of another period."""
    answer = client.get("/api/v1/usage?group_by=colour&from=yesterday&until=now")
    assert answer.json is not None
    assert {detail["field"] for detail in answer.json["details"]} == {"group_by", "from", "until"}


def test_each_bad_field_is_named(client: FlaskClient) -> None:
    """All of them at once."""
    answer = client.post(CLASSIFY, json={"text": 1, "categories": ["a", "a"], "more": True})
    assert answer.json is not None
    assert {detail["field"] for detail in answer.json["details"]} == {"text", "categories", "more"}


def test_a_defect_is_a_500_without_its_story(app: Api, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client learns a sentence; the error log has the kind of the exception."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("canary /srv/secret/path")

    monkeypatch.setattr(app.service.completions, "complete", fail)
    answer = client.post(TEXT, json={"prompt": "x"})
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert "canary" not in answer.text
    app.service.logger.flush()
    assert "ValueError" in (app.settings.log_dir / "api_errors.log").read_text()


def test_a_shared_error_is_raised_by_nobody(app: Api, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers of one flight get one error object; a raise in each of their threads would make its traceback grow."""
    shared = UpstreamError()
    ended = Completion(Origin.NONE, error=shared)
    monkeypatch.setattr(app.service.completions, "complete", lambda *_args, **_deadline: ended)
    answers = [client.post(TEXT, json={"prompt": "hello"}) for _ in range(2)]
    assert [code_of(answer) for answer in answers] == ["upstream_error"] * 2
    assert shared.__traceback__ is None


@pytest.mark.parametrize(("body", "status"), [(b'{"prompt": 1}', 400), (b"no JSON", 400), (b'{"prompt": "x"}', 200)])
def test_every_body_that_was_read_is_logged_with_its_size(
    app: Api, client: FlaskClient, body: bytes, status: int
) -> None:
    """A refused request's body counts too."""
    answer = client.post(TEXT, data=body, content_type="application/json")
    app.service.logger.flush()
    [line] = (app.settings.log_dir / "api_requests.log").read_text().splitlines()
    assert (answer.status_code, json.loads(line)["request_bytes"]) == (status, len(body))


def test_a_billed_failure_shows_its_cost(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Gemini refused the prompt, and charged for reading it."""
    gemini.answers(blocked_prompt())
    answer = client.post(TEXT, json={"prompt": "x"})
    assert (answer.status_code, code_of(answer)) == (422, "content_blocked")
    assert int(answer.headers["X-Cost-Nanodollars"]) == gemini.delivered.prompt * 100 > 0


def test_without_a_key_tasks_say_what_to_set(make_app: MakeApp) -> None:
    """503 `not_configured`; bad input is still told first, and health is well. Nothing claims to have been paid."""
    client = make_app(google_api_key="").test_client()
    answer = client.post(TEXT, json={"prompt": "x"})
    assert (answer.status_code, code_of(answer)) == (503, "not_configured")
    assert answer.headers["Server-Timing"].startswith("cache;desc=none, ")
    assert "GOOGLE_API_KEY" in answer.text
    assert client.post(TEXT, json={}).status_code == 400
    assert client.get("/health").status_code == 200


def test_an_unknown_model_names_the_setting(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """502 `model_unavailable`."""
    gemini.answers(status(404))
    answer = client.post(TEXT, json={"prompt": "x"})
    assert (answer.status_code, code_of(answer)) == (502, "model_unavailable")
    assert "GEMINI_MODEL" in answer.text


# Tasks


def test_a_prompt_goes_to_the_model_unchanged(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Special tokens, markup and control characters included."""
    prompt = "<|endoftext|> <b>'; DROP TABLE x --\n\t\u202e \U0001f600"
    gemini.answers(no_usage())
    answer = client.post(TEXT, json={"prompt": prompt})
    assert answer.status_code == 200
    assert gemini.calls[0].prompt == prompt


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx\n\ny\n```\n", "x\n\ny"),
        ("x = 1", "x = 1"),
        ("Here:\n```\nx\n```", "Here:\n```\nx\n```"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
    ],
)
def test_one_fence_around_all_of_the_code_is_unwrapped(
    client: FlaskClient, gemini: ScriptedGemini, said: str, code: str
) -> None:
    """Anything else is passed on as it is."""
    gemini.answers(text(said))
    answer = client.post(CODE, json={"prompt": "x", "language": "python"})
    assert answer.json is not None
    assert answer.json["generated_code"] == code


@pytest.mark.parametrize("label", ["a,b", 'say "hi"', "two\nlines", "\U0001f600", "  padded ", "[1]", "null"])
def test_labels_may_hold_anything(client: FlaskClient, gemini: ScriptedGemini, label: str) -> None:
    """The answer is the label as given."""
    gemini.answers(text(label))
    answer = client.post(CLASSIFY, json={"text": "x", "categories": ["other", label]})
    assert answer.json is not None
    assert answer.json["classification"] == label
    assert gemini.calls[0].labels == ("other", label)


def test_a_truncated_answer_is_kept_since_its_limit_is_in_the_key(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """`finish_reason` says so."""
    gemini.answers(text("half an ans", finish="MAX_TOKENS"))
    body = {"prompt": "x", "max_output_tokens": 4}
    first, second = client.post(TEXT, json=body), client.post(TEXT, json=body)
    assert first.json is not None
    assert first.json["finish_reason"] == "max_tokens"
    assert second.headers["X-Cached"] == "true"


def test_a_limit_that_left_no_text_says_so(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """422, billed, not kept."""
    gemini.answers(finished("MAX_TOKENS", thoughts=64))
    answer = client.post(TEXT, json={"prompt": "x", "max_output_tokens": 64})
    assert (answer.status_code, code_of(answer)) == (422, "max_output_tokens_too_small")
    assert int(answer.headers["X-Tokens-Output"]) == 64


# Headers


def test_the_callers_request_id_is_kept_where_it_is_harmless(client: FlaskClient) -> None:
    """Else there is a new one."""
    assert client.get("/health", headers={"X-Request-ID": "a.b-C_9"}).headers["X-Request-ID"] == "a.b-C_9"
    for bad in ("a b", "x" * 129, "é", "a/b", ""):
        assert client.get("/health", headers={"X-Request-ID": bad}).headers["X-Request-ID"] != bad


def test_the_trace_id_is_on_every_line(app: Api, client: FlaskClient) -> None:
    """Of a valid traceparent; a bad one is ignored."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    client.post(TEXT, json={"prompt": "x"}, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    client.get("/nowhere", headers={"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})
    app.service.logger.flush()
    lines = [json.loads(line) for log in app.settings.log_dir.glob("*.log") for line in log.read_text().splitlines()]
    assert {line.get("trace_id") for line in lines if line["task"] == "text"} == {trace}
    assert {line.get("trace_id") for line in lines if line["task"] is None} == {None}


@pytest.mark.parametrize(
    ("cache_control", "cached", "status_line"),
    [
        (None, "true", "mtllm; hit; ttl=1790"),
        ("no-cache", "false", "mtllm; fwd=request; stored"),
        ("no-store", "false", "mtllm; fwd=request"),
        ("max-age=9", "false", "mtllm; fwd=miss; stored"),
        ("max-age=10, strange", "true", "mtllm; hit; ttl=1790"),
        ("max-age=never", "true", "mtllm; hit; ttl=1790"),
    ],
)
def test_cache_control(
    client: FlaskClient, clock: FakeClock, cache_control: str | None, cached: str, status_line: str
) -> None:
    """RFC 9111 in, RFC 9211 out."""
    client.post(TEXT, json={"prompt": "x"})
    clock.advance(10)
    headers = {"Cache-Control": cache_control} if cache_control else {}
    answer = client.post(TEXT, json={"prompt": "x"}, headers=headers)
    assert (answer.headers["X-Cached"], answer.headers["Cache-Status"]) == (cached, status_line)
    assert answer.headers.get("Age") == ("10" if cached == "true" else None)


def test_only_if_cached_is_a_free_question(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """504 `not_cached` on a miss."""
    answer = client.post(TEXT, json={"prompt": "x"}, headers={"Cache-Control": "only-if-cached"})
    assert (answer.status_code, code_of(answer)) == (504, "not_cached")
    assert gemini.count == 0


def test_limits_are_told_with_every_task_answer(client: FlaskClient) -> None:
    """In both spellings, for the window with least remaining."""
    for left in (59, 58):
        headers = client.post(TEXT, json={"prompt": "x"}).headers
        assert headers["X-RateLimit-Limit"] == "60"
        assert headers["X-RateLimit-Remaining"] == str(left)
        assert headers["RateLimit"].startswith(f'"60-in-60";r={left};t=')
        assert headers["RateLimit-Policy"] == '"60-in-60";q=60;w=60, "1000-in-3600";q=1000;w=3600'
    assert "X-RateLimit-Limit" not in client.get("/health").headers


def test_bad_requests_cost_quota_and_refused_ones_do_not(make_app: MakeApp, clock: FakeClock) -> None:
    """401, 403 and 429 are free; every other outcome of a task counts."""
    client = make_app(rate_limits="2/minute", api_keys="alice:secret").test_client()
    key = {"X-API-Key": "secret"}
    assert [client.post(TEXT, json={}).status_code for _ in range(5)] == [401] * 5
    assert [client.post(TEXT, json={}, headers=key).status_code for _ in range(4)] == [400, 400, 429, 429]
    clock.advance(60)
    assert client.post(TEXT, json={}, headers=key).status_code == 400


def test_the_overall_cost_never_decreases(client: FlaskClient) -> None:
    """It counts from the start of the process and includes the request that shows it."""
    overall = [client.post(TEXT, json={"prompt": p}).headers["X-Cost-Overall"] for p in ("a", "a", "b" * 4000)]
    assert overall[0] == overall[1] < overall[2]
    assert client.get("/health").headers["X-Cost-Overall"] == overall[2]


# CORS


def test_a_page_of_an_allowed_origin_may_read_every_header(make_app: MakeApp) -> None:
    """A forbidden one gets no CORS header at all."""
    client = make_app(cors_origins="https://good.example,https://fine.example").test_client()
    good = client.get("/health", headers={"Origin": "https://good.example"}).headers
    bad = client.get("/health", headers={"Origin": "https://bad.example"}).headers
    assert good["Access-Control-Allow-Origin"] == "https://good.example"
    assert "Origin" in good["Vary"]
    assert "Access-Control-Allow-Origin" not in bad


def test_a_preflight_is_answered_without_a_key(make_app: MakeApp) -> None:
    """With the configured methods and headers."""
    client = make_app(api_keys="alice:secret", cors_methods="POST", cors_headers="Content-Type").test_client()
    asked = {
        "Origin": "https://any.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-other",
    }
    answer = client.options(TEXT, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert answer.headers["Access-Control-Allow-Headers"].lower() == "content-type"


# Access


@pytest.fixture
def guarded(make_app: MakeApp) -> FlaskClient:
    """A service with two keys and an admin."""
    return make_app(api_keys="alice:a-secret,bob:b-secret", admin_api_key="admin-secret").test_client()


@pytest.mark.parametrize(
    ("method", "path", "anonymous", "with_key", "with_admin"),
    [
        ("GET", "/health", 200, 200, 200),
        ("GET", "/api/v1/health/ready", 200, 200, 200),
        ("POST", TEXT, 401, 200, 200),
        ("GET", "/stats", 401, 200, 200),
        ("GET", "/api/v1/usage", 401, 200, 200),
        ("GET", "/api/v1/usage?group_by=client", 401, 403, 200),
        ("GET", "/api/v1/usage/export", 401, 403, 200),
        ("DELETE", "/api/v1/cache", 401, 403, 200),
        ("GET", "/nowhere", 404, 404, 404),
    ],
)
def test_who_may_do_what(
    guarded: FlaskClient, method: str, path: str, anonymous: int, with_key: int, with_admin: int
) -> None:
    """The access table."""
    body: dict[str, Any] = {"json": {"prompt": "x"}} if method == "POST" else {}

    def asked(headers: dict[str, str]) -> int:
        return guarded.open(path, method=method, headers=headers, **body).status_code

    assert asked({}) == anonymous
    assert asked({"X-API-Key": "wrong"}) == anonymous
    assert asked({"Authorization": "Bearer a-secret"}) == with_key
    assert asked({"X-API-Key": "admin-secret"}) == with_admin


def test_without_an_admin_key_its_doors_are_shut(client: FlaskClient) -> None:
    """Also where everything else is open."""
    answer = client.delete("/api/v1/cache")
    assert (answer.status_code, code_of(answer)) == (403, "forbidden")


def test_a_hostile_path_is_refused_where_the_operator_says_so(make_app: MakeApp) -> None:
    """403 with SECURITY_MODE=block; a prompt never."""
    client = make_app(security_mode="block").test_client()
    assert client.get("/.env").status_code == 403
    assert client.post(TEXT, json={"prompt": "' OR 1=1; DROP TABLE users --"}).status_code == 200


def test_the_cache_scope_keeps_keys_apart(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """With CACHE_SCOPE=key nobody gets another's answer."""
    client = make_app(api_keys="alice:a,bob:b", cache_scope="key").test_client()
    cached = [client.post(TEXT, json={"prompt": "x"}, headers={"X-API-Key": key}).headers["X-Cached"] for key in "abab"]
    assert cached == ["false", "false", "true", "true"]


# Money


def test_a_budget_is_never_passed_and_402_says_when_it_resets(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """The upper bound of a call must fit, hits are free."""
    client = make_app(daily_budget_usd="0.001", rate_limits="").test_client()
    codes = [client.post(TEXT, json={"prompt": f"{n}", "max_output_tokens": 1000}).status_code for n in range(50)]
    assert set(codes) == {200, 402}
    refused = client.post(TEXT, json={"prompt": "more", "max_output_tokens": 1000})
    assert code_of(refused) == "budget_exceeded"
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    assert client.post(TEXT, json={"prompt": "0", "max_output_tokens": 1000}).headers["X-Cached"] == "true"
    assert gemini.delivered.candidates * 400 + gemini.delivered.prompt * 100 <= 1_000_000


def test_a_request_above_the_whole_budget_is_not_told_to_wait(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """402 without Retry-After, which names what it needs, what there is, and what helps; Gemini is not asked."""
    client = make_app(daily_budget_usd="0.0001").test_client()
    refused = client.post(TEXT, json={"prompt": "long", "max_output_tokens": 8192})
    assert (refused.status_code, code_of(refused)) == (402, "budget_exceeded")
    assert "Retry-After" not in refused.headers
    details = {detail["field"]: detail["message"] for detail in refused.json["details"]}  # type: ignore[index]
    assert (details["scope"], details["limit"], details["spent"]) == ("service", "0.000100000", "0.000000000")
    assert float(details["needed"]) > float(details["limit"])
    assert details["helps"] == "lower max_output_tokens"
    assert gemini.count == 0


def test_what_the_service_spent_is_told_to_known_keys_alone(guarded: FlaskClient) -> None:
    """X-Cost-Overall is others' spending, too; without keys the service is open and everybody is told."""
    assert "X-Cost-Overall" in guarded.post(TEXT, json={"prompt": "x"}, headers={"X-API-Key": "a-secret"}).headers
    assert "X-Cost-Overall" not in guarded.get("/health").headers
    assert "X-Cost-Overall" not in guarded.post(TEXT, json={"prompt": "x"}, headers={"X-API-Key": "wrong"}).headers


def test_usage_and_export_agree_with_stats(guarded: FlaskClient) -> None:
    """By group and row by row."""
    admin = {"X-API-Key": "admin-secret"}
    for prompt, key in (("x", "a-secret"), ("y", "b-secret"), ("x", "b-secret")):
        guarded.post(TEXT, json={"prompt": prompt}, headers={"X-API-Key": key})
    total = guarded.get("/stats", headers=admin).json["overall_stats"]["total_cost_all_time"]  # type: ignore[index]
    usage = guarded.get("/api/v1/usage?group_by=client", headers=admin).json
    assert usage is not None
    assert {group["key"]: group["total_requests"] for group in usage["groups"]} == {"alice": 1, "bob": 2}
    assert sum(group["total_cost"] for group in usage["groups"]) == pytest.approx(total)
    lines = guarded.get("/api/v1/usage/export?format=jsonl", headers=admin).text.splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(float(row["total_cost"]) for row in rows) == pytest.approx(total)
    assert [row["status"] for row in rows] == ["ok", "ok", "hit"]
    assert len(guarded.get("/api/v1/usage/export", headers=admin).text.splitlines()) == 4


def test_an_unpriced_model_is_marked(make_app: MakeApp) -> None:
    """In the body and in stats; with a budget it is refused."""
    client = make_app(gemini_model="strange-model").test_client()
    answer = client.post(TEXT, json={"prompt": "x"})
    assert answer.json is not None
    assert answer.json["unpriced"] is True
    assert client.get("/stats").json["overall_stats"]["unpriced_requests_all_time"] == 1  # type: ignore[index]
    careful = make_app(gemini_model="strange-model", daily_budget_usd="1").test_client()
    refused = careful.post(TEXT, json={"prompt": "y"})
    assert (refused.status_code, code_of(refused)) == (503, "not_configured")


def test_the_cache_can_be_emptied(guarded: FlaskClient) -> None:
    """By the admin, who learns how much was in it."""
    keys = {"X-API-Key": "admin-secret"}
    guarded.post(TEXT, json={"prompt": "x"}, headers=keys)
    assert guarded.delete("/api/v1/cache", headers=keys).json == {"deleted": 1}
    assert guarded.post(TEXT, json={"prompt": "x"}, headers=keys).headers["X-Cached"] == "false"


def test_the_cache_survives_a_restart(make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock) -> None:
    """What was asked before is free after."""
    before = make_app()
    before.test_client().post(TEXT, json={"prompt": "x"})
    before.service.close()
    clock.advance(100)
    after = make_app().test_client().post(TEXT, json={"prompt": "x"})
    assert (after.headers["X-Cached"], after.headers["Age"]) == ("true", "100")


@pytest.mark.parametrize(("ttl", "cached"), [("1800", "true"), ("150", "true"), ("100", "false"), ("0", "false")])
def test_a_lowered_time_to_live_holds_for_answers_of_before(
    make_app: MakeApp, clock: FakeClock, ttl: str, cached: str
) -> None:
    """Whoever shortens or ends the life of answers at a restart is not served older ones."""
    before = make_app()
    before.test_client().post(TEXT, json={"prompt": "x"})
    before.service.close()
    clock.advance(100)
    after = make_app(response_cache_ttl_seconds=ttl).test_client().post(TEXT, json={"prompt": "x"})
    assert after.headers["X-Cached"] == cached
    if cached == "true":
        assert f"ttl={int(ttl) - 100}" in after.headers["Cache-Status"]


def test_another_endpoint_is_not_served_the_formers_answers(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Whoever tries a mock first gets no mock's words afterwards; back at the mock, they are still there."""
    with ScriptedGemini() as other:
        for endpoint, cached in ((gemini.url, "false"), (other.url, "false"), (gemini.url, "true")):
            app = make_app(gemini_api_endpoint=endpoint)
            assert app.test_client().post(TEXT, json={"prompt": "x"}).headers["X-Cached"] == cached
            app.service.close()


# Draining and readiness


def test_a_draining_service_refuses_new_tasks(app: Api, client: FlaskClient) -> None:
    """503 `draining`, and readiness says why; health stays well."""
    app.lifecycle.draining = True
    answer = client.post(TEXT, json={"prompt": "x"})
    assert (answer.status_code, code_of(answer)) == (503, "draining")
    assert int(answer.headers["Retry-After"]) >= 1
    ready = client.get("/api/v1/health/ready")
    assert ready.status_code == 503
    assert ready.json is not None
    assert ready.json["checks"]["draining"]["status"] == "fail"
    assert client.get("/health").status_code == 200


def test_an_open_breaker_is_degraded_and_not_unready(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Stored answers can still be served."""
    gemini.answers(*[status(500)] * 10)
    for number in range(5):
        client.post(TEXT, json={"prompt": f"{number}"})
    ready = client.get("/api/v1/health/ready")
    assert ready.json is not None
    assert (ready.status_code, ready.json["status"]) == (200, "degraded")
    assert ready.json["checks"]["breaker"]["status"] == "degraded"


def test_a_full_disk_is_unready(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the ledger fails, with how much is left."""
    monkeypatch.setattr("mtllm.wiring.LEAST_FREE_BYTES", 10**18)
    ready = client.get("/api/v1/health/ready")
    assert ready.json is not None
    assert ready.status_code == 503
    assert ready.json["checks"]["disk"]["status"] == "fail"
    assert "bytes are free" in ready.json["checks"]["disk"]["reason"]


@pytest.mark.parametrize(("second", "status_code", "calls"), [("MAX_TOKENS", 422, 2), ("STOP", 200, 2)])
def test_a_category_cut_by_the_token_limit_is_asked_for_once_more(
    make_app: MakeApp, gemini: ScriptedGemini, second: str, status_code: int, calls: int
) -> None:
    """It is never handed out or kept: it may be the beginning of a longer one."""
    gemini.answers(text("positive", finish="MAX_TOKENS"), text("positive", finish=second))
    asked = {"text": "It was strong.", "categories": ["negative", "positive", "positive-strong"]}
    answer = make_app().test_client().post("/api/v1/classify/text", json=asked)
    assert (answer.status_code, gemini.count) == (status_code, calls)
    if status_code == 422:
        assert code_of(answer) == "max_output_tokens_too_small"


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/stats", "/usage"])
def test_what_is_watched_has_a_short_path_and_one_below_the_api(client: FlaskClient, path: str) -> None:
    """Both answer alike, and HEAD as GET without a body."""
    short, long = client.get(path), client.get(f"/api/v1{path}")
    head = client.head(path)
    assert (short.status_code, long.status_code, head.status_code) == (200, 200, 200)
    assert short.json is not None
    assert long.json is not None
    assert short.json.keys() == long.json.keys()
    assert head.data == b""


def test_usage_by_client_is_the_admins_on_both_paths(make_app: Callable[..., Api]) -> None:
    """An alias opens nothing."""
    client = make_app(api_keys="alice:a-secret-of-some-length").test_client()
    key = {"X-API-Key": "a-secret-of-some-length"}
    for path in ("/usage", "/api/v1/usage"):
        assert client.get(path).status_code == 401
        assert client.get(f"{path}?group_by=client", headers=key).status_code == 403
    assert client.get("/health/ready").status_code == 200


def test_head_on_a_task_is_405(client: FlaskClient) -> None:
    """A task has no answer before it is asked for."""
    answer = client.head(TEXT)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "OPTIONS, POST")


def test_options_of_everything_is_404(client: FlaskClient) -> None:
    """`OPTIONS *` asks for the server and not for a resource; nobody but scanners does."""
    answer = client.open("*", method="OPTIONS")
    assert (answer.status_code, code_of(answer)) == (404, "not_found")


def test_short_secrets_are_told_at_the_start(make_app: Callable[..., Api], capsys: pytest.CaptureFixture[str]) -> None:
    """By the names of their keys; the secrets themselves are shown to nobody."""
    make_app(api_keys="alice:s,bob:a-secret-of-some-length", admin_api_key="short")
    told = capsys.readouterr().err
    assert "fewer than 16 characters can be guessed: alice, ADMIN_API_KEY." in told
    assert "a-secret-of-some-length" not in told
