"""The offline model's answers fit what was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from mtllm.emulator import Emulator
from mtllm.emulator.schemas import fit
from tests.support.gemini_client import LABELS, answer_to, asking, choosing, said


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


class TestCannedAnswers:
    def test_text_says_that_it_is_canned(self, emulator: Emulator) -> None:
        """And tells the prompt's length without repeating it."""
        text = said(answer_to(emulator.url, asking("A secret of 27 characters.")))
        assert "canned" in text
        assert "26 characters" in text
        assert "secret" not in text

    @pytest.mark.parametrize(
        ("language", "fence", "function"),
        [("", "python", "def "), ("Python", "python", "def "), ("JavaScript", "javascript", "function "),
         ("C++", "c++", "char *"), ("Cobol", "python", "def ")],
    )  # fmt: skip
    def test_code_is_a_function_in_a_fence(self, emulator: Emulator, language: str, fence: str, function: str) -> None:
        """In the language asked for when it is known, else in Python, and canned as its comment says."""
        wanted = f" in {language}" if language else ""
        system = f"You write code{wanted}. Answer with the code only, in one fenced block, without explanations."
        code = said(answer_to(emulator.url, asking("Reverse a string", system=system)))
        assert code.startswith(f"```{fence}\n")
        assert code.endswith("\n```")
        assert function in code
        assert "Canned" in code

    def test_canned_python_runs(self, emulator: Emulator) -> None:
        """The function is one."""
        code = said(answer_to(emulator.url, asking("x", system="You write code in python.")))
        names: dict[str, Any] = {}
        exec(code.removeprefix("```python\n").removesuffix("```"), names)
        assert "canned" in names["canned"]()

    @pytest.mark.parametrize(
        ("text", "labels", "label"),
        [
            ("I love this product!", LABELS, "positive"),
            ("I hated it. Terrible.", LABELS, "negative"),
            ("I don't like it", LABELS, "negative"),
            ("Not bad at all", LABELS, "positive"),
            ("The train leaves at noon.", LABELS, "neutral"),
            ("The train leaves at noon.", ["a", "b"], "a"),
            ("The match ended in extra time; sports at its peak", ["politics", "sports"], "sports"),
            ("I love sports", ["politics", "sports"], "sports"),
            ("今日は天気がいい", ["料理", "天気"], "天気"),
            ("I LOVE IT", ["Negative", "POSITIVE"], "POSITIVE"),
        ],
    )
    def test_a_text_is_classified_by_mood_and_words(
        self, emulator: Emulator, text: str, labels: list[str], label: str
    ) -> None:
        """Mood first, then shared words, then neutral, then the first."""
        assert said(answer_to(emulator.url, choosing(text, labels))) == label

    def test_labels_may_hold_any_characters(self, emulator: Emulator) -> None:
        """Commas, quotes, newlines, symbols beyond the BMP: the answer is always exactly one of the labels."""
        labels = ['a, "b"', "a", "line\nbreak", "\U0001f600", "\\", "{}", "ß", " padded ", "<|endoftext|>", "\u2028"]
        for label in labels:
            assert said(answer_to(emulator.url, choosing(f"it says {label} here", labels))) in labels
        assert said(answer_to(emulator.url, choosing("so \U0001f600", labels[2:5]))) == "\U0001f600"

    def test_the_limit_cuts_the_answer(self, emulator: Emulator) -> None:
        """MAX_TOKENS, and no more tokens than allowed; a label is never cut."""
        payload = answer_to(emulator.url, asking(maxOutputTokens=3))
        assert payload["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert payload["usageMetadata"]["candidatesTokenCount"] == 3
        label = "a label of many words"
        body = choosing("x", [label, "b"])
        body["generationConfig"]["maxOutputTokens"] = 1
        assert said(answer_to(emulator.url, body)) == label


class TestJsonMode:
    SCHEMA: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "person": {"$ref": "#/$defs/Person"},
            "mood": {"type": "string", "enum": ["positive", "negative"]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
            "score": {"type": ["number", "null"], "exclusiveMinimum": 3, "maximum": 4},
        },
        "required": ["person", "mood", "tags"],
        "additionalProperties": False,
        "$defs": {
            "Person": {
                "type": "object",
                "properties": {"age": {"type": "integer", "minimum": 18}, "boss": {"$ref": "#/$defs/Person"}},
                "required": ["age"],
            }
        },
    }

    @pytest.mark.parametrize("field", ["responseSchema", "responseJsonSchema", "response_json_schema"])
    def test_the_answer_fits_the_schema_in_either_field(self, emulator: Emulator, field: str) -> None:
        """References, enums, nested objects, arrays, bounds; the enum is chosen by the prompt."""
        validator = pytest.importorskip("jsonschema").Draft202012Validator(self.SCHEMA)
        config: dict[str, Any] = {field: self.SCHEMA}
        body = asking("I hate it", responseMimeType="application/json", **config)
        answer = json.loads(said(answer_to(emulator.url, body)))
        validator.validate(answer)
        assert answer["mood"] == "negative"
        assert answer["tags"] == ["canned answer"] * 2

    def test_geminis_own_dialect_is_read(self, emulator: Emulator) -> None:
        """Types in capitals, `nullable`, whole numbers as strings, `propertyOrdering`."""
        schema = {
            "type": "OBJECT",
            "properties": {"b": {"type": "INTEGER", "minimum": 7}, "a": {"type": "ARRAY", "minItems": "3"}},
            "propertyOrdering": ["a", "b"],
        }
        text = said(answer_to(emulator.url, asking(responseMimeType="application/json", responseSchema=schema)))
        assert list(json.loads(text).items()) == [("a", ["canned answer"] * 3), ("b", 7)]

    def test_json_without_a_schema_is_an_object(self, emulator: Emulator) -> None:
        """It says that it is canned."""
        answer = json.loads(said(answer_to(emulator.url, asking(responseMimeType="application/json"))))
        assert "canned" in answer["answer"]

    def test_an_enum_is_bare_or_json_as_asked(self, emulator: Emulator) -> None:
        """text/x.enum gives the word, application/json the word in quotes, from either field."""
        for field in ("responseSchema", "responseJsonSchema"):
            config: dict[str, Any] = {field: {"type": "string", "enum": LABELS}}
            bare = asking("I love it", responseMimeType="text/x.enum", **config)
            quoted = asking("I love it", responseMimeType="application/json", **config)
            assert said(answer_to(emulator.url, bare)) == "positive"
            assert said(answer_to(emulator.url, quoted)) == '"positive"'

    def test_the_limit_cuts_json_too(self, emulator: Emulator) -> None:
        """MAX_TOKENS leaves half an object, as with the true Gemini."""
        body = asking(responseMimeType="application/json", maxOutputTokens=2)
        payload = answer_to(emulator.url, body)
        assert (said(payload), payload["candidates"][0]["finishReason"]) == ('{"answer', "MAX_TOKENS")


class TestSchemas:
    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            ({}, "canned answer"),
            (True, "canned answer"),
            ({"const": 7}, 7),
            ({"enum": [1, 2]}, 1),
            ({"type": "null"}, None),
            ({"type": 6, "properties": {"n": {"type": 3}}}, {"n": 1}),
            ({"type": "boolean"}, True),
            ({"type": "integer", "multipleOf": 5, "minimum": 11}, 15),
            ({"type": "integer", "maximum": -3}, -3),
            ({"type": "integer", "exclusiveMinimum": 4}, 5),
            ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, 0.5),
            ({"type": "number", "minimum": 3, "exclusiveMinimum": True}, 4.0),
            ({"type": "number", "multipleOf": 0.25}, 1),
            ({"type": "string", "maxLength": 3}, "can"),
            ({"type": "string", "format": "date"}, "2000-01-01"),
            ({"type": "string", "minLength": 16}, "canned answer .."),
            ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, []),
            ({"prefixItems": [{"type": "null"}, {"const": 1}]}, [None, 1]),
            ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}, {"b": 2, "a": 1}),
            ({"type": "object", "additionalProperties": {"const": 1}}, {"canned1": 1}),
            (
                {"type": "object", "additionalProperties": {"const": 1}, "minProperties": 2},
                {"canned1": 1, "canned2": 1},
            ),
            ({"type": "object", "required": ["x"]}, {"x": "canned answer"}),
            ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"const": 1}}}, 1),
            ({"$ref": "#"}, "canned answer"),
            ({"anyOf": [{"type": "null"}]}, None),
        ],
    )
    def test_each_keyword_is_kept(self, schema: Any, value: Any) -> None:
        """One keyword, one value that fits it."""
        assert fit(schema, "") == value

    @pytest.mark.parametrize(
        "schema",
        [
            {"properties": {"next": {"$ref": "#"}}, "required": ["next"]},
            {"properties": {name: {"$ref": "#"} for name in "abcdefgh"}, "required": list("abcdefgh")},
            {"type": "array", "items": {"$ref": "#"}, "minItems": 1_000_000_000},
            {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
            {"type": "string", "minLength": 10**12},
            {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        ],
    )
    def test_a_schema_without_end_comes_to_one(self, schema: Any) -> None:
        """The value stays small, whatever it would take to fit."""
        assert len(json.dumps(fit(schema, ""))) < 300_000


class TestFunctionCalls:
    TOOLS: ClassVar[list[Any]] = [
        {
            "functionDeclarations": [
                {"name": "weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}},
                {"name": "stock", "parametersJsonSchema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            ]
        }
    ]

    def ask(self, emulator: Emulator, prompt: str, **rule: Any) -> Any:
        body = {**asking(prompt), "tools": self.TOOLS, "toolConfig": {"functionCallingConfig": rule}}
        return answer_to(emulator.url, body)["candidates"][0]["content"]["parts"]

    def test_mode_any_gets_a_call_that_fits(self, emulator: Emulator) -> None:
        """The function whose name stands in the prompt, with arguments of its schema."""
        assert self.ask(emulator, "the stock of today", mode="ANY") == [
            {"functionCall": {"name": "stock", "args": {"n": 1}}}
        ]
        assert self.ask(emulator, "?", mode="any") == [
            {"functionCall": {"name": "weather", "args": {"city": "canned answer"}}}
        ]

    def test_only_allowed_functions_are_called(self, emulator: Emulator) -> None:
        """`allowedFunctionNames` narrows the choice."""
        (part,) = self.ask(emulator, "weather", mode="ANY", allowedFunctionNames=["stock"])
        assert part["functionCall"]["name"] == "stock"

    @pytest.mark.parametrize("mode", ["AUTO", "NONE", None])
    def test_other_modes_get_text(self, emulator: Emulator, mode: str | None) -> None:
        """A call that nobody demands is not made."""
        assert "text" in self.ask(emulator, "weather", mode=mode)[0]


def test_a_stop_sequence_ends_the_answer(emulator: Emulator) -> None:
    """Before the first of them, with STOP, and it is not part of the text."""
    payload = answer_to(emulator.url, asking(stopSequences=["nowhere", "offline", "canned answer from"]))
    assert said(payload) == "This is a "
    assert payload["candidates"][0]["finishReason"] == "STOP"
