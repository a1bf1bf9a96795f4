"""The service as a story, through HTTP; `python test_unit.py` runs it with all the tests of the parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from mtllm.project import require_packages

if __name__ == "__main__":
    require_packages()  # before the imports that would fail without a word of help

import pytest
from flask.testing import FlaskClient

from app import Api
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini, status, text

HERE = Path(__file__).resolve().parent
TEXT = "/api/v1/generate/text"
CODE = "/api/v1/generate/code"
CLASSIFY = "/api/v1/classify/text"


class TestLRUCache:
    """A repeated question costs nothing."""

    def test_the_second_answer_comes_from_the_cache(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """The same question twice is one call to Gemini and one and the same answer."""
        first = client.post(TEXT, json={"prompt": "Why is the sky blue?"})
        second = client.post(TEXT, json={"prompt": "Why is the sky blue?"})
        assert first.json == second.json
        assert (first.headers["X-Cached"], second.headers["X-Cached"]) == ("false", "true")
        assert gemini.count == 1

    def test_an_answer_expires(self, client: FlaskClient, gemini: ScriptedGemini, clock: FakeClock) -> None:
        """After RESPONSE_CACHE_TTL_SECONDS the question is asked anew."""
        client.post(TEXT, json={"prompt": "hello"})
        clock.advance(1800)
        assert client.post(TEXT, json={"prompt": "hello"}).headers["X-Cached"] == "false"
        assert gemini.count == 2

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ((TEXT, {"prompt": "x"}), (CODE, {"prompt": "x"})),
            ((TEXT, {"prompt": "x"}), (TEXT, {"prompt": "x", "temperature": 1})),
            ((CODE, {"prompt": "x"}), (CODE, {"prompt": "x", "language": "go"})),
            (
                (CLASSIFY, {"text": "x", "categories": ["a,b", "c"]}),
                (CLASSIFY, {"text": "x", "categories": ["a", "b,c"]}),
            ),
            ((CLASSIFY, {"text": "x", "categories": ["a", "b"]}), (CLASSIFY, {"text": "x", "categories": ["b", "a"]})),
        ],
    )
    def test_different_questions_never_share_an_answer(
        self,
        client: FlaskClient,
        gemini: ScriptedGemini,
        one: tuple[str, dict[str, object]],
        other: tuple[str, dict[str, object]],
    ) -> None:
        """Whatever changes the answer is part of the key."""
        for path, body in (one, other):
            assert client.post(path, json=body).headers["X-Cached"] == "false"
        assert gemini.count == 2


class TestCostAccuracy:
    """Every answer says what it cost, and the sums agree."""

    def test_a_paid_answer_costs_what_gemini_counted(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """Tokens are Gemini's, thinking included; prices are the default model's $0.10 and $0.40 per million."""
        gemini.answers(text("blue", thoughts=100))
        headers = client.post(TEXT, json={"prompt": "Why?"}).headers
        used = gemini.delivered
        assert int(headers["X-Tokens-Output"]) == used.candidates + 100
        assert int(headers["X-Cost-Nanodollars"]) == used.prompt * 100 + (used.candidates + 100) * 400

    def test_the_documents_example(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """425 output tokens at $0.40 per million cost 0.000170."""
        gemini.answers(text("x", thoughts=424))
        assert client.post(TEXT, json={"prompt": "q"}).headers["X-Cost-Output"] == "0.000170"

    def test_stats_add_up(self, client: FlaskClient) -> None:
        """The sum of what callers were told is what /stats tells."""
        prompts = ["a", "b", "a", "c", "a"]
        told = sum(int(client.post(TEXT, json={"prompt": p}).headers["X-Cost-Nanodollars"]) for p in prompts)
        stats = client.get("/stats").json
        assert stats is not None
        assert stats["overall_stats"]["total_cost_all_time"] == told / 1e9
        assert stats["usage_stats"]["last_hour"]["total_requests"] == 5
        assert stats["usage_stats"]["last_hour"]["cached_requests"] == 2


class TestResponseHeaders:
    """All documented headers are on every response."""

    NAMES = (
        "X-Request-ID", "X-Cost-Input", "X-Cost-Output", "X-Cost-Total", "X-Cost-Overall", "X-Cost-Nanodollars",
        "X-Tokens-Input", "X-Tokens-Output", "X-Cached",
    )  # fmt: skip

    @pytest.mark.parametrize("path", ["/health", "/api/v1/health", "/stats", "/api/v1/stats", TEXT, "/api/v1/nowhere"])
    def test_every_response_has_them_and_browsers_may_read_them(self, client: FlaskClient, path: str) -> None:
        """Errors included: GET on a task is a 405, an unknown path a 404. CORS speaks to requests with an Origin."""
        headers = client.get(path, headers={"Origin": "https://page.example"}).headers
        assert [name for name in self.NAMES if name not in headers] == []
        exposed = headers["Access-Control-Expose-Headers"].split(", ")
        assert set(self.NAMES) <= set(exposed)

    def test_a_hit_is_free_and_says_what_it_saved(self, client: FlaskClient) -> None:
        """All three costs are 0 on a hit; the tokens are the stored answer's."""
        paid = client.post(TEXT, json={"prompt": "again"}).headers
        hit = client.post(TEXT, json={"prompt": "again"}).headers
        assert [hit[f"X-Cost-{part}"] for part in ("Input", "Output", "Total")] == ["0.000000"] * 3
        assert hit["X-Cost-Saved"] == paid["X-Cost-Total"]
        assert hit["X-Tokens-Output"] == paid["X-Tokens-Output"]
        assert hit["X-Cost-Overall"] == paid["X-Cost-Overall"]


class TestHealthAndStats:
    """The two endpoints an operator watches."""

    def test_health_is_the_documents(self, client: FlaskClient) -> None:
        """Exactly two keys; the timestamp is a number."""
        body = client.get("/api/v1/health").json
        assert body is not None
        assert body["status"] == "healthy"
        assert isinstance(body["timestamp"], float)
        assert len(body) == 2

    def test_stats_has_the_documents_keys(self, client: FlaskClient) -> None:
        """Also before the first request."""
        stats = client.get("/api/v1/stats").json
        assert stats is not None
        assert {"size", "max_size", "hit_ratio", "cache_hit_ratio"} <= set(stats["cache_stats"])
        assert set(stats["usage_stats"]) == {"last_hour", "last_24_hours", "last_30_days"}
        for window in stats["usage_stats"].values():
            assert {
                "period_hours", "total_requests", "cached_requests", "total_cost", "cost_savings_from_cache"
            } <= set(window)  # fmt: skip
        assert {"cache_size", "max_size"} <= set(stats["rate_limit_stats"])
        assert {
            "total_requests_all_time", "total_cost_all_time", "total_tokens_all_time", "cache_savings_all_time"
        } <= set(stats["overall_stats"])  # fmt: skip


class TestSecurity:
    """Bad input gets a clear error, hostile input a line in the audit log, and nothing leaks."""

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"", "invalid_json"),
            (b"{", "invalid_json"),
            (b"null", "invalid_request"),
            (b"[1]", "invalid_request"),
            (b'{"prompt": 7}', "invalid_request"),
            (b'{"prompt": ""}', "invalid_request"),
            (b'{"prompt": "x", "model": "y"}', "invalid_request"),
            (b'{"prompt": "x", "temperature": NaN}', "invalid_request"),
            (b'{"prompt": "\\ud800"}', "invalid_json"),
            (b'{"prompt": "\\u0000"}', "invalid_request"),
            (b"[" * 100_000, "invalid_json"),
        ],
    )
    def test_bad_bodies_are_400(self, client: FlaskClient, gemini: ScriptedGemini, body: bytes, code: str) -> None:
        """Each has its code, and nothing is asked of Gemini."""
        answer = client.post(TEXT, data=body, content_type="application/json")
        assert answer.status_code == 400
        assert answer.json is not None
        assert answer.json["code"] == code
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]
        assert gemini.count == 0

    def test_a_hostile_path_is_audited(self, app: Api, client: FlaskClient) -> None:
        """The finding is in security_audit.log with the request's id."""
        answer = client.get("/api/v1/../../etc/passwd")
        app.service.logger.flush()
        lines = (app.settings.log_dir / "security_audit.log").read_text().splitlines()
        assert answer.headers["X-Request-ID"] in {json.loads(line)["request_id"] for line in lines}

    def test_no_prompt_and_no_key_in_any_log(self, app: Api, client: FlaskClient) -> None:
        """Five files, and in none of them what must not be known."""
        client.post(TEXT, json={"prompt": "canary-prompt"}, headers={"Authorization": "Bearer canary-key"})
        app.service.logger.flush()
        written = {path.name: path.read_text() for path in app.settings.log_dir.glob("*.log")}
        assert len(written) == 5
        assert "canary" not in "".join(written.values())
        assert "AIza-test-key" not in "".join(written.values())


class TestPerformance:
    """Limits hold, and Gemini's bad days are answered fast and truly."""

    def test_the_limit_is_exact(self, make_app: Callable[..., Api], clock: FakeClock) -> None:
        """The sixth call in the window is refused, with the seconds after which it is not."""
        client = make_app(rate_limits="5/minute").test_client()
        codes = [client.post(TEXT, json={"prompt": "x"}).status_code for _ in range(6)]
        assert codes == [200] * 5 + [429]
        refused = client.post(TEXT, json={"prompt": "x"})
        clock.advance(float(refused.headers["Retry-After"]))
        assert client.post(TEXT, json={"prompt": "x"}).status_code == 200

    def test_health_is_not_limited(self, make_app: Callable[..., Api]) -> None:
        """A probe never meets a limit."""
        client = make_app(rate_limits="1/day").test_client()
        assert {client.get("/health").status_code for _ in range(10)} == {200}

    def test_gemini_over_quota_is_a_503_that_says_when(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """Retry-After is what Gemini asked for."""
        gemini.answers(status(429, retry_delay="45.8s"))
        answer = client.post(TEXT, json={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.json is not None
        assert answer.json["code"] == "upstream_unavailable"
        assert answer.headers["Retry-After"] == "46"


def run(arguments: list[str]) -> int:
    """This file and all the tests of the parts, from any working directory."""
    return int(pytest.main([str(HERE / "test_unit.py"), str(HERE / "tests"), f"--rootdir={HERE}", *arguments]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
