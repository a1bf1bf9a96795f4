"""Real clients, and what they send, against the emulator."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.__main__ import BEGIN, CLIENTS, END, PAGE, PROBES, ProbeResult, make_table
from tests.support.gemini_client import LABELS, MODEL, GeminiClient
from tests.support.scripted_gemini import ScriptedGemini


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as running:
        yield running


@pytest.fixture
def sdk(gemini: ScriptedGemini, monkeypatch: pytest.MonkeyPatch) -> Any:
    """google-generativeai, which asks the scripted Gemini over REST."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genai: Any = pytest.importorskip("google.generativeai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    genai.configure(api_key="k", transport="rest", client_options={"api_endpoint": gemini.url})
    return genai


def test_googles_own_sdk_reads_it(gemini: ScriptedGemini, sdk: Any) -> None:
    """Plain, streamed, counted and constrained calls of google-generativeai over REST parse."""
    model = sdk.GenerativeModel(MODEL)
    enum = {"response_mime_type": "text/x.enum", "response_schema": {"type": "STRING", "enum": LABELS}}

    assert "canned" in model.generate_content("Hello").text
    pieces = [piece.text for piece in model.generate_content("Hello", stream=True)]
    assert len(pieces) == 4
    assert "canned" in "".join(pieces)
    assert model.count_tokens("Hello there").total_tokens == 3
    assert model.generate_content("I love it", generation_config=enum).text == "positive"
    assert gemini.calls[-1].labels == tuple(LABELS)
    assert gemini.calls[0].numeric_enums


def test_the_sdk_gets_json_and_function_calls(sdk: Any) -> None:
    """It sends a schema's types as numbers, and the mode of function calling too."""
    model = sdk.GenerativeModel(MODEL)
    schema = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}
    config = {"response_mime_type": "application/json", "response_schema": schema}
    assert model.generate_content("x", generation_config=config).text == '{"n": 1}'

    function = {"name": "weather", "description": "Tell it.", "parameters": schema}
    rule = {"function_calling_config": {"mode": "ANY"}}
    answer = model.generate_content("x", tools=[{"function_declarations": [function]}], tool_config=rule)
    call = answer.candidates[0].content.parts[0].function_call
    assert (call.name, dict(call.args)) == ("weather", {"n": 1})


@dataclass(frozen=True)
class Sent:
    """One request as a client was seen to send it, and what the answer must hold."""

    path: str
    body: dict[str, Any]
    answer: str


TURN: dict[str, Any] = {"parts": [{"text": "I love it"}], "role": "user"}
PERSON = {"properties": {"age": {"minimum": 18, "type": "integer"}}, "required": ["age"], "type": "object"}
SEEN = {
    "google-genai 3": Sent(
        "/v1/models/m:generateContent",
        {
            "contents": [TURN],
            "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": PERSON},
        },
        '{\\"age\\": 18}',
    ),
    "google-genai 3 with a base": Sent(
        "/gemini/v1/models/m:streamGenerateContent?alt=sse",
        {"contents": [TURN], "systemInstruction": {"parts": [{"text": "You write code."}], "role": "user"}},
        "```python",
    ),
    "google-genai 2 with tools": Sent(
        "/v1beta/models/m:generateContent",
        {
            "contents": [TURN],
            "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": PERSON}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
            "generationConfig": {},
        },
        '"functionCall":{"name":"f","args":{"age":18}}',
    ),
    "LiteLLM": Sent(
        "/v1beta/models/m:generateContent",
        {
            "contents": [{"role": "user", "parts": [{"text": "x"}]}],
            "system_instruction": {"parts": [{"text": "You write code."}]},
            "generationConfig": {"max_output_tokens": 5},
        },
        '"finishReason":"MAX_TOKENS"',
    ),
    "LiteLLM with a schema": Sent(
        "/v1beta/models/m:generateContent",
        {
            "contents": [{"role": "user", "parts": [{"text": "I love it"}]}],
            "generationConfig": {
                "response_mime_type": "application/json",
                "response_json_schema": {"type": "string", "enum": LABELS},
            },
        },
        '\\"positive\\"',
    ),
    "AI SDK": Sent(
        "/v1beta/models/m:generateContent",
        {
            "generationConfig": {
                "responseMimeType": "application/json",
                "responseSchema": {
                    "required": ["boss"],
                    "type": "object",
                    "properties": {"boss": {"type": "string", "nullable": True}},
                },
            },
            "contents": [{"role": "user", "parts": [{"text": "x"}]}],
        },
        '{\\"boss\\": \\"canned answer\\"}',
    ),
}


@pytest.mark.parametrize("client", SEEN)
def test_what_clients_send_is_understood(gemini: ScriptedGemini, client: str) -> None:
    """As they were seen to send it; the clients themselves run by `python -m tests.clients`."""
    sent = SEEN[client]
    with GeminiClient(gemini.url) as http:
        http.connection.request("POST", sent.path, json.dumps(sent.body), {"x-goog-api-key": "k"})
        response = http.connection.getresponse()
        assert response.status == 200
        assert sent.answer in response.read().decode()


def test_the_table_of_clients_is_whole() -> None:
    """docs/emulator.md has a row for each client that is tried, and each check that it has a call for was passed."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [client.title for client in CLIENTS]
    assert not any("**no**" in row for row in rows)
    assert all((PROBES / client.probe).is_file() for client in CLIENTS)


def test_a_table_says_yes_no_or_nothing() -> None:
    """A check that a client has no call for stays empty."""
    results = [ProbeResult("text", ok=True), ProbeResult("json", ok=False, note="why")]
    assert make_table([(CLIENTS[0], results)]).splitlines()[-1] == (
        f"| {CLIENTS[0].title} | yes |  |  | **no** |  |  |  |  |  |  |"
    )
