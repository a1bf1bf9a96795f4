"""Gemini over plain JSON: requests and answers as Google's REST reference has them, without the SDK.

https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from typing import Any
from urllib.parse import quote

from mtllm.domain.completion import Instruction, Turn
from mtllm.domain.thinking import ThinkingPlan
from mtllm.gemini.answers import Chunk, read_chunk
from mtllm.gemini.bodies import read_document, read_documents
from mtllm.gemini.connections import Session
from mtllm.gemini.deadlines import BoundedCall
from mtllm.gemini.documents import as_count

SOCKET_GRACE_SECONDS = 1.0
"""The socket's own time-out is later than the call's end by this; it matters only if the deadline thread is gone."""


class Rest:
    """Says requests and reads answers as JSON. Thread-safe."""

    def __init__(self, session: Session, _endpoint: str) -> None:
        self.session = session

    def generate(self, model: str, instruction: Instruction, call: BoundedCall) -> Chunk:
        """Ask for a whole answer. Raises UpstreamFailure, or what urllib3 and the reading of JSON raise."""
        with closing(
            self.session.send(_path(model, "generateContent"), _body(instruction), timeout=_grace(call))
        ) as raw:
            _, document = read_document(raw)
        return read_chunk(document)

    def stream(self, model: str, instruction: Instruction, call: BoundedCall) -> Generator[Chunk]:
        """Ask with the first `next`, and yield the chunks of the answer. Closing the generator ends the response.

        Raises like `generate`.
        """
        path = _path(model, "streamGenerateContent")
        response = self.session.send(path, _body(instruction), timeout=_grace(call), query="alt=sse")
        with closing(response):
            for _, document in read_documents(response):
                yield read_chunk(document)


def generation_config(instruction: Instruction) -> dict[str, Any]:
    """Return Google's generationConfig for an instruction, in JSON's spelling."""
    config: dict[str, Any] = {"maxOutputTokens": instruction.max_output_tokens, "candidateCount": 1}
    if instruction.temperature is not None:
        config["temperature"] = instruction.temperature
    if instruction.labels:
        config["responseMimeType"] = "text/x.enum"
        config["responseSchema"] = {"type": "STRING", "enum": list(instruction.labels)}
    if instruction.json_schema is not None:
        config["responseMimeType"] = "application/json"
    if instruction.json_schema:
        config["responseJsonSchema"] = json.loads(instruction.json_schema)
    if instruction.top_p is not None:
        config["topP"] = instruction.top_p
    if instruction.seed is not None:
        config["seed"] = instruction.seed
    if instruction.stop:
        config["stopSequences"] = list(instruction.stop)
    if instruction.thinking is not None:
        config["thinkingConfig"] = thinking_config(instruction.thinking)
    return config


def thinking_config(plan: ThinkingPlan) -> dict[str, Any]:
    """Return Google's thinkingConfig (https://ai.google.dev/gemini-api/docs/thinking), in JSON's spelling."""
    return {"thinkingBudget": plan.budget} if plan.level is None else {"thinkingLevel": plan.level.value.upper()}


def count_tokens(session: Session, model: str, instruction: Instruction, call: BoundedCall) -> int:
    """Return how many tokens an instruction is for a model, by countTokens, which is free.

    Raises UpstreamFailure (ModelUnavailable where the model is not served to this key), or what urllib3 and the reading
    of JSON raise.
    """
    whole = {"model": _name(model), **asked_of(instruction)}
    body = json.dumps({"generateContentRequest": whole}).encode()
    # Rare, so nothing is gained by a kept connection; and one that idled for long is a doubtful one for who pays.
    with closing(session.send(_path(model, "countTokens"), body, timeout=_grace(call), keep=False)) as raw:
        _, document = read_document(raw)
    return as_count(document.get("totalTokens"))


def contents(instruction: Instruction) -> list[dict[str, Any]]:
    """Return Google's contents: what was said before, and the prompt."""
    turns = (*instruction.turns, Turn(False, instruction.prompt))
    return [{"role": "model" if turn.by_model else "user", "parts": [{"text": turn.text}]} for turn in turns]


def asked_of(instruction: Instruction) -> dict[str, Any]:
    """Return Google's GenerateContentRequest for an instruction, without the model."""
    asked: dict[str, Any] = {
        "contents": contents(instruction),
        "generationConfig": generation_config(instruction),
    }
    if instruction.system:
        asked["systemInstruction"] = {"parts": [{"text": instruction.system}]}
    return asked


def _body(instruction: Instruction) -> bytes:
    return json.dumps(asked_of(instruction)).encode()


def _name(model: str) -> str:
    return model if "/" in model else f"models/{model}"


def _path(model: str, method: str) -> str:
    return f"/v1beta/{quote(_name(model))}:{method}"


def _grace(call: BoundedCall) -> float:
    return max(0.0, call.remaining) + SOCKET_GRACE_SECONDS
