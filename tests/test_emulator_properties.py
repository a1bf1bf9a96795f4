"""Whatever is asked, the emulator answers in Gemini's form."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import Emulator
from mtllm.emulator.schemas import fit
from mtllm.emulator.wire import BodyTooLargeError, MalformedRequestError, read_request

pytest.importorskip("hypothesis")

from hypothesis import example, given, settings
from hypothesis import strategies as st

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def connection() -> Iterator[http.client.HTTPConnection]:
    with Emulator() as emulator:
        client = http.client.HTTPConnection(urlsplit(emulator.url).netloc, timeout=10)
        yield client
        client.close()


def post(connection: http.client.HTTPConnection, body: Any) -> tuple[int, Any]:
    connection.request("POST", "/v1beta/models/m:generateContent?key=k", json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@settings(max_examples=60, deadline=None)
@example(contents=None, parts=None, config=None, schema=[""], limit=None)
@example(contents=None, parts=None, config=None, schema=None, limit=0)
@given(contents=ANYTHING, parts=ANYTHING, config=ANYTHING, schema=ANYTHING, limit=ANYTHING)
def test_any_body_gets_an_answer(
    connection: http.client.HTTPConnection, contents: Any, parts: Any, config: Any, schema: Any, limit: Any
) -> None:
    """A body of any shape is answered with a candidate or with Google's error, and the connection lives on."""
    structured = {
        "contents": [{"parts": parts}, {"parts": [{"text": "x"}]}],
        "generationConfig": {"responseSchema": {"enum": schema}, "maxOutputTokens": limit},
    }
    for body in (structured, {"contents": contents, "generationConfig": config}, {"systemInstruction": parts}, config):
        status, payload = post(connection, body)
        assert status in (200, 400)
        assert ("candidates" in payload) == (status == 200)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=5),
)
def test_a_constrained_answer_is_one_of_the_labels(
    connection: http.client.HTTPConnection, text: str, labels: list[str]
) -> None:
    """Spelled exactly as given, whatever characters it holds."""
    config = {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": labels}}
    status, payload = post(connection, {"contents": [{"parts": [{"text": text}]}], "generationConfig": config})
    assert status == 200
    assert payload["candidates"][0]["content"]["parts"][0]["text"] in labels


def bounded_integers() -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.integers(-50, 50), st.integers(0, 50)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    )


def bounded_numbers() -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.floats(-50, 50), st.floats(0.5, 50)).map(
        lambda pair: {"type": "number", "exclusiveMinimum": pair[0], "exclusiveMaximum": pair[0] + pair[1]}
    )


def bounded_strings() -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    )


def objects_of(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text(max_size=4), inner, max_size=3).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": list(fields)[:2],
            "additionalProperties": False,
        }
    )


def arrays_of(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(inner, st.integers(0, 3), st.integers(0, 3)).map(
        lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[1] + parts[2]}
    )


SCHEMAS = st.recursive(
    bounded_integers()
    | bounded_numbers()
    | bounded_strings()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"a": [1]}}, {"type": ["null", "integer"]}])
    | st.lists(st.text() | st.integers(), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    lambda inner: (
        objects_of(inner)
        | arrays_of(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
        | inner.map(lambda part: {"$defs": {"x": part}, "allOf": [part]})
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS, text=st.text(max_size=20))
def test_a_value_fits_its_schema(schema: dict[str, Any], text: str) -> None:
    """As a validator that nobody here wrote says."""
    pytest.importorskip("jsonschema").Draft202012Validator(schema).validate(fit(schema, text))


@settings(max_examples=200, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(["type", "enum", "anyOf", "allOf", "$ref", "items", "properties",
    "required", "minItems", "maxItems", "minimum", "multipleOf", "minLength", "format", "propertyOrdering"]),
    ANYTHING | st.just("#")))  # fmt: skip
def test_nonsense_for_a_schema_is_no_crash(schema: dict[str, Any]) -> None:
    """Whatever stands where a keyword's value should: a value that JSON can say."""
    json.dumps(fit(schema, "x"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"POST /v1/models/m:generateContent HTTP/1.1\r\n"]))
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    """A request, the end of the stream, or one of the two errors that the server answers."""
    with suppress(MalformedRequestError, BodyTooLargeError):
        read_request(io.BytesIO(start + data), lambda _interim: None)
