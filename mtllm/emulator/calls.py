"""What one request asks of Gemini, read as Google reads it.

    GeminiCall           a request to Gemini's API
    ThinkingWish         its thinkingConfig
    DeclaredFunction     a function that the answer must call
    parse_call           HttpRequest -> GeminiCall

Google's JSON takes each field in camelCase and in snake_case, an integer as a string of digits, and one object where a
list is due (https://protobuf.dev/programming-guides/json/ and the samples of https://ai.google.dev/api).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mtllm.emulator.wire import HttpRequest

GENERATING = ("generateContent", "streamGenerateContent")
SERVED = (*GENERATING, "countTokens")
"""The methods of a model that the emulator serves."""

_PATH = re.compile(r"(?:/.*)?/(?P<version>v1(?:alpha|beta)?)/models(?:/(?P<model>[^/:]+)(?::(?P<action>\w+))?)?")
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

    def __bool__(self) -> bool:
        return self.budget is not None or self.level is not None


@dataclass(frozen=True, slots=True)
class DeclaredFunction:
    """A function that a model may call, with the JSON schema of its arguments."""

    name: str
    schema: Any


@dataclass(frozen=True, slots=True)
class GeminiCall:
    """One request to Gemini's API."""

    method: str
    """generateContent, streamGenerateContent, countTokens, listModels, getModel, or empty for anything else."""
    model: str
    key: str | None
    """From the header `x-goog-api-key`, a bearer token or the query; None when none is there."""
    prompt: str = ""
    """The texts of all turns, a line each."""
    last_turn: str = ""
    """The texts of the last turn."""
    system: str = ""
    parts: int = 0
    """How many parts the turns have, of any kind."""
    media_tokens: int = 0
    """What the parts count that are no text."""
    labels: tuple[str, ...] = ()
    """The values of an enum schema; the answer must be one of them."""
    schema: Any = None
    """The JSON schema, in Gemini's dialect or the standard one, that the answer must fit; None for free text."""
    mime_type: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    stop_sequences: tuple[str, ...] = ()
    thinking: ThinkingWish = ThinkingWish()
    forced_functions: tuple[DeclaredFunction, ...] = ()
    """The answer must call one of these; empty when it may be text."""
    problem: str = ""
    """Why the request is invalid, in Google's words; empty when it is not."""
    version: str = "v1beta"
    action: str = ""
    """The word behind the colon of the path."""
    sse: bool = False
    """A stream is wanted as server-sent events, not as a JSON array."""
    numeric_enums: bool = False
    """Enum values are wanted as their numbers (`$alt=json;enum-encoding=int`, as Google's own SDK asks)."""
    takes_chunks: bool = True
    """The client speaks HTTP/1.1."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    raw: bytes = b""
    """The body as it came."""

    @property
    def streams(self) -> bool:
        """Is the answer wanted in pieces."""
        return self.method == "streamGenerateContent"

    @property
    def generates(self) -> bool:
        """Is an answer wanted, and not a count or a list."""
        return self.method in GENERATING


def parse_call(request: HttpRequest) -> GeminiCall:
    """Return what a request asks; a bad one is told in `problem`, never raised."""
    url = urlsplit(request.target)
    query = parse_qs(url.query)
    place = _PATH.fullmatch(unquote(url.path))
    alt = query.get("alt", query.get("$alt", [""]))[0]
    reader = _BodyReader(request.body)
    config = reader.config
    return GeminiCall(
        method=_name_method(request.verb, place) if place else "",
        model=(place["model"] or "") if place else "",
        key=_find_key(request.headers, query),
        prompt="\n".join(text for turn in reader.turns for text in turn.texts),
        last_turn="\n".join(reader.turns[-1].texts) if reader.turns else "",
        system="\n".join(_read_turn(one_field(reader.body, "systemInstruction")).texts),
        parts=sum(turn.parts for turn in reader.turns),
        media_tokens=sum(turn.media_tokens for turn in reader.turns),
        labels=tuple(map(str, _items(_mapping(reader.schema).get("enum")))),
        schema=reader.schema,
        mime_type=str(one_field(config, "responseMimeType") or ""),
        max_output_tokens=reader.max_output_tokens,
        temperature=reader.temperature,
        stop_sequences=tuple(
            text for text in _items(one_field(config, "stopSequences")) if isinstance(text, str) and text
        ),
        thinking=reader.thinking,
        forced_functions=reader.forced_functions,
        problem=reader.problem,
        version=place["version"] if place else "",
        action=(place["action"] or "") if place else "",
        sse=alt == "sse",
        numeric_enums="enum-encoding=int" in alt,
        takes_chunks=request.takes_chunks,
        headers=request.headers,
        raw=request.body,
    )


def _name_method(verb: str, place: re.Match[str]) -> str:
    if verb == "POST":
        return place["action"] if place["action"] in SERVED else ""
    if verb not in ("GET", "HEAD") or place["action"]:
        return ""
    return "getModel" if place["model"] else "listModels"


def _find_key(headers: Mapping[str, str], query: Mapping[str, Sequence[str]]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token if scheme.lower() == "bearer" else ""
    return headers.get("x-goog-api-key") or "".join(query.get("key", ())) or bearer or None


def one_field(message: Mapping[str, Any], name: str) -> Any:
    """Return a field of a message, in whichever of its two spellings it came; None when it is missing."""
    value = message.get(name)
    return message.get(_spell_snake(name)) if value is None else value


@cache
def _spell_snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One of `contents`: its texts, and how much else."""

    texts: tuple[str, ...] = ()
    parts: int = 0
    media_tokens: int = 0
    role: Any = None
    valid: bool = True


def _read_turn(content: Any) -> _Turn:
    if not isinstance(content, dict):
        return _Turn(valid=content is None)
    parts = [part for part in _items(content.get("parts"), single=True) if isinstance(part, dict) and part]
    texts = tuple(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
    others = [part for part in parts if "text" not in part]
    return _Turn(
        texts=texts,
        parts=len(others) + sum(1 for text in texts if text),
        media_tokens=sum(map(_count_media, others)),
        role=content.get("role"),
    )


def _count_media(part: Mapping[str, Any]) -> int:
    is_media = any(one_field(part, name) for name in ("inlineData", "fileData"))
    return _MEDIA_TOKENS if is_media else -(-len(json.dumps(part)) // 4)


class _BodyReader:
    """The body of a request, read field by field; the first thing wrong with it is `problem`."""

    def __init__(self, raw: bytes) -> None:
        self.problem = ""
        body = self._load(raw)
        inner = one_field(body, "generateContentRequest")
        self.body = _mapping(inner) if inner is not None else body
        self.turns = tuple(self._read_contents())
        self.config = _mapping(one_field(self.body, "generationConfig"))
        limit = self._number(self.config, "maxOutputTokens", whole=True)
        self.max_output_tokens = int(limit) if limit else None
        if limit is not None and limit < 0:
            self._complain("* GenerateContentRequest.generation_config.max_output_tokens: must be positive.\n")
            self.max_output_tokens = None
        self.temperature = self._number(self.config, "temperature")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            self._complain(
                "* GenerateContentRequest.generation_config.temperature: temperature must be in the range [0.0, 2.0].\n"
            )
        self.schema = one_field(self.config, "responseSchema")
        if self.schema is None:
            self.schema = one_field(self.config, "responseJsonSchema")
        self.thinking = self._read_thinking()
        self.forced_functions = self._read_functions()
        if (self._number(self.config, "candidateCount", whole=True) or 1) > 1:
            self._complain("Multiple candidates is not enabled for this model")

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

    def _read_contents(self) -> Iterator[_Turn]:
        contents = one_field(self.body, "contents")
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
        wish = _mapping(one_field(self.config, "thinkingConfig"))
        budget = self._number(wish, "thinkingBudget", whole=True)
        level = one_field(wish, "thinkingLevel")
        return ThinkingWish(
            budget=None if budget is None else int(budget),
            level=str(level).upper() if level else None,
            shows=one_field(wish, "includeThoughts") is True,
        )

    def _read_functions(self) -> tuple[DeclaredFunction, ...]:
        rule = _mapping(one_field(_mapping(one_field(self.body, "toolConfig")), "functionCallingConfig"))
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
        for tool in _items(one_field(self.body, "tools"), single=True):
            for declaration in _items(one_field(_mapping(tool), "functionDeclarations"), single=True):
                fields = _mapping(declaration)
                schema = one_field(fields, "parameters")
                schema = one_field(fields, "parametersJsonSchema") if schema is None else schema
                yield DeclaredFunction(str(fields.get("name", "")), schema)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any, *, single: bool = False) -> Sequence[Any]:
    """A list's items; with `single`, one object counts as a list of one."""
    if isinstance(value, dict) and single:
        return (value,)
    return value if isinstance(value, list) else ()
