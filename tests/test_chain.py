"""The model chain through the service: who is asked, who answers, what the caller is told, what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api
from mtllm.completions.chain import FORGET_SECONDS, ModelChain
from mtllm.completions.free_look import FreeLook
from mtllm.domain.completion import Instruction
from mtllm.domain.errors import InvalidRequest, ModelUnavailable, QuotaExhausted, UpstreamFailure
from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.models import parse_model
from mtllm.gemini.models import ModelTable
from mtllm.project import PROJECT
from mtllm.tasks import TASK_BY_NAME, Job, parse
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini, status, stream, text

TEXT, CODE, CLASSIFY = "/api/v1/generate/text", "/api/v1/generate/code", "/api/v1/classify/text"
FIRST, NEXT = "gemini-2.5-flash-lite", "gemini-3.1-flash-lite"
MakeApp = Callable[..., Api]
CHAIN = {"gemini_fallback_models": NEXT}


@pytest.fixture(params=["sdk", "rest"])
def client(request: pytest.FixtureRequest, make_app: MakeApp) -> FlaskClient:
    """A service with the shipped chain, asked through either client of Gemini."""
    return make_app(**CHAIN, gemini_client=request.param).test_client()


@pytest.fixture
def chain(clock: FakeClock) -> ModelChain:
    """The shipped chain, with two more models that callers may name."""
    table = ModelTable.load(PROJECT / "models.toml")
    return ModelChain(
        (FIRST, NEXT), allowed=("gemini-3.8-flash", "unheard-of"), table=table, clock=lambda: 1.8e9, monotonic=clock
    )


def job(task: str = "text", **fields: Any) -> Job:
    """A job as the edge makes it."""
    body = {"prompt": "x"} if task != "classify" else {"text": "x", "categories": ["a", "b"]}
    return parse(TASK_BY_NAME[task], json.dumps(body | fields).encode(), max_chars=100)


def asked(gemini: ScriptedGemini) -> list[str]:
    """The models that were asked for an answer, in order."""
    return [call.model for call in gemini.calls]


def config_of(call: GeminiCall) -> dict[str, Any]:
    """The generationConfig of a call as it went over the wire."""
    config: dict[str, Any] = json.loads(call.raw)["generationConfig"]
    return config


class TestANewKey:
    """Google serves the first model to old users only; the next of the chain answers."""

    @pytest.fixture(autouse=True)
    def _closed(self, gemini: ScriptedGemini) -> None:
        gemini.plays(parse_model(f"{FIRST}=closed"))

    def test_gets_an_answer_that_says_who_gave_it(self, client: FlaskClient) -> None:
        """Body, header and price are those of the model that answered."""
        answer = client.post(TEXT, json={"prompt": "hello"})
        assert answer.status_code == 200
        assert answer.json is not None
        assert answer.json["model"] == answer.headers["X-Model"] == NEXT
        assert answer.headers["X-Model-Fallback"] == f"{FIRST}; reason=unavailable"
        used = answer.json["usage"]
        assert int(answer.headers["X-Cost-Nanodollars"]) == used["input_tokens"] * 250 + used["output_tokens"] * 1500

    def test_asks_the_closed_model_once(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """Its refusal is remembered, by a look or by the first call."""
        for number in range(3):
            assert client.post(TEXT, json={"prompt": f"{number}"}).status_code == 200
        assert asked(gemini).count(FIRST) <= 1
        assert asked(gemini).count(NEXT) == 3

    def test_has_a_hit_that_says_the_same(self, client: FlaskClient) -> None:
        """A stored answer is that of the model that gave it."""
        client.post(TEXT, json={"prompt": "hello"})
        hit = client.post(TEXT, json={"prompt": "hello"})
        assert (hit.headers["X-Cached"], hit.headers["X-Model"]) == ("true", NEXT)
        assert hit.headers["X-Model-Fallback"] == f"{FIRST}; reason=unavailable"

    def test_has_streams_too(self, client: FlaskClient) -> None:
        """The headers of a live stream say who answers."""
        answer = client.post(TEXT, json={"prompt": "hello", "stream": True})
        assert answer.headers["X-Model"] == NEXT
        assert answer.headers["X-Model-Fallback"] == f"{FIRST}; reason=unavailable"
        assert f'"model": "{NEXT}"' in answer.text

    def test_is_seen_by_the_free_look_before_any_call(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """countTokens of one word for each model; nothing that bills is asked."""
        app = make_app(**CHAIN)
        assert app.service.free_look.looked.wait(10)
        assert [call.model for call in gemini.free_looks] == [FIRST, NEXT]
        assert gemini.count == 0
        assert app.service.chain.answering().model == NEXT
        assert app.test_client().post(TEXT, json={"prompt": "hello"}).status_code == 200
        assert asked(gemini) == [NEXT]

    def test_makes_readiness_say_who_answers_and_why(self, make_app: MakeApp) -> None:
        """Degraded at 200."""
        app = make_app(**CHAIN)
        assert app.service.free_look.looked.wait(10)
        ready = app.test_client().get("/api/v1/health/ready")
        assert ready.status_code == 200
        assert ready.json is not None
        check = ready.json["checks"]["model"]
        assert check["status"] == "degraded"
        assert check["reason"] == f"{FIRST} is not served to this key (404, NOT_FOUND); {NEXT} answers"

    def test_is_shown_in_stats(self, client: FlaskClient) -> None:
        """Which model was asked, which answered, why, at which price."""
        client.post(TEXT, json={"prompt": "hello"})
        stats = client.get("/stats").json
        assert stats is not None
        assert [(model["model"], model["answers"]) for model in stats["models"]] == [(FIRST, False), (NEXT, True)]
        assert stats["models"][1]["input_price"] == 0.25
        assert stats["fallbacks"] == [{"requested_model": FIRST, "model": NEXT, "reason": "unavailable", "answers": 1}]

    def test_gets_a_sentence_when_no_model_of_the_chain_is_served(
        self, make_app: MakeApp, gemini: ScriptedGemini
    ) -> None:
        """It names the setting, and a live model that is not in the chain."""
        gemini.plays(parse_model(f"{FIRST}=closed"), parse_model("gemini-3-flash-preview=retired"))
        app = make_app(gemini_fallback_models="gemini-3-flash-preview")
        assert app.service.free_look.looked.wait(10)
        answer = app.test_client().post(TEXT, json={"prompt": "x"})
        assert answer.status_code == 502
        assert answer.json is not None
        assert answer.json["code"] == "model_unavailable"
        assert "GEMINI_MODEL" in answer.json["error"]
        assert NEXT in answer.json["error"]
        assert app.test_client().get("/api/v1/health/ready").status_code == 503


class TestAFallback:
    """For which failures the next model is asked, and for which it is not."""

    @pytest.mark.parametrize(
        ("fail", "reason"),
        [
            (status(404), "unavailable"),
            (status(429, quota_id="GenerateRequestsPerDayPerProjectPerModel"), "quota"),
            (status(504), "timeout"),
        ],
    )
    def test_is_taken_for_the_reasons_that_the_setting_names(
        self, make_app: MakeApp, gemini: ScriptedGemini, fail: Any, reason: str
    ) -> None:
        """One call to the first model, one to the next."""
        gemini.answers(fail, text("fine"))
        client = make_app(**CHAIN, gemini_fallback_on=reason).test_client()
        answer = client.post(TEXT, json={"prompt": "x"})
        assert answer.headers["X-Model-Fallback"] == f"{FIRST}; reason={reason}"
        assert asked(gemini) == [FIRST, NEXT]

    def test_comes_after_the_first_models_own_retries(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """`overloaded`: 503 as often as GEMINI_MAX_ATTEMPTS allows; the next model then has attempts of its own."""
        gemini.answers(*[status(503)] * 2, status(503), text("fine"))
        client = make_app(**CHAIN, gemini_fallback_on="overloaded", gemini_max_attempts="2").test_client()
        answer = client.post(TEXT, json={"prompt": "x"})
        assert answer.headers["X-Model-Fallback"] == f"{FIRST}; reason=overloaded"
        assert asked(gemini) == [FIRST, FIRST, NEXT, NEXT]

    @pytest.mark.parametrize(
        ("fail", "code"),
        [
            (status(400), "upstream_rejected"),
            (status(403), "upstream_auth_failed"),
            (text("", finish="SAFETY"), "content_blocked"),
            (text("", finish="MALFORMED_RESPONSE"), "upstream_invalid_answer"),
        ],
    )
    def test_is_never_taken_for_what_another_model_cannot_mend(
        self, make_app: MakeApp, gemini: ScriptedGemini, fail: Any, code: str
    ) -> None:
        """Whatever GEMINI_FALLBACK_ON says."""
        gemini.answers(fail)
        client = make_app(**CHAIN, gemini_fallback_on="unavailable,overloaded,quota,timeout").test_client()
        answer = client.post(TEXT, json={"prompt": "x"})
        assert answer.json is not None
        assert answer.json["code"] == code
        assert asked(gemini) == [FIRST]

    def test_is_not_taken_by_default_for_an_overload(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """`unavailable` alone."""
        gemini.answers(*[status(503)] * 4)
        assert make_app(**CHAIN).test_client().post(TEXT, json={"prompt": "x"}).status_code == 503
        assert set(asked(gemini)) == {FIRST}

    def test_is_not_taken_after_the_first_delta(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """A client has seen the beginning of an answer."""
        gemini.answers(stream("Hel", *[], finish="STOP"), text("never"))
        client = make_app(**CHAIN, gemini_fallback_on="unavailable,overloaded").test_client()
        assert NEXT not in client.post(TEXT, json={"prompt": "x", "stream": True}).text
        assert asked(gemini) == [FIRST]

    def test_has_its_own_place_in_the_cache(self, make_app: MakeApp, gemini: ScriptedGemini, clock: FakeClock) -> None:
        """The next model's answer is never served as the first one's once that is back."""
        gemini.answers(status(404), text("from the next"), text("from the first"))
        app = make_app(**CHAIN)
        client = app.test_client()
        assert client.post(TEXT, json={"prompt": "x"}).json["generated_text"] == "from the next"  # type: ignore[index]
        app.service.chain.note_served(FIRST)
        back = client.post(TEXT, json={"prompt": "x"})
        assert back.json is not None
        assert back.json["generated_text"] == "from the first"
        assert "X-Model-Fallback" not in back.headers

    def test_is_answered_from_the_cache_the_second_time(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """While the first model is overloaded, a repeat costs nothing though it is asked first again."""
        gemini.answers(status(503), text("fine"), status(503))
        client = make_app(**CHAIN, gemini_fallback_on="overloaded", gemini_max_attempts="1").test_client()
        paid, hit = (client.post(TEXT, json={"prompt": "x"}) for _ in range(2))
        assert (paid.headers["X-Cached"], hit.headers["X-Cached"]) == ("false", "true")
        assert hit.headers["X-Model-Fallback"] == f"{FIRST}; reason=overloaded"
        assert asked(gemini) == [FIRST, NEXT, FIRST]

    def test_is_shared_by_those_who_follow(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """Identical requests in flight make one call to each model."""
        gemini.answers(status(404), text("fine"))
        app = make_app(**CHAIN, real_time=True)
        gemini.gate.clear()
        answers: list[Any] = []

        def ask() -> None:
            answers.append(app.test_client().post(TEXT, json={"prompt": "x"}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert gemini.wait_for_calls(1)
        threads[1].start()
        gemini.gate.set()
        for thread in threads:
            thread.join()
        assert [answer.headers["X-Model-Fallback"] for answer in answers] == [f"{FIRST}; reason=unavailable"] * 2
        assert asked(gemini) == [FIRST, NEXT]

    def test_has_a_breaker_of_its_own(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """Five failures open the first model's; the next one's stays closed."""
        gemini.answers(*[step for _ in range(6) for step in (status(503), text("fine"))][:10])
        app = make_app(**CHAIN, gemini_fallback_on="overloaded", gemini_max_attempts="1", rate_limits="")
        client = app.test_client()
        for number in range(6):
            assert client.post(TEXT, json={"prompt": f"{number}"}).headers["X-Model"] == NEXT
        assert asked(gemini).count(FIRST) == 5
        assert app.service.breakers.of(NEXT).state == "closed"


class TestASwap:
    """Google lets another model answer behind a name, at another price."""

    def test_is_priced_by_the_answer_and_told(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """gemini-3.5-flash is answered by 3.6-flash, which costs half."""
        gemini.plays(parse_model("gemini-3.5-flash=swapped:gemini-3.6-flash"))
        app = make_app(gemini_model="gemini-3.5-flash")
        answers = [app.test_client().post(TEXT, json={"prompt": prompt}) for prompt in "ab"]
        for answer in answers:
            assert answer.headers["X-Model-Fallback"] == "gemini-3.5-flash; reason=swapped"
        used = answers[0].json["usage"]  # type: ignore[index]
        assert (
            int(answers[0].headers["X-Cost-Nanodollars"]) == used["input_tokens"] * 750 + used["output_tokens"] * 3750
        )

    def test_is_reported_once(self, chain: ModelChain) -> None:
        """A longer name is no other model."""
        told: list[str] = []
        chain._warn = told.append
        for answered in (f"{FIRST}-001", NEXT, NEXT):
            chain.note_answer(FIRST, answered)
        assert len(told) == 1
        assert NEXT in told[0]


class TestAModelPerRequest:
    """`"model"` chooses one of the chain, or of GEMINI_MODELS_ALLOWED."""

    def test_is_asked(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """Of the chain and of the allowed ones; `models/` in front is accepted."""
        client = make_app(**CHAIN, gemini_models_allowed="gemini-3.8-flash").test_client()
        for name in (NEXT, "gemini-3.8-flash", f"models/{FIRST}"):
            answer = client.post(TEXT, json={"prompt": "x", "model": name})
            assert answer.headers["X-Model"] == name.removeprefix("models/")
            assert "X-Model-Fallback" not in answer.headers
        assert asked(gemini) == [NEXT, "gemini-3.8-flash", FIRST]

    def test_a_model_that_is_not_allowed_is_400_with_those_that_are(self, make_app: MakeApp) -> None:
        """Also for classification."""
        client = make_app(**CHAIN, gemini_models_allowed="gemini-3.8-flash").test_client()
        body = {"text": "x", "categories": ["a", "b"], "model": "gemini-4-neon"}
        answer = client.post(CLASSIFY, json=body)
        assert answer.status_code == 400
        assert answer.json is not None
        [detail] = answer.json["details"]
        assert detail == {"field": "model", "message": f"must be one of {FIRST}, {NEXT}, gemini-3.8-flash"}

    @pytest.mark.parametrize("name", ["", "a b", "x" * 101, 7, None])
    def test_is_the_name_of_a_model(self, make_app: MakeApp, name: Any) -> None:
        """null is none."""
        answer = make_app().test_client().post(TEXT, json={"prompt": "x", "model": name})
        assert answer.status_code == (200 if name is None else 400)

    def test_offline_goes_by_its_real_name(self, chain: ModelChain) -> None:
        """A client need not know that the emulator answers."""
        offline = ModelChain(("offline-a",), aliases={"a": "offline-a"})
        assert offline.route(job(model="a")).model == "offline-a"
        with pytest.raises(InvalidRequest):
            offline.route(job(model="b"))

    def test_is_bound_by_the_callers_key(self, chain: ModelChain) -> None:
        """The key's list is all it may use, by name or not, fallbacks included."""
        assert chain.route(job(), (NEXT,)).model == NEXT
        assert chain.route(job(), ("gemini-3.8-flash",)).model == "gemini-3.8-flash"
        assert chain.route(job(), (FIRST,)).others == ()
        with pytest.raises(InvalidRequest):
            chain.route(job(model=FIRST), (NEXT,))

    def test_falls_back_to_what_comes_after_it(self, chain: ModelChain) -> None:
        """A named model of the chain to the ones behind it; one from outside to the fallbacks."""
        assert chain.route(job(model=FIRST)).others == (NEXT,)
        assert chain.route(job(model=NEXT)).others == ()
        assert chain.route(job(model="gemini-3.8-flash")).others == (NEXT,)


class TestWhatIsRemembered:
    """Refusals that a later request need not meet again."""

    def refuse(self, chain: ModelChain, failure: UpstreamFailure) -> None:
        chain.note_refusal(FIRST, failure)

    def test_an_unserved_model_is_passed_over_until_a_look_finds_it(self, chain: ModelChain) -> None:
        """The look that comes every ten minutes."""
        self.refuse(chain, ModelUnavailable())
        assert chain.route(job()).model == NEXT
        chain.note_looked(FIRST)
        assert chain.route(job()).model == FIRST

    def test_a_refusal_is_forgotten_in_the_end(self, chain: ModelChain, clock: FakeClock) -> None:
        """Where no look renews it."""
        self.refuse(chain, ModelUnavailable())
        clock.advance(FORGET_SECONDS)
        assert chain.route(job()).model == FIRST

    def test_a_quota_is_not_mended_by_a_look(self, chain: ModelChain) -> None:
        """countTokens answers while the balance is empty; readiness goes on saying it."""
        self.refuse(chain, QuotaExhausted())
        chain.note_looked(FIRST)
        assert chain.standings()[0].refusal is not None
        chain.note_served(FIRST)
        assert chain.standings()[0].refusal is None

    def test_a_look_that_meets_a_refused_key_fails_readiness(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """503, with what Google said in its fixed words."""
        gemini.answers(status(403))
        app = make_app()
        app.test_client().post(TEXT, json={"prompt": "x"})
        ready = app.test_client().get("/api/v1/health/ready")
        assert ready.status_code == 503
        assert ready.json is not None
        assert "refuses this key (403, PERMISSION_DENIED)" in ready.json["checks"]["model"]["reason"]

    def test_a_look_ends_with_the_service(self, chain: ModelChain) -> None:
        """Nothing is looked at after the end."""
        looked = threading.Semaphore(0)

        class Counting:
            def count_tokens(self, model: str, instruction: Instruction, *, deadline: float) -> int:
                looked.release()
                return 1

        look = FreeLook(chain, Counting(), every=0.001)
        look.start()
        for _ in range(4):
            assert looked.acquire(timeout=10)
        look.close()
        assert look.looked.is_set()


class TestThinking:
    """What a model is told of thinking, and the room that its thoughts get."""

    @pytest.mark.parametrize(
        ("model", "level", "said", "limit"),
        [
            (FIRST, None, {"thinkingBudget": 0}, 2048),
            (FIRST, "high", {"thinkingBudget": 24576}, 2048 + 24576),
            (NEXT, None, {"thinkingLevel": "MINIMAL"}, 2048 + 1024),
            ("gemini-3.8-flash", None, {"thinkingLevel": "LOW"}, 2048 + 4096),
        ],
    )
    def test_is_said_as_the_model_wants_it(
        self, client: FlaskClient, make_app: MakeApp, gemini: ScriptedGemini, model: str, level: str | None,
        said: dict[str, Any], limit: int,
    ) -> None:  # fmt: skip
        """By budget or by level; a model without the least level gets the least it has."""
        allowed = make_app(**CHAIN, gemini_models_allowed="gemini-3.8-flash").test_client()
        body = {"prompt": "x", "model": model} | ({"thinking": level} if level else {})
        assert allowed.post(TEXT, json=body).status_code == 200
        config = config_of(gemini.calls[-1])
        assert config["thinkingConfig"] == said
        assert config["maxOutputTokens"] == limit

    def test_is_said_through_either_client(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """The SDK has no field for it; streams say it too."""
        client.post(TEXT, json={"prompt": "x", "thinking": "low"})
        client.post(TEXT, json={"prompt": "y", "thinking": "low", "stream": True})
        assert [config_of(call)["thinkingConfig"] for call in gemini.calls] == [{"thinkingBudget": 1024}] * 2

    def test_adds_no_room_to_the_callers_own_limit(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """It bounds the bill, thoughts included."""
        client = make_app(gemini_model="gemini-3.8-flash").test_client()
        client.post(TEXT, json={"prompt": "x", "max_output_tokens": 100, "thinking": "high"})
        assert config_of(gemini.calls[0])["maxOutputTokens"] == 100

    def test_of_a_classification_is_always_the_least(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """Whatever GEMINI_THINKING says."""
        client = make_app(gemini_thinking="high").test_client()
        client.post(CLASSIFY, json={"text": "x", "categories": ["a", "b"]})
        assert config_of(gemini.calls[0])["thinkingConfig"] == {"thinkingBudget": 0}

    def test_is_not_mentioned_to_a_model_that_nobody_knows(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """Nothing special is sent."""
        make_app(gemini_model="unheard-of").test_client().post(TEXT, json={"prompt": "x", "thinking": "high"})
        config = config_of(gemini.calls[0])
        assert "thinkingConfig" not in config
        assert (config["maxOutputTokens"], config["temperature"]) == (2048, pytest.approx(0.7))

    def test_is_reserved_with_the_rest(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """The reservation covers the room: 2,048 tokens of text and 4,096 of thoughts, at $3.75 a million."""
        app = make_app(gemini_model="gemini-3.8-flash", daily_budget_usd="0.0231")
        assert app.test_client().post(TEXT, json={"prompt": "x"}).status_code == 200
        fits_no_more = make_app(gemini_model="gemini-3.8-flash", daily_budget_usd="0.0230")
        assert fits_no_more.test_client().post(TEXT, json={"prompt": "y"}).status_code == 402

    def test_is_part_of_the_key(self, chain: ModelChain) -> None:
        """Each level's answer is another one, where the model has the levels."""
        keys = {
            (name, level): _key(chain, job(model=name, thinking=level))
            for name in (FIRST, "unheard-of")
            for level in (None, "minimal", "high")
        }
        assert keys[FIRST, None] == keys[FIRST, "minimal"] != keys[FIRST, "high"]
        assert keys["unheard-of", None] == keys["unheard-of", "high"]

    @pytest.mark.parametrize("level", ["none", "MINIMAL", 1, True])
    def test_has_four_levels(self, make_app: MakeApp, level: Any) -> None:
        """Any other word is 400 that names the field."""
        answer = make_app().test_client().post(TEXT, json={"prompt": "x", "thinking": level})
        assert answer.status_code == 400
        assert answer.json is not None
        assert [detail["field"] for detail in answer.json["details"]] == ["thinking"]

    def test_tokens_are_told(self, client: FlaskClient, gemini: ScriptedGemini) -> None:
        """`usage` has them, as part of the output."""
        gemini.answers(text("fine", thoughts=30))
        usage = client.post(TEXT, json={"prompt": "x"}).json["usage"]  # type: ignore[index]
        assert usage["thinking_tokens"] == 30
        assert usage["output_tokens"] > 30


class TestATemperature:
    """Models that ignore a temperature are not sent one."""

    def test_an_ignored_temperature_is_neither_sent_nor_part_of_the_key(
        self, make_app: MakeApp, gemini: ScriptedGemini
    ) -> None:
        """The answer says so to whoever gave one, on a hit alike."""
        client = make_app(gemini_model="gemini-3.8-flash").test_client()
        plain = client.post(TEXT, json={"prompt": "x"})
        warm, warm_again = (client.post(TEXT, json={"prompt": "x", "temperature": t}) for t in (1.5, 0.1))
        assert plain.json is not None
        assert "ignored" not in plain.json
        for answer in (warm, warm_again):
            assert answer.json is not None
            assert answer.json["ignored"] == ["temperature"]
            assert answer.headers["X-Cached"] == "true"
        assert gemini.count == 1
        assert "temperature" not in config_of(gemini.calls[0])

    def test_an_ignored_temperature_is_said_in_the_end_of_a_stream(self, make_app: MakeApp) -> None:
        """In `done`."""
        client = make_app(gemini_model="gemini-3.8-flash").test_client()
        answer = client.post(TEXT, json={"prompt": "x", "temperature": 1, "stream": True})
        assert '"ignored": ["temperature"]' in answer.text

    def test_a_temperature_that_is_used_is_sent(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """And keeps answers apart."""
        client = make_app().test_client()
        for temperature in (0.5, 1.0):
            answer = client.post(TEXT, json={"prompt": "x", "temperature": temperature})
            assert answer.json is not None
            assert "ignored" not in answer.json
        assert [config_of(call)["temperature"] for call in gemini.calls] == [0.5, 1.0]


class TestPythonCallers:
    """gemini_wrapper's functions use the same chain."""

    def test_get_an_answer_from_the_next_model(
        self, environment: dict[str, str], gemini: ScriptedGemini, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the environment's settings."""
        from gemini_wrapper import GeminiTasks
        from mtllm.settings import load_settings

        gemini.answers(status(404), text("fine"))
        tasks = GeminiTasks(load_settings(environment | {"GEMINI_FALLBACK_MODELS": NEXT}, env_file=None))
        try:
            assert tasks.run("text", prompt="x") == "fine"
        finally:
            tasks.close()
        assert asked(gemini) == [FIRST, NEXT]


def _key(chain: ModelChain, work: Job) -> bytes:
    route = chain.route(work)
    return work.key(route.model, terms=route.terms)


def test_the_banner_says_who_answers_and_why_not_the_first(environment: dict[str, str], gemini: ScriptedGemini) -> None:
    """`python app.py` with a new key: model, price, and Google's words for the one that is not served."""
    gemini.plays(parse_model(f"{FIRST}=closed"))
    environ = os.environ | environment | {"GEMINI_FALLBACK_MODELS": NEXT, "PORT": "0"}
    command = [sys.executable, "app.py"]
    with subprocess.Popen(
        command, cwd=PROJECT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as served:
        assert served.stdout is not None
        told = next(line.decode() for line in served.stdout if b"  model  " in line)
        served.terminate()
        served.stdout.read()
    assert told.split(None, 1)[1].strip() == (
        f"{NEXT}, $0.25 in, $1.5 out per million tokens; {FIRST} is not served to this key (404, NOT_FOUND)"
    )
    assert served.returncode == 0
