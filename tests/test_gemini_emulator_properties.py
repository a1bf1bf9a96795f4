"""Whatever is asked, the emulator answers in Gemini's form."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import Emulator

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
