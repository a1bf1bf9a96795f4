"""What the offline model says: an answer that fits the call and says that it is canned, the same for the same call.

CannedAnswer     text or function call, why it ends, what it thought
compose          call, model -> CannedAnswer
split_answer     a CannedAnswer -> the documents that carry it
asks_for_code, find_language    what a system instruction wants
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.labels import choose_label
from mtllm.emulator.models import PlayedModel, ThinkingKind, count_thoughts
from mtllm.emulator.replies import Usage, candidate, prompt_tokens, token_count
from mtllm.emulator.schemas import fit

_ENUM = "text/x.enum"
_JSON_MODE = "application/json"
_THOUGHT = "Canned thoughts: no language model is thinking."
_SIGNATURE = "Y2FubmVk"
"""A thoughtSignature, which clients send back with the call's result; bytes in base64."""


@dataclass(frozen=True, slots=True)
class CannedAnswer:
    """One answer of the offline model."""

    text: str
    finish_reason: str = "STOP"
    function_call: Mapping[str, Any] | None = None
    thoughts: int = 0
    """Tokens that were spent on thinking."""

    @property
    def tokens(self) -> int:
        """Return what the visible answer counts."""
        if self.function_call is not None:
            return token_count(json.dumps(self.function_call))
        return token_count(self.text) if self.text else 0


def compose(call: GeminiCall, model: PlayedModel | None = None) -> CannedAnswer:
    """Return the offline model's answer: a function call where one is demanded, JSON where a schema is, a label, text.

    The call's stop sequences and its limit cut it; a label is never cut, for it would be another answer.
    """
    thoughts = count_thoughts(model, call.thinking) if model else 0
    limit = call.max_output_tokens
    if limit is not None and thoughts >= limit:
        return CannedAnswer("", "MAX_TOKENS", thoughts=limit)
    if call.forced_functions:
        return CannedAnswer("", function_call=_call_function(call), thoughts=thoughts)
    if call.labels and call.mime_type != _JSON_MODE:
        return CannedAnswer(choose_label(call.prompt, call.labels), thoughts=thoughts)
    text = _cut_at_stops(_compose_text(call), call)
    room = None if limit is None else limit - thoughts
    if room is None or not text or token_count(text) <= room:
        return CannedAnswer(text, thoughts=thoughts)
    return CannedAnswer(text[: 4 * room], "MAX_TOKENS", thoughts=thoughts)


def split_answer(call: GeminiCall, model: PlayedModel, answer: CannedAnswer, chunks: int) -> Iterator[dict[str, Any]]:
    """Yield the documents that carry an answer, at most `chunks` with text; usage grows, the last one ends it."""
    asked = prompt_tokens(call)
    parts = list(_make_parts(call, model, answer))
    text, size = answer.text, max(1, -(-len(answer.text) // max(1, chunks)))
    for end in range(size, max(1, len(text)) + size, size):  # an empty answer is one, too
        tokens = token_count(text[:end]) if text else answer.tokens
        usage = Usage(prompt=asked, candidates=tokens, thoughts=answer.thoughts)
        reason = answer.finish_reason if end >= len(text) else None
        yield candidate(call, text[end - size : end], finish_reason=reason, usage=usage, more_parts=parts)
        parts = []


def _make_parts(call: GeminiCall, model: PlayedModel, answer: CannedAnswer) -> Iterator[dict[str, Any]]:
    """The parts before the text: thoughts, where they are wanted, and a function call."""
    if answer.thoughts and call.thinking.shows:
        yield {"text": _THOUGHT, "thought": True}
    if answer.function_call is not None:
        yield _sign(model, {"functionCall": answer.function_call})


def _sign(model: PlayedModel, part: dict[str, Any]) -> dict[str, Any]:
    return part if model.thinking is ThinkingKind.UNKNOWN else {**part, "thoughtSignature": _SIGNATURE}


def _call_function(call: GeminiCall) -> dict[str, Any]:
    functions = {function.name: function for function in call.forced_functions}
    chosen = functions[choose_label(call.prompt, tuple(functions))]
    arguments = fit(chosen.schema, call.prompt) if chosen.schema is not None else {}
    return {"name": chosen.name, "args": arguments if isinstance(arguments, dict) else {}}


def _cut_at_stops(text: str, call: GeminiCall) -> str:
    places = [place for place in map(text.find, call.stop_sequences) if place >= 0]
    return text[: min(places)] if places else text


def _compose_text(call: GeminiCall) -> str:
    if call.schema is not None and call.mime_type != _ENUM:
        return json.dumps(fit(call.schema, call.prompt), ensure_ascii=False)
    said = (
        "This is a canned answer from the offline model: no language model read the prompt, "
        f"which has {len(call.prompt)} characters. Set GOOGLE_API_KEY and start without --offline to ask Gemini."
    )
    if call.mime_type == _JSON_MODE:
        return json.dumps({"answer": said})
    return _compose_code(call) if asks_for_code(call) else said


def asks_for_code(call: GeminiCall) -> bool:
    """Return whether the answer is to be code."""
    return "code" in call.system.casefold()


def find_language(system: str) -> str:
    """Return the programming language that a system instruction names, in lower case; empty when it names none."""
    named = _LANGUAGE.search(system)
    return named[1].lower() if named else ""


_LANGUAGE = re.compile(r"\bcode in ([\w+#]+)", re.IGNORECASE)
_SAID = '"canned offline answer"'
_FUNCTIONS = {  # what begins a comment, and a function
    "python": ("#", f"def canned():\n    return {_SAID}"),
    "javascript": ("//", f"function canned() {{\n  return {_SAID};\n}}"),
    "typescript": ("//", f"function canned(): string {{\n  return {_SAID};\n}}"),
    "java": ("//", f"static String canned() {{\n    return {_SAID};\n}}"),
    "c": ("//", f"const char *canned(void) {{\n    return {_SAID};\n}}"),
    "c++": ("//", f"const char *canned() {{\n    return {_SAID};\n}}"),
    "c#": ("//", f"static string Canned() {{\n    return {_SAID};\n}}"),
    "go": ("//", f"func canned() string {{\n\treturn {_SAID}\n}}"),
    "rust": ("//", f"fn canned() -> &'static str {{\n    {_SAID}\n}}"),
    "ruby": ("#", f"def canned\n  {_SAID}\nend"),
    "bash": ("#", f"canned() {{\n  echo {_SAID}\n}}"),
}


def _compose_code(call: GeminiCall) -> str:
    named = find_language(call.system)
    language = named if named in _FUNCTIONS else "python"
    comment, function = _FUNCTIONS[language]
    told = f"{comment} Canned answer from the offline model to a description of {len(call.prompt)} characters."
    return f"```{language}\n{told}\n{function}\n```"
