"""The chat completions as OpenAI's own client uses them, over a real socket (openai 3, https://pypi.org/project/openai)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app import Api
from mtllm.emulator.models import parse_model
from tests.support.scripted_gemini import CUT, ScriptedGemini, status, stream, text
from tests.support.serving import serving

openai = pytest.importorskip("openai", reason="needs openai (requirements-dev.txt)")
pydantic = pytest.importorskip("pydantic")

MODEL = "gemini-2.5-flash-lite"
ASK: Any = [{"role": "user", "content": "What is the sea?"}]
NO_SCHEMA = {"name": "x", "schema": {"type": 7}}
MakeApp = Callable[..., Api]


@pytest.fixture
def app(make_app: MakeApp) -> Api:
    """A service that a key opens."""
    return make_app(real_time=True, api_keys="alice:secret", rate_limits="", chat_model_aliases=f"gpt-4o={MODEL}")


@pytest.fixture
def client(app: Api) -> Iterator[Any]:
    """OpenAI's client, told nothing but the base URL and the key."""
    with serving(app) as port, connect(port, max_retries=0) as opened:
        yield opened


def connect(port: int, key: str = "secret", **options: Any) -> Any:
    """OpenAI's client of the service at a port."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, **options)


class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    """What the structured answers hold."""

    name: str
    age: int | None = None


class TestAnAnswer:
    """What create() gives."""

    def test_has_text_usage_and_a_finish_reason(self, client: Any, gemini: ScriptedGemini) -> None:
        """And our headers, which say what it cost."""
        gemini.answers(text("Water.", thoughts=7))
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
        answer = raw.parse()
        assert answer.choices[0].message.content == "Water."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == MODEL
        used = gemini.delivered
        assert answer.usage.prompt_tokens == used.prompt
        assert answer.usage.completion_tokens_details.reasoning_tokens == 7
        assert answer.usage.total_tokens == used.total
        assert int(raw.headers["X-Cost-Nanodollars"]) > 0
        assert answer.id == f"chatcmpl-{raw.headers['X-Request-ID']}"

    def test_is_free_the_second_time(self, client: Any, gemini: ScriptedGemini) -> None:
        """The cache is the same as for the other tasks."""
        answers = [client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK) for _ in range(2)]
        assert [answer.headers["X-Cached"] for answer in answers] == ["false", "true"]
        texts = [answer.parse().choices[0].message.content for answer in answers]
        assert texts[0] == texts[1]
        assert gemini.count == 1

    def test_an_answer_that_was_cut_ends_in_length(self, client: Any, gemini: ScriptedGemini) -> None:
        """The caller's limit goes to Gemini as it is, under either of its names."""
        gemini.answers(text("Wat", finish="MAX_TOKENS"), text("Wat", finish="MAX_TOKENS"))
        for limit in ({"max_tokens": 7}, {"max_completion_tokens": 8}):
            answer = client.chat.completions.create(model=MODEL, messages=ASK, **limit)
            assert answer.choices[0].finish_reason == "length"
        limits = [json.loads(call.raw)["generationConfig"]["maxOutputTokens"] for call in gemini.calls]
        assert limits == [7, 8]

    def test_comes_for_a_conversation(self, client: Any, gemini: ScriptedGemini) -> None:
        """System and developer messages are Gemini's system instruction; the assistant's turns the model's."""
        messages: Any = [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "How are you?"},
        ]
        client.chat.completions.create(model=MODEL, messages=messages, temperature=0.5, top_p=0.9, stop=["\n"], seed=1)
        asked = json.loads(gemini.calls[0].raw)
        assert [(turn["role"], turn["parts"][0]["text"]) for turn in asked["contents"]] == [
            ("user", "Hi there"),
            ("model", "Hello."),
            ("user", "How are you?"),
        ]
        assert asked["systemInstruction"]["parts"] == [{"text": "Be brief.\n\nBe kind."}]
        config = asked["generationConfig"]
        assert (config["topP"], config["stopSequences"], config["seed"]) == (pytest.approx(0.9), ["\n"], 1)

    def test_thinks_as_much_as_the_effort_says(self, client: Any, gemini: ScriptedGemini) -> None:
        """reasoning_effort is thinking by another name."""
        client.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="low")
        assert json.loads(gemini.calls[0].raw)["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 1024}

    def test_comes_for_an_alias(self, client: Any, gemini: ScriptedGemini) -> None:
        """CHAT_MODEL_ALIASES; the answer names the model that gave it."""
        assert client.chat.completions.create(model="gpt-4o", messages=ASK).model == MODEL
        assert gemini.calls[0].model == MODEL

    def test_is_in_the_ledger_with_its_task_and_user(self, client: Any, app: Api) -> None:
        """`user` is the tag, made fit for one."""
        client.chat.completions.create(model=MODEL, messages=ASK, user="ann@example.org")
        app.service.ledger.flush()
        [row] = app.service.ledger.export(0, 4e9)
        assert (row.task, row.client, row.tag) == ("chat", "alice", "ann_example.org")

    def test_comes_to_many_at_once(self, app: Api) -> None:
        """The asynchronous client."""

        async def ask(port: int) -> list[str]:
            base = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key="secret", max_retries=0) as client:
                asked = (
                    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": f"{number}"}])
                    for number in range(3)
                )
                return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

        with serving(app) as port:
            assert len(asyncio.run(ask(port))) == 3


class TestAStream:
    """What create(stream=True) gives."""

    def test_has_deltas_a_finish_reason_and_the_usage_where_asked(self, client: Any, gemini: ScriptedGemini) -> None:
        """Usage in one chunk of its own, after the finish."""
        gemini.answers(stream("Wa", "ter."))
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, stream_options=options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Water."
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == gemini.delivered.total
        assert len({chunk.id for chunk in chunks}) == 1

    def test_of_a_stored_answer_looks_the_same(self, client: Any, gemini: ScriptedGemini) -> None:
        """Without usage where nobody asked."""
        for _ in range(2):
            chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True))
            assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
            assert chunks[0].choices[0].delta.role == "assistant"
        assert gemini.count == 1

    def test_helper_sees_the_whole(self, client: Any, gemini: ScriptedGemini) -> None:
        """The client's own accumulation of a stream."""
        gemini.answers(stream("Wa", "ter."))
        with client.chat.completions.stream(model=MODEL, messages=ASK) as events:
            for _ in events:
                pass
            final = events.get_final_completion()
        assert final.choices[0].message.content == "Water."

    def test_a_stream_that_breaks_raises(self, client: Any, gemini: ScriptedGemini) -> None:
        """An APIError with our code."""
        gemini.answers(stream("Wa", CUT))
        with pytest.raises(openai.APIError) as broken:
            list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True))
        assert broken.value.code == "upstream_error"


class TestStructuredOutput:
    """JSON that fits a schema, by response_format or by one forced tool."""

    def test_is_parsed_by_the_client(self, client: Any, gemini: ScriptedGemini) -> None:
        """Gemini is given the schema as its own constraint."""
        gemini.answers(text('{"name": "Ann", "age": 7}'))
        answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Person)
        assert answer.choices[0].message.parsed == Person(name="Ann", age=7)
        config = json.loads(gemini.calls[0].raw)["generationConfig"]
        assert config["responseMimeType"] == "application/json"
        assert config["responseJsonSchema"]["properties"].keys() == {"name", "age"}

    def test_an_output_that_does_not_fit_is_asked_for_once_more(self, client: Any, gemini: ScriptedGemini) -> None:
        """Then it is an error, and never kept."""
        gemini.answers(text('{"age": "seven"}'), text('{"name": "Ann", "age": null}'))
        answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Person)
        assert answer.choices[0].message.parsed == Person(name="Ann")
        gemini.answers(*[text("no JSON")] * 4)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as failed:
                client.chat.completions.parse(
                    model=MODEL, messages=[{"role": "user", "content": "Who?"}], response_format=Person
                )
            assert failed.value.code == "upstream_invalid_answer"
        assert gemini.count == 6

    def test_by_a_forced_tool_is_a_call_of_it(self, client: Any, gemini: ScriptedGemini) -> None:
        """As pydantic-ai (required) and instructor (named) ask for it; streams too."""
        tool: Any = {"type": "function", "function": {"name": "person", "parameters": Person.model_json_schema()}}
        for choice in ("required", {"type": "function", "function": {"name": "person"}}):
            gemini.answers(text('{"name": "Ann"}'))
            answer = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": str(choice)}],
                tools=[tool],
                tool_choice=choice,
            )
            [call] = answer.choices[0].message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("person", {"name": "Ann"})
            assert answer.choices[0].finish_reason == "tool_calls"
        gemini.answers(stream('{"na', 'me": "Bo"}'))
        asked: Any = {"model": MODEL, "messages": ASK, "tools": [tool], "tool_choice": "required"}
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            [streamed] = events.get_final_completion().choices[0].message.tool_calls
        assert json.loads(streamed.function.arguments) == {"name": "Bo"}

    def test_of_any_json_is_an_object(self, client: Any, gemini: ScriptedGemini) -> None:
        """json_object."""
        gemini.answers(text("[1]"), text('{"a": 1}'))
        answer = client.chat.completions.create(model=MODEL, messages=ASK, response_format={"type": "json_object"})
        assert json.loads(answer.choices[0].message.content) == {"a": 1}
        assert gemini.count == 2


class TestErrors:
    """Each as the client's own exception."""

    @pytest.mark.parametrize(
        ("step", "exception", "code"),
        [
            (status(400), "InternalServerError", "upstream_rejected"),
            (status(403), "InternalServerError", "upstream_auth_failed"),
            (text("", finish="SAFETY"), "UnprocessableEntityError", "content_blocked"),
            (status(503), "InternalServerError", "upstream_unavailable"),
        ],
    )
    def test_of_gemini(self, client: Any, gemini: ScriptedGemini, step: Any, exception: str, code: str) -> None:
        """With our code, and a sentence for a person."""
        gemini.answers(*[step] * 4)
        with pytest.raises(getattr(openai, exception)) as failed:
            client.chat.completions.create(model=MODEL, messages=ASK)
        assert failed.value.code == code
        assert "Gemini" in failed.value.body["message"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "body"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "body"),
            ({"modalities": ["audio"]}, "modalities"),
            ({"response_format": {"type": "json_schema", "json_schema": NO_SCHEMA}}, "response_format"),
        ],
    )  # fmt: skip
    def test_of_what_is_not_served_name_it(
        self, client: Any, gemini: ScriptedGemini, body: dict[str, Any], param: str
    ) -> None:
        """BadRequestError, with the field in `param`; nothing is asked."""
        with pytest.raises(openai.BadRequestError) as failed:
            client.chat.completions.create(**{"model": MODEL, "messages": ASK} | body)
        assert failed.value.param.startswith(param)
        assert gemini.count == 0

    def test_of_an_unknown_model(self, client: Any) -> None:
        """NotFoundError that says which there are."""
        with pytest.raises(openai.NotFoundError, match=MODEL) as failed:
            client.chat.completions.create(model="gpt-9", messages=ASK)
        assert failed.value.code == "model_not_found"

    def test_of_a_wrong_key(self, app: Api) -> None:
        """AuthenticationError."""
        with serving(app) as port, connect(port, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model=MODEL, messages=ASK)

    def test_of_a_path_that_is_not_served(self, client: Any) -> None:
        """NotFoundError with a message that the client shows."""
        with pytest.raises(openai.NotFoundError, match="nothing at this path"):
            client.responses.create(model=MODEL, input="x")

    def test_errors_that_waiting_does_not_mend_are_not_asked_again(
        self, make_app: MakeApp, gemini: ScriptedGemini
    ) -> None:
        """A client that retries is told not to: one request for a closed model, one for a spent budget."""
        gemini.plays(parse_model(f"{MODEL}=closed"))
        app = make_app(real_time=True)
        with serving(app) as port, connect(port) as client, pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model=MODEL, messages=ASK)
        assert failed.value.code == "model_unavailable"
        assert failed.value.response.headers["x-should-retry"] == "false"
        requests = app.observers[1].__self__.snapshot().routes  # type: ignore[attr-defined]
        assert sum(figures.statuses[502] for figures in requests.values()) == 1

    def test_errors_that_pass_are_asked_again(self, make_app: MakeApp, gemini: ScriptedGemini) -> None:
        """The client's own retries meet a service that has recovered."""
        gemini.answers(status(500), status(500), text("Water."))
        app = make_app(real_time=True, gemini_max_attempts="1")
        with serving(app) as port, connect(port) as client:
            assert client.chat.completions.create(model=MODEL, messages=ASK).choices[0].message.content == "Water."


def test_the_models_are_listed(client: Any) -> None:
    """Bare names."""
    assert [model.id for model in client.models.list()] == [MODEL]
