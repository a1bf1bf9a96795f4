"""Extraction: a text and a JSON schema in, JSON that fits it out. One entry and one model made the whole of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from app import Api
from mtllm.json_schema import MAX_DEPTH, find_misfit, find_schema_problem
from tests.support.scripted_gemini import ScriptedGemini, text

EXTRACT = "/api/v1/extract/json"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
    "required": ["name", "age"],
}


@pytest.fixture(params=["sdk", "rest"])
def client(request: pytest.FixtureRequest, make_app: Callable[..., Api]) -> FlaskClient:
    """A service, asked through either client of Gemini."""
    return make_app(gemini_client=request.param).test_client()


def extract(client: FlaskClient, schema: Any = PERSON, said: str = "Ann is 31.") -> Any:
    """The answer to one request."""
    body = json.dumps({"text": said, "json_schema": schema})  # Flask's client would sort the words of the schema
    return client.post(EXTRACT, data=body, content_type="application/json")


def test_the_answer_is_json_and_not_a_text(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Gemini is given the schema; a repeat is free and the same."""
    gemini.answers(text('{"name": "Ann", "age": 31}'))
    answers = [extract(client) for _ in range(2)]
    assert [answer.json["extracted"] for answer in answers] == [{"name": "Ann", "age": 31}] * 2
    assert [answer.headers["X-Cached"] for answer in answers] == ["false", "true"]
    config = json.loads(gemini.calls[0].raw)["generationConfig"]
    assert (config["responseMimeType"], config["responseJsonSchema"]) == ("application/json", PERSON)


def test_another_schema_is_another_question(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Schemas are part of the key, with the order of their words: a model writes in that order."""
    gemini.answers(*[text('{"name": "Ann", "age": 31}')] * 3)
    turned = dict(reversed(PERSON.items()))
    for schema in (PERSON, turned, {"type": "object"}):
        assert extract(client, schema).headers["X-Cached"] == "false"
    assert list(json.loads(gemini.calls[1].raw)["generationConfig"]["responseJsonSchema"]) == list(turned)


def test_an_answer_that_does_not_fit_is_asked_for_once_more(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Both are paid for; two that do not fit are an error."""
    gemini.answers(text('{"name": 7}'), text('{"name": "Ann", "age": null}'))
    answer = extract(client)
    assert answer.json["extracted"] == {"name": "Ann", "age": None}
    gemini.answers(text("Ann, 31"), text('{"name": "Bo", "age": "31"}'))
    failed = extract(client, said="Bo is 31.")
    assert (failed.status_code, failed.json["code"]) == (502, "upstream_invalid_answer")
    assert int(failed.headers["X-Cost-Nanodollars"]) > 0


def test_json_that_was_cut_is_no_json(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """422 that says what to raise."""
    gemini.answers(*[text('{"name": "An', finish="MAX_TOKENS")] * 2)
    assert extract(client).json["code"] == "max_output_tokens_too_small"


@pytest.mark.parametrize(
    "schema", [{"type": 7}, {"required": "name"}, [], "text", None, {"properties": {"a": {"minimum": "x"}}}]
)
def test_what_is_no_schema_is_refused(client: FlaskClient, gemini: ScriptedGemini, schema: Any) -> None:
    """400 that names the field; nothing is asked."""
    answer = extract(client, schema)
    assert answer.status_code == 400
    assert answer.json["details"][0]["field"].startswith("json_schema")
    assert gemini.count == 0


def test_references_that_multiply_are_given_up() -> None:
    """Each of forty names the next one twice: followed to the end they would be a million millions."""
    names = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    schema = {"$ref": "#/$defs/d0", "$defs": names | {"d40": {"type": "object"}}}
    assert find_misfit("{}", json.dumps(schema)) == "its schema cannot be followed"


def test_a_schema_that_is_too_deep_is_refused() -> None:
    """Nobody's stack is taken by it."""
    schema: Any = {"type": "string"}
    for _ in range(MAX_DEPTH):
        schema = {"type": "array", "items": schema}
    assert find_schema_problem(schema) == f"must have at most {MAX_DEPTH} levels"


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, '"x"', True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, "7", False),
        ({"$ref": "https://example.org/schema"}, "7", False),
        ({"$ref": "#"}, "7", False),
        ({"type": "string", "pattern": "^a$"}, '"b"', True),
        ({"type": "object", "properties": {"pattern": {"type": "string"}}}, '{"pattern": 7}', False),
        ({"type": "number"}, "NaN", False),
    ],
)
def test_references_patterns_and_odd_numbers(schema: Any, value: str, fits: bool) -> None:
    """Nothing is fetched, nothing loops, patterns are Gemini's, and a property may be named like a keyword."""
    assert (find_misfit(value, json.dumps(schema)) == "") is fits


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(JSON)
def test_any_value_fits_the_schema_of_itself(value: Any) -> None:
    """`const` is kept as it is, whatever words it holds."""
    assert find_misfit(json.dumps(value), json.dumps({"const": value})) == ""


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "$ref", "required", "enum"]), JSON))
def test_any_object_is_a_schema_or_told_what_is_wrong(schema: dict[str, Any]) -> None:
    """And checking an answer against it ends."""
    if find_schema_problem(schema) == "":
        find_misfit("{}", json.dumps(schema))
