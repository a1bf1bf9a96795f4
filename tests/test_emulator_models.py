"""The emulator plays models that are closed, retired, swapped, overloaded, out of quota, or that think."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mtllm.emulator import PER_DAY, PER_MINUTE, Emulator, ModelState, PlayedModel, ThinkingKind, parse_model
from tests.support.gemini_client import GeminiClient, answer_to, asking, said

PLAYED = (
    PlayedModel("closed", ModelState.CLOSED, successor="newer"),
    PlayedModel("retired", ModelState.RETIRED),
    PlayedModel("overloaded", ModelState.OVERLOADED),
    PlayedModel("limited", ModelState.LIMITED, retry_delay="0.5s"),
    PlayedModel("exhausted", ModelState.EXHAUSTED),
    PlayedModel("unpaid", ModelState.UNPAID),
    PlayedModel("swapped", answered_by="another"),
    PlayedModel("budget", thinking=ThinkingKind.BUDGET),
    PlayedModel("level", thinking=ThinkingKind.LEVEL),
    parse_model("gemini4=gemini4"),
)


@pytest.fixture
def client() -> Iterator[GeminiClient]:
    with Emulator(models=PLAYED) as emulator, GeminiClient(emulator.url) as client:
        yield client


def think(**wish: Any) -> dict[str, Any]:
    """Return a request with a thinkingConfig."""
    return asking(thinkingConfig=wish)


class TestStates:
    @pytest.mark.parametrize(
        ("model", "code", "words"),
        [
            ("closed", 404, "no longer available to new users. Please update your code to use models/newer"),
            ("retired", 404, "models/retired is not found for API version v1beta"),
            ("overloaded", 503, "The model is overloaded"),
            ("limited", 429, "Please retry in 0.5s."),
            ("exhausted", 429, "exceeded your current quota"),
            ("unpaid", 429, "prepayment credits are depleted"),
        ],
    )  # fmt: skip
    def test_a_refusal_is_in_googles_words(self, client: GeminiClient, model: str, code: int, words: str) -> None:
        """Plain and streamed alike."""
        for action in ("generateContent", "streamGenerateContent?alt=sse"):
            status, payload = client.post(action, asking(), model=model)
            assert (status, payload["error"]["code"]) == (code, code)
            assert words in payload["error"]["message"]

    def test_a_free_look_tells_closed_from_busy(self, client: GeminiClient) -> None:
        """countTokens answers 404 for closed and retired models, and counts for those that are only busy."""
        served = {model.name: client.post("countTokens", asking(), model=model.name)[0] == 200 for model in PLAYED}
        assert [name for name, counts in served.items() if not counts] == ["closed", "retired"]

    def test_a_description_proves_nothing(self, client: GeminiClient) -> None:
        """models.get and models.list know a closed model; only a retired one is gone."""
        _, listed = client.get("/v1beta/models?key=k")
        names = [model["name"] for model in listed["models"]]
        assert "models/closed" in names
        assert "models/retired" not in names
        assert client.get("/v1beta/models/closed?key=k")[0] == 200
        assert client.get("/v1beta/models/retired?key=k")[0] == 404

    @pytest.mark.parametrize(("model", "quota"), [("limited", PER_MINUTE), ("exhausted", PER_DAY)])
    def test_a_used_up_quota_is_named(self, client: GeminiClient, model: str, quota: str) -> None:
        """In QuotaFailure, beside a RetryInfo that means little for a day's quota."""
        _, payload = client.post("generateContent", asking(), model=model)
        violation, retry = payload["error"]["details"]
        assert violation["violations"][0]["quotaId"] == quota
        assert retry["retryDelay"].endswith("s")

    def test_a_swapped_model_names_who_answered(self, client: GeminiClient) -> None:
        """In modelVersion, without an error."""
        _, payload = client.post("generateContent", asking(), model="swapped")
        assert payload["modelVersion"] == "another"
        odd = asking("[[emulate: thoughts:5]]")
        assert client.post("generateContent", odd, model="swapped")[1]["modelVersion"] == "another"

    def test_models_that_are_not_in_the_table_answer(self, client: GeminiClient) -> None:
        """Any name does, and a thinkingConfig is taken without a word."""
        assert client.post("generateContent", think(thinkingBudget=5, thinkingLevel="LOW"), model="any")[0] == 200


class TestThinking:
    @pytest.mark.parametrize(
        ("model", "wish", "thoughts"),
        [
            ("budget", {}, None),
            ("budget", {"thinkingBudget": 0}, None),
            ("budget", {"thinkingBudget": -1}, 256),
            ("budget", {"thinkingBudget": 512}, 256),
            ("level", {}, 256),
            ("level", {"thinkingLevel": "MINIMAL"}, 16),
            ("level", {"thinking_level": "low"}, 64),
            ("gemini4", {}, 1024),
        ],
    )
    def test_thoughts_are_counted(
        self, client: GeminiClient, model: str, wish: dict[str, Any], thoughts: int | None
    ) -> None:
        """In thoughtsTokenCount and the total, not among the candidates' tokens."""
        usage = client.post("generateContent", think(**wish), model=model)[1]["usageMetadata"]
        assert usage.get("thoughtsTokenCount") == thoughts
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"] + (thoughts or 0)

    @pytest.mark.parametrize(
        ("model", "wish", "words"),
        [
            ("level", {"thinkingBudget": 0}, "Thinking budget is not supported"),
            ("budget", {"thinkingLevel": "LOW"}, "Thinking level is not supported"),
            ("budget", {"thinkingLevel": "LOW", "thinkingBudget": 0}, "only one of thinking budget and thinking level"),
            ("budget", {"thinkingBudget": 25}, "The thinking budget 25 is invalid"),
            ("gemini4", {"thinkingLevel": "minimal"}, "MINIMAL is not supported"),
            ("gemini4", {"thinkingBudget": 512}, "Thinking budget is not supported"),
        ],
    )
    def test_a_wish_that_the_model_does_not_know_is_refused(
        self, client: GeminiClient, model: str, wish: dict[str, Any], words: str
    ) -> None:
        """400 INVALID_ARGUMENT."""
        status, payload = client.post("generateContent", think(**wish), model=model)
        assert status == 400
        assert words in payload["error"]["message"]

    def test_thoughts_eat_the_limit(self, client: GeminiClient) -> None:
        """All of it: MAX_TOKENS without text; or a part: the text gets the rest."""
        starved = client.post("generateContent", asking(maxOutputTokens=200), model="level")[1]
        assert starved["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert said(starved) == ""
        assert starved["usageMetadata"]["thoughtsTokenCount"] == 200
        assert "candidatesTokenCount" not in starved["usageMetadata"]
        cut = client.post("generateContent", asking(maxOutputTokens=260), model="level")[1]
        assert cut["usageMetadata"]["candidatesTokenCount"] == 4

    def test_thoughts_are_shown_where_they_are_wanted(self, client: GeminiClient) -> None:
        """As a part of their own, marked, once in a stream."""
        _, pieces = client.post("streamGenerateContent", think(includeThoughts=True), model="level")
        thoughts = [
            part for piece in pieces for part in piece["candidates"][0]["content"]["parts"] if "thought" in part
        ]
        assert len(thoughts) == 1
        assert thoughts[0]["thought"] is True

    def test_a_function_call_of_a_thinking_model_is_signed(self, client: GeminiClient) -> None:
        """With a thoughtSignature, which clients must send back."""
        rule = {"functionCallingConfig": {"mode": "ANY"}}
        body = {**asking(), "tools": {"functionDeclarations": {"name": "f"}}, "toolConfig": rule}
        _, payload = client.post("generateContent", body, model="level")
        assert payload["candidates"][0]["content"]["parts"][0]["thoughtSignature"]


class TestTable:
    def test_roles_add_up(self) -> None:
        """`NAME=ROLE,ROLE` is one model with both."""
        model = parse_model("models/x=swapped:y,level")
        assert (model.name, model.answered_by, model.thinking) == ("x", "y", ThinkingKind.LEVEL)

    @pytest.mark.parametrize("text", ["", "x", "=closed", "x=", "x=open", "x=closed:y", "x=swapped", "x=swapped:"])
    def test_a_role_that_is_none_is_told(self, text: str) -> None:
        """With what would be right."""
        with pytest.raises(ValueError, match=r"closed"):
            parse_model(text)


def test_an_answer_needs_no_table() -> None:
    """An emulator without models answers under any name."""
    with Emulator() as emulator:
        assert answer_to(emulator.url, asking(), model="gemini-2.0-flash")["modelVersion"] == "gemini-2.0-flash"
