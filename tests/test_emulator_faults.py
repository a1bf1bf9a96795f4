"""The emulator fails on demand: by magic prompts, and by shares of all calls."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mtllm.emulator import FAULTS, PER_DAY, PER_MINUTE, Emulator, OfflineGemini, read_order, read_share
from tests.support.gemini_client import GeminiClient, asking, events, said

HTTP_ERRORS = {
    "400": (400, "INVALID_ARGUMENT"),
    "401": (401, "UNAUTHENTICATED"),
    "403": (403, "PERMISSION_DENIED"),
    "404": (404, "NOT_FOUND"),
    "429": (429, "RESOURCE_EXHAUSTED"),
    "500": (500, "INTERNAL"),
    "503": (503, "UNAVAILABLE"),
    "504": (504, "DEADLINE_EXCEEDED"),
    "quota-day": (429, "RESOURCE_EXHAUSTED"),
    "unpaid": (429, "RESOURCE_EXHAUSTED"),
    "closed": (404, "NOT_FOUND"),
    "retired": (404, "NOT_FOUND"),
    "invalid-key": (400, "INVALID_ARGUMENT"),
    "leaked-key": (403, "PERMISSION_DENIED"),
    "region": (400, "FAILED_PRECONDITION"),
    "retry-after": (503, "UNAVAILABLE"),
}


@pytest.fixture
def client() -> Iterator[GeminiClient]:
    with Emulator() as emulator, GeminiClient(emulator.url) as client:
        yield client


def magic(order: str, **config: Any) -> dict[str, Any]:
    """Return a request whose prompt orders a fault."""
    return asking(f"Please. [[emulate: {order}]] Thank you.", **config)


def ordered(client: GeminiClient, order: str) -> Any:
    """Return the answer with status 200 to a magic prompt."""
    status, payload = client.post("generateContent", magic(order))
    assert status == 200
    return payload


def streamed(client: GeminiClient, order: str) -> list[Any]:
    """Return the events of the stream that a magic prompt gets."""
    return list(events(client.open("streamGenerateContent?alt=sse", magic(order))))


class TestErrors:
    @pytest.mark.parametrize("fault", HTTP_ERRORS)
    def test_each_error_is_googles(self, client: GeminiClient, fault: str) -> None:
        """Status, code and name agree, plain and streamed."""
        for action in ("generateContent", "streamGenerateContent?alt=sse"):
            status, payload = client.post(action, magic(fault))
            error = payload["error"]
            assert (status, error["status"]) == HTTP_ERRORS[fault]
            assert error["code"] == status

    def test_waits_are_as_ordered(self, client: GeminiClient) -> None:
        """RetryInfo for a 429, the header for what a proxy sends."""
        _, limited = client.post("generateContent", magic("429:0.5"))
        assert limited["error"]["details"][0]["violations"][0]["quotaId"] == PER_MINUTE
        assert limited["error"]["details"][1]["retryDelay"] == "0.5s"
        busy = client.open("generateContent", magic("retry-after:7"))
        busy.read()
        assert busy.headers["Retry-After"] == "7"

    def test_a_days_quota_and_a_bad_key_are_named(self, client: GeminiClient) -> None:
        """In the details."""
        _, quota = client.post("generateContent", magic("quota-day"))
        _, key = client.post("generateContent", magic("invalid-key"))
        assert quota["error"]["details"][0]["violations"][0]["quotaId"] == PER_DAY
        assert key["error"]["details"][0]["reason"] == "API_KEY_INVALID"

    def test_an_error_document_may_come_in_a_200(self, client: GeminiClient) -> None:
        """Alone, or behind the first piece of a stream."""
        assert ordered(client, "error-in-200:500")["error"]["status"] == "INTERNAL"
        assert [event["error"]["code"] for event in streamed(client, "error-in-200")] == [503]
        first, error = streamed(client, "error-midway:429")
        assert (said(first)[:6], error["error"]["status"]) == ("This i", "RESOURCE_EXHAUSTED")


class TestOddAnswers:
    @pytest.mark.parametrize(
        "reason", ["SAFETY", "RECITATION", "MALFORMED_RESPONSE", "ESCALATION", "PUP_LIMITED_DISABLED", "NEW_IN_2027"]
    )
    def test_a_filtered_answer_has_no_text(self, client: GeminiClient, reason: str) -> None:
        """Plain; a stream has said half before."""
        one = ordered(client, f"finish:{reason}")["candidates"][0]
        assert (one["finishReason"], one["content"]) == (reason, {"role": "model"})
        pieces = streamed(client, f"finish:{reason}")
        assert pieces[0]["candidates"][0]["content"]["parts"][0]["text"]
        assert pieces[-1]["candidates"][0]["finishReason"] == reason

    @pytest.mark.parametrize("reason", ["MAX_TOKENS", "CONTINUATION"])
    def test_a_cut_answer_keeps_its_text(self, client: GeminiClient, reason: str) -> None:
        """CONTINUATION brings the token to go on with."""
        payload = ordered(client, f"finish:{reason}")
        one = payload["candidates"][0]
        assert said(payload).startswith("This is a canned")
        assert one["finishReason"] == reason
        assert ("continuationToken" in one) == (reason == "CONTINUATION")

    def test_a_blocked_prompt_has_no_candidates(self, client: GeminiClient) -> None:
        """Its tokens are counted."""
        payload = ordered(client, "block:PROHIBITED_CONTENT")
        assert payload["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
        assert "candidates" not in payload
        assert payload["usageMetadata"]["promptTokenCount"] > 0

    def test_parts_of_an_answer_may_be_missing(self, client: GeminiClient) -> None:
        """Text, content, candidates, usage, the finish reason."""
        assert said(ordered(client, "no-text")) == ""
        assert "content" not in ordered(client, "no-content")["candidates"][0]
        assert "candidates" not in ordered(client, "no-candidates")
        assert "usageMetadata" not in ordered(client, "no-usage")
        assert "finishReason" not in ordered(client, "no-finish")["candidates"][0]
        assert all("finishReason" not in event["candidates"][0] for event in streamed(client, "no-finish"))

    def test_usage_may_be_odd(self, client: GeminiClient) -> None:
        """More thoughts, a cached prompt, or counts that come with the last piece only."""
        plain = client.post("generateContent", magic("text:x"))[1]["usageMetadata"]
        thought = ordered(client, "thoughts:300")["usageMetadata"]
        cached = ordered(client, "cached:5000")["usageMetadata"]
        *early, last = streamed(client, "late-usage")
        assert (thought["thoughtsTokenCount"], cached["cachedContentTokenCount"]) == (300, 5000)
        assert cached["promptTokenCount"] > 5000 > plain["promptTokenCount"]
        assert not any("candidatesTokenCount" in event["usageMetadata"] for event in early)
        assert "candidatesTokenCount" in last["usageMetadata"]

    def test_the_text_may_be_ordered(self, client: GeminiClient) -> None:
        """Whatever it is, a label outside the list too; and who answered."""
        assert said(ordered(client, "text:Blue, as ever: yes")) == "Blue, as ever: yes"
        assert ordered(client, "swapped:gemini-3.8-flash")["modelVersion"] == "gemini-3.8-flash"


class TestBrokenWires:
    @pytest.mark.parametrize(
        ("fault", "status", "body"),
        [("502", 502, b"<html>"), ("html", 200, b"<html>"), ("empty", 200, b""), ("garbage", 200, b"\x00\xff{")],
    )
    def test_a_body_may_be_no_json(self, client: GeminiClient, fault: str, status: int, body: bytes) -> None:
        """And the connection lives on."""
        response = client.open("generateContent", magic(fault))
        assert (response.status, response.read()[: len(body) or None]) == (status, body)
        assert ordered(client, "empty-object") == {}

    @pytest.mark.parametrize("fault", ["reset", "hang:0.01"])
    def test_an_answer_may_never_come(self, client: GeminiClient, fault: str) -> None:
        """The connection ends without a byte."""
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.open("generateContent", magic(fault))

    @pytest.mark.parametrize("fault", ["idle:0.01", "cut", "cut:200"])
    @pytest.mark.parametrize("action", ["generateContent", "streamGenerateContent?alt=sse"])
    def test_an_answer_may_break_off(self, client: GeminiClient, action: str, fault: str) -> None:
        """In the middle of its body."""
        response = client.open(action, magic(fault))
        with pytest.raises(http.client.IncompleteRead):
            response.read()

    @pytest.mark.parametrize("fault", ["slow:0.01", "drip:0.02"])
    def test_an_answer_may_take_its_time(self, client: GeminiClient, fault: str) -> None:
        """And comes whole."""
        assert "canned" in said(ordered(client, fault))

    def test_no_fault_outlives_the_server(self) -> None:
        """Its close ends a silence of minutes."""
        emulator = Emulator().start()
        with GeminiClient(emulator.url) as client:
            client.connection.request("POST", "/v1/models/m:generateContent?key=k", json.dumps(magic("hang:600")))
            emulator.close()
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                client.connection.getresponse()


class TestOrders:
    def test_every_fault_answers_a_plain_call_and_a_stream(self, client: GeminiClient) -> None:
        """None of them is a mistake of the emulator's own: the next call is served."""
        quick = {"hang": ":0.01", "idle": ":0.01", "slow": ":0.01", "drip": ":0.02"}
        for name in FAULTS:
            for action in ("generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"):
                try:
                    client.open(action, magic(name + quick.get(name, ""))).read()
                except (ConnectionError, http.client.HTTPException):
                    client.connection.close()
                assert client.post("generateContent", asking())[0] == 200, name

    def test_a_fault_may_pass(self, client: GeminiClient) -> None:
        """`*2` meets the same call twice; the third is answered, and so is another."""
        assert [client.post("generateContent", magic("503*2"))[0] for _ in range(4)] == [503, 503, 200, 200]
        assert client.post("generateContent", magic("503 *1"))[0] == 503

    def test_only_the_last_turn_orders(self, client: GeminiClient) -> None:
        """What was said before in a chat is past; a system instruction orders nothing."""
        past = [{"parts": [{"text": "[[emulate: 500]]"}]}, {"parts": [{"text": "And now?"}]}]
        assert client.post("generateContent", {"contents": past})[0] == 200
        assert client.post("generateContent", asking(system="[[emulate: 500]]"))[0] == 200
        assert client.post("countTokens", magic("500"))[0] == 200

    @pytest.mark.parametrize("order", ["", "teapot", "429:soon", "finish:safety", "cut:-1", "500:1"])
    def test_an_order_that_is_none_is_told(self, client: GeminiClient, order: str) -> None:
        """400 that says what there is."""
        status, payload = client.post("generateContent", magic(order))
        assert (status, payload["error"]["message"][:13]) == (400, "Magic prompt:")

    @pytest.mark.parametrize("text", ["429", "429@", "429@10", "429@101%", "teapot@1%", "@5%"])
    def test_a_share_that_is_none_is_told(self, text: str) -> None:
        """By a ValueError."""
        with pytest.raises(ValueError, match=r"fault|FAULT"):
            read_share(text)

    def test_an_order_reads_back(self) -> None:
        """Name, argument, how often."""
        order = read_order(" hang : 5 * 3 ")
        assert (order.kind.name, order.argument, order.times) == ("hang", "5", 3)


class TestShares:
    def outcomes(self, calls: int, *shares: str, seed: int = 0) -> list[int]:
        gemini = OfflineGemini(faults=map(read_share, shares), seed=seed)
        with Emulator(answer=gemini) as emulator, GeminiClient(emulator.url) as client:
            return [client.post("generateContent", asking())[0] for _ in range(calls)]

    def test_a_share_is_met(self) -> None:
        """About a tenth and about a fifth of 400 calls; the rest is answered."""
        statuses = self.outcomes(400, "429@10%", "503@20%")
        assert 20 < statuses.count(429) < 60
        assert 50 < statuses.count(503) < 110
        assert statuses.count(200) == 400 - statuses.count(429) - statuses.count(503)

    def test_the_seed_decides(self) -> None:
        """The same seed fails the same calls, another one others."""
        assert self.outcomes(60, "500@50%") == self.outcomes(60, "500@50%")
        assert self.outcomes(60, "500@50%") != self.outcomes(60, "500@50%", seed=1)

    def test_the_ends_of_the_scale(self) -> None:
        """0% meets none, 100% meets all."""
        assert set(self.outcomes(20, "500@0%")) == {200}
        assert set(self.outcomes(20, "500@100%")) == {500}

    def test_more_than_all_is_refused(self) -> None:
        """When the model is made."""
        with pytest.raises(ValueError, match="100%"):
            OfflineGemini(faults=[read_share("500@60%"), read_share("503@60%")])

    def test_counts_and_lists_are_spared(self) -> None:
        """A share is one of the calls that want an answer."""
        gemini = OfflineGemini(faults=[read_share("500@100%")])
        with Emulator(answer=gemini) as emulator, GeminiClient(emulator.url) as client:
            assert client.post("countTokens", asking())[0] == 200
            assert client.get("/v1beta/models?key=k")[0] == 200
