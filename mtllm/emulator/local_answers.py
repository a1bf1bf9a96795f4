"""A small local model in the place of canned answers: real words, real counts, and no judgement.

    TOY_MODEL     the name under which it answers, whoever was asked
    ToyGemini     GeminiCall -> EmulatedReply, by a LanguageModel

How each kind of call is put to a model so small was measured: code goes best with its fence already written, labels by
how likely each becomes through the text, and never by asking for one (docs/emulator.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mtllm.emulator.answers import asks_for_code, find_language
from mtllm.emulator.calls import GeminiCall
from mtllm.emulator.local_model import LanguageModel, PromptRefusedError, Said
from mtllm.emulator.models import invalid_argument
from mtllm.emulator.replies import EmulatedReply, Usage, answered, candidate, failed, json_reply
from mtllm.emulator.schemas import standard_schema

TOY_MODEL = "offline-smollm2-135m-toy"
MOST_TOKENS = 512
"""Of an answer: some ten seconds of one core."""
MOST_JSON_TOKENS = 128
"""Of one in JSON: what is not whole by then rambles."""

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What it was trained with; any other makes it worse."""
_FENCE = "`" * 3
_TURN, _END = "<|im_start|>", "<|im_end|>"
_WITHOUT_CONTENT = ("N/A", "some text", "Hello.")
_LONGEST_LABEL = 3
"""Tokens of a label that are looked at."""
_SHORTEST_TOKEN = 3
"""Characters; a shorter beginning of a label tells nothing of it."""
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS"}


class ToyGemini:
    """Answers calls by a small language model, always as TOY_MODEL."""

    name = TOY_MODEL
    description = "SmolLM2-135M on this machine: a toy that is often wrong."

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._expect = lru_cache(maxsize=256)(self._likelihoods_without_content)

    def __call__(self, call: GeminiCall) -> EmulatedReply:
        """Return the reply to a call that asks for an answer or a count."""
        call = replace(call, model=TOY_MODEL)
        try:
            return self._reply(call)
        except PromptRefusedError as problem:
            return failed(call, invalid_argument(str(problem)))

    def _reply(self, call: GeminiCall) -> EmulatedReply:
        if call.method == "countTokens":
            return json_reply({"totalTokens": self._model.count(_chat(call))})
        if call.forced_functions:
            return answered(call, [self._call_function(call)])
        if call.labels and call.mime_type != "application/json":
            return answered(call, [self._choose(call)])
        pieces = self._talk(call)
        first = next(pieces)  # a prompt that is refused is refused here, before a head is sent
        payloads = _documents(call, first, pieces)
        return answered(call, payloads if call.streams else [_whole(call, first, pieces)])

    def _talk(self, call: GeminiCall) -> Iterator[Said]:
        schema = _schema_of(call)
        if schema is None and asks_for_code(call):
            return self._write_code(call)
        return self._say(call, _chat(call), call.stop_sequences, schema)

    def _say(self, call: GeminiCall, prompt: str, stop: Sequence[str], schema: Any = None) -> Iterator[Said]:
        return self._model.say(
            prompt,
            max_tokens=min(call.max_output_tokens or MOST_TOKENS, MOST_TOKENS if schema is None else MOST_JSON_TOKENS),
            temperature=1.0 if call.temperature is None else call.temperature,
            stop=stop,
            schema=schema,
        )

    def _write_code(self, call: GeminiCall) -> Iterator[Said]:
        opening = f"{_FENCE}{find_language(call.system) or 'python'}\n"
        prompt = _chat(replace(call, system=""), begun=opening)
        pieces = self._say(call, prompt, (_FENCE, *call.stop_sequences))
        written = opening
        for said in pieces:
            if said.finish:
                closing = "" if said.finish == "length" else _FENCE if written.endswith("\n") else f"\n{_FENCE}"
                yield replace(said, text=(opening if written is opening else "") + said.text + closing)
            else:
                yield replace(said, text=opening + said.text if written is opening else said.text)
            written += said.text

    def _choose(self, call: GeminiCall) -> dict[str, Any]:
        label = self._rank(call.prompt, call.labels)
        usage = Usage(
            prompt=self._model.count(_question(call.prompt, call.labels)), candidates=self._model.count(label)
        )
        return candidate(call, label, finish_reason="STOP", usage=usage)

    def _call_function(self, call: GeminiCall) -> dict[str, Any]:
        functions = {function.name: function for function in call.forced_functions}
        name = self._rank(call.prompt, tuple(functions)) if len(functions) > 1 else next(iter(functions))
        schema = standard_schema(functions[name].schema)
        takes_nothing = not schema or not schema.get("properties")
        said = Said("{}", "stop") if takes_nothing else _join(self._say(call, _chat(call), (), schema))
        usage = Usage(prompt=said.prompt_tokens, candidates=said.tokens)
        if said.finish == "length":  # JSON that was cut is none
            return candidate(call, "", finish_reason="MALFORMED_FUNCTION_CALL", usage=usage)
        part = {"functionCall": {"name": name, "args": json.loads(said.text)}}
        return candidate(call, "", finish_reason="STOP", usage=usage, more_parts=[part])

    # Labels by calibrated likelihood ----------------------------------------------------------------------------------

    def _rank(self, text: str, labels: tuple[str, ...]) -> str:
        """Return the label that the text makes likelier than texts without content do."""
        expected = self._expect(labels)
        found = self._likelihoods(text, labels)
        return max(labels, key=lambda label: found[label] - expected[label])

    def _likelihoods_without_content(self, labels: tuple[str, ...]) -> Mapping[str, float]:
        several = [self._likelihoods(text, labels) for text in _WITHOUT_CONTENT]
        return {label: sum(one[label] for one in several) / len(several) for label in labels}

    def _likelihoods(self, text: str, labels: Sequence[str]) -> Mapping[str, float]:
        question = _question(text, labels)
        known: dict[str, Sequence[tuple[str, float]]] = {}

        def look(begun: str) -> Sequence[tuple[str, float]]:
            if begun not in known:
                known[begun] = self._model.continuations(question + begun)
            return known[begun]

        return {label: _likelihood(f" {label}", look) for label in labels}


def _likelihood(label: str, look: Callable[[str], Sequence[tuple[str, float]]]) -> float:
    """Add up the log-likelihoods of a label's tokens, each the longest likely one that the label goes on with."""
    total, begun = 0.0, ""
    for _ in range(_LONGEST_LABEL):
        rest = label[len(begun) :]
        if not rest:
            break
        likely = look(begun)
        fitting = [(token, value) for token, value in likely if token and rest.startswith(token)]
        token, value = max(fitting, key=lambda pair: len(pair[0]), default=("", 0.0))
        if len(token) < min(_SHORTEST_TOKEN, len(rest)):
            return total + likely[-1][1]  # not among the likely ones: at most as likely as the last of them
        total, begun = total + value, begun + token
    return total


def _question(text: str, labels: Sequence[str]) -> str:
    return (
        f"Classify each text into one of these categories: {', '.join(labels)}.\n\n"
        f"Text: {' '.join(text.split())}\nCategory:"
    )


def _chat(call: GeminiCall, begun: str = "") -> str:
    """Return the prompt of a conversation in which the answer has `begun`."""
    system, prompt = (text.replace(_TURN, "").replace(_END, "") for text in (call.system or _SYSTEM, call.prompt))
    return f"{_TURN}system\n{system}{_END}\n{_TURN}user\n{prompt}{_END}\n{_TURN}assistant\n{begun}"


def _schema_of(call: GeminiCall) -> Any:
    if call.schema is not None:
        return standard_schema(call.schema)
    return {"type": "object"} if call.mime_type == "application/json" else None


def _join(pieces: Iterator[Said]) -> Said:
    text, last = [], Said("")
    for last in pieces:
        text.append(last.text)
    return replace(last, text="".join(text))


def _whole(call: GeminiCall, first: Said, pieces: Iterator[Said]) -> dict[str, Any]:
    said = _join(iter([first, *pieces]))
    return _document(call, said)


def _documents(call: GeminiCall, first: Said, pieces: Iterator[Said]) -> Iterator[dict[str, Any]]:
    yield _document(call, first)
    yield from (_document(call, said) for said in pieces)


def _document(call: GeminiCall, said: Said) -> dict[str, Any]:
    if not said.finish:
        return candidate(call, said.text)
    usage = Usage(prompt=said.prompt_tokens, candidates=said.tokens)
    return candidate(call, said.text, finish_reason=_FINISH.get(said.finish, "OTHER"), usage=usage)
