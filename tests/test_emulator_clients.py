"""Real clients, and what they send, against the emulator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gemini_client import LABELS, MODEL
from tests.scripted_gemini import ScriptedGemini


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as running:
        yield running


def test_googles_own_sdk_reads_it(gemini: ScriptedGemini, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, streamed, counted and constrained calls of google-generativeai over REST parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genai: Any = pytest.importorskip("google.generativeai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    genai.configure(api_key="k", transport="rest", client_options={"api_endpoint": gemini.url})
    model = genai.GenerativeModel(MODEL)
    enum = {"response_mime_type": "text/x.enum", "response_schema": {"type": "STRING", "enum": LABELS}}

    assert "canned" in model.generate_content("Hello").text
    pieces = [piece.text for piece in model.generate_content("Hello", stream=True)]
    assert len(pieces) == 4
    assert "canned" in "".join(pieces)
    assert model.count_tokens("Hello there").total_tokens == 3
    assert model.generate_content("I love it", generation_config=enum).text == "positive"
    assert gemini.calls[-1].labels == tuple(LABELS)
    assert gemini.calls[0].numeric_enums
