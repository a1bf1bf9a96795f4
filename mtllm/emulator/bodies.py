"""The body of a request, read as Google reads it.

    BodyReader           the fields of a generateContent or countTokens request, and what is wrong with them
    CallTurn                 one of its contents
    ThinkingWish         its thinkingConfig
    DeclaredFunction     a function that the answer must call

Google's JSON takes each field in camelCase and in snake_case, an integer as a string of digits, and one object where a
list is due (https://protobuf.dev/programming-guides/json/ and the samples of https://ai.google.dev/api).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

_ROLES = ("user", "model", "function")
_MEDIA_TOKENS = 258
"""What an image counts (https://ai.google.dev/gemini-api/docs/tokens)."""


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """What a request wants of a model's thinking; None where it says nothing."""

    budget: int | None = None
    level: str | None = None
    """In upper case."""
    shows: bool = False
    """The thoughts are wanted as parts of the answer."""


@dataclass(frozen=True, slots=True)
class DeclaredFunction:
    """A function that a model may call, with the JSON schema of its arguments."""

    name: str
    schema: Any


def one_field(message: Mapping[str, Any], name: str) -> Any:
    """Return a field of a message, in whichever of its two spellings it came; None when it is missing."""
    value = message.get(name)
    return message.get(_spell_snake(name)) if value is None else value


@cache
def _spell_snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)


@dataclass(frozen=True, slots=True)
class CallTurn:
    """One of `contents`: its texts, and how much else."""

    texts: tuple[str, ...] = ()
    parts: int = 0
    media_tokens: int = 0
    role: Any = None
    valid: bool = True


def _read_turn(content: Any) -> CallTurn:
    if not isinstance(content, dict):
        return CallTurn(valid=content is None)
    parts = [part for part in _items(content.get("parts"), single=True) if isinstance(part, dict) and part]
    texts = tuple(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
    others = [part for part in parts if "text" not in part]
    return CallTurn(
        texts=texts,
        parts=len(others) + sum(1 for text in texts if text),
        media_tokens=sum(map(_count_media, others)),
        role=content.get("role"),
    )


def _count_media(part: Mapping[str, Any]) -> int:
    is_media = any(one_field(part, name) for name in ("inlineData", "fileData"))
    return _MEDIA_TOKENS if is_media else -(-len(json.dumps(part)) // 4)


class BodyReader:
    """The body of a request, read field by field; the first thing wrong with it is `problem`."""

    def __init__(self, raw: bytes) -> None:
        self.problem = ""
        body = self._load(raw)
        inner = one_field(body, "generateContentRequest")
        self._body = _mapping(inner) if inner is not None else body
        self._config = _mapping(one_field(self._body, "generationConfig"))
        self.turns = tuple(self._read_turns())
        self.system = "\n".join(_read_turn(one_field(self._body, "systemInstruction")).texts)
        self.max_output_tokens = self._read_limit()
        self.temperature = self._read_temperature()
        self.stop_sequences = tuple(filter(None, map(_text, _items(one_field(self._config, "stopSequences")))))
        self.mime_type = _text(one_field(self._config, "responseMimeType"))
        schema = one_field(self._config, "responseSchema")
        self.schema = one_field(self._config, "responseJsonSchema") if schema is None else schema
        self.labels = tuple(map(str, _items(_mapping(self.schema).get("enum"))))
        self.thinking = self._read_thinking()
        self.forced_functions = self._read_functions()
        if (self._number(self._config, "candidateCount", whole=True) or 1) > 1:
            self._complain("Multiple candidates is not enabled for this model")

    def _read_limit(self) -> int | None:
        limit = self._number(self._config, "maxOutputTokens", whole=True)
        if limit is not None and limit < 0:
            self._complain("* GenerateContentRequest.generation_config.max_output_tokens: must be positive.\n")
        return int(limit) if limit and limit > 0 else None

    def _read_temperature(self) -> float | None:
        temperature = self._number(self._config, "temperature")
        if temperature is not None and not 0 <= temperature <= 2:
            self._complain(
                "* GenerateContentRequest.generation_config.temperature: temperature must be in the range [0.0, 2.0].\n"
            )
        return temperature

    def _complain(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _load(self, raw: bytes) -> Mapping[str, Any]:
        if not raw:
            return {}
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            where = f" {error.msg}, line {error.lineno}." if isinstance(error, json.JSONDecodeError) else ""
            self._complain(f"Invalid JSON payload received.{where}")
            return {}
        if not isinstance(body, dict):
            self._complain("Invalid JSON payload received. The root of a request must be an object.")
        return _mapping(body)

    def _read_turns(self) -> Iterator[CallTurn]:
        contents = one_field(self._body, "contents")
        if contents is not None and not isinstance(contents, dict | list):
            self._complain_value("contents", "Content", contents)
        for number, content in enumerate(_items(contents, single=True)):
            turn = _read_turn(content)
            if not turn.valid:
                self._complain_value(f"contents[{number}]", "Content", content)
            if turn.role and turn.role not in _ROLES:
                self._complain("Please use a valid role: user, model.")
            yield turn

    def _complain_value(self, field: str, kind: str, value: Any) -> None:
        self._complain(f"Invalid value at '{field}' ({kind}), {json.dumps(value)[:80]}")

    def _number(self, message: Mapping[str, Any], name: str, *, whole: bool = False) -> float | None:
        value = one_field(message, name)
        if value is None:
            return None
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or abs(number) > 1e15 or number != number or (whole and number != int(number)):
            kind = "TYPE_INT32" if whole else "TYPE_FLOAT"
            self._complain_value(f"generation_config.{_spell_snake(name)}", kind, value)
            return None
        return number

    def _read_thinking(self) -> ThinkingWish:
        wish = _mapping(one_field(self._config, "thinkingConfig"))
        budget = self._number(wish, "thinkingBudget", whole=True)
        level = one_field(wish, "thinkingLevel")
        return ThinkingWish(
            budget=None if budget is None else int(budget),
            level=str(level).upper() if level else None,
            shows=one_field(wish, "includeThoughts") is True,
        )

    def _read_functions(self) -> tuple[DeclaredFunction, ...]:
        rule = _mapping(one_field(_mapping(one_field(self._body, "toolConfig")), "functionCallingConfig"))
        if str(rule.get("mode", "")).upper() not in ("ANY", "2"):
            return ()
        declared = tuple(self._declared())
        allowed = [str(name) for name in _items(one_field(rule, "allowedFunctionNames"))]
        functions = tuple(one for one in declared if not allowed or one.name in allowed)
        if not declared:
            self._complain("Function calling config is set without function_declarations.")
        elif not functions:
            self._complain("allowed_function_names names none of the function_declarations.")
        return functions

    def _declared(self) -> Iterator[DeclaredFunction]:
        for tool in _items(one_field(self._body, "tools"), single=True):
            for declaration in _items(one_field(_mapping(tool), "functionDeclarations"), single=True):
                fields = _mapping(declaration)
                schema = one_field(fields, "parameters")
                schema = one_field(fields, "parametersJsonSchema") if schema is None else schema
                yield DeclaredFunction(str(fields.get("name", "")), schema)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any, *, single: bool = False) -> Sequence[Any]:
    """A list's items; with `single`, one object counts as a list of one."""
    if isinstance(value, dict) and single:
        return (value,)
    return value if isinstance(value, list) else ()
