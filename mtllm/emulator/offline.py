"""The model behind the emulator: canned answers, played models, faults on demand.

OfflineGemini    GeminiCall -> EmulatedReply, with models and faults
canned           the same without any: a good day of the offline model
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from random import Random
from threading import Lock
from typing import Any, Protocol

from mtllm.emulator.answers import compose, split_answer
from mtllm.emulator.calls import SERVED, GeminiCall
from mtllm.emulator.fault_kinds import FaultCase
from mtllm.emulator.faults import FaultOrder, FaultShare, find_order
from mtllm.emulator.models import ModelState, PlayedModel, invalid_argument, refuse_model
from mtllm.emulator.replies import (
    EmulatedReply,
    Pause,
    Piece,
    answered,
    failed,
    failure,
    json_reply,
    prompt_tokens,
)

OFFLINE_MODEL = "offline-gemini"

_DESCRIPTION = "Canned answers from a local server; no language model."
_MOST_REMEMBERED = 10_000
"""Calls whose repetitions are counted, the latest ones."""


class Voice(Protocol):
    """Who answers in the place of canned answers."""

    name: str
    """Of the only model that is listed."""
    description: str

    def __call__(self, call: GeminiCall) -> EmulatedReply:
        """Return the reply to a call that asks for an answer or a count."""


def canned(call: GeminiCall) -> EmulatedReply:
    """Return an answer that fits the task and says that it is canned: a good day, under any model's name."""
    model = PlayedModel(call.model)
    refusal = _refuse(call, model)
    return failed(call, refusal) if refusal is not None else _answer(call, model, [OFFLINE_MODEL], chunks=4)


def _answer(
    call: GeminiCall, model: PlayedModel, listed: Sequence[str], chunks: int, voice: Voice | None = None
) -> EmulatedReply:
    description = voice.description if voice else _DESCRIPTION
    if call.method == "listModels":
        return json_reply({"models": [_describe(name, description) for name in listed]})
    if call.method == "getModel":
        return json_reply(_describe(call.model, description))
    if voice is not None:
        return voice(call)
    if call.method == "countTokens":
        return json_reply({"totalTokens": prompt_tokens(call)})
    return answered(call, split_answer(call, model, compose(call, model), chunks if call.streams else 1))


class OfflineGemini:
    """Gemini as an emulator plays it: `models` that may refuse, `faults` that meet a share of the calls, magic prompts.

    Which calls a share meets is decided by `seed` and the call's number, in the order of arrival. `latency` is so many
    seconds of silence before each piece of an answer. `voice` answers what no fault meets; without one answers are
    canned. Models that are not in the table answer like any other. Safe to
    call from several threads. Raises ValueError when the shares add up to more than all calls.
    """

    def __init__(
        self,
        models: Iterable[PlayedModel] = (),
        *,
        faults: Iterable[FaultShare] = (),
        seed: int = 0,
        latency: float = 0.0,
        chunks: int = 4,
        voice: Voice | None = None,
    ) -> None:
        self._models: Mapping[str, PlayedModel] = {model.name: model for model in models}
        served = [name for name, model in self._models.items() if model.state is not ModelState.RETIRED]
        self._listed = tuple(dict.fromkeys([voice.name if voice else OFFLINE_MODEL, *served]))
        self._voice = voice
        self._faults = tuple(faults)
        if sum(fault.share for fault in self._faults) > 1 + 1e-9:
            raise ValueError("the shares of the faults add up to more than 100%")
        self._seed = seed
        self._latency = latency
        self._chunks = chunks
        self._lock = Lock()
        self._number = 0
        self._met: OrderedDict[bytes, int] = OrderedDict()

    def __call__(self, call: GeminiCall) -> EmulatedReply:
        """Return the reply to one call."""
        reply = self._reply(call)
        return EmulatedReply(_pace(reply.pieces, self._latency), reply.closes) if self._latency else reply

    def _reply(self, call: GeminiCall) -> EmulatedReply:
        model = self._models.get(call.model) or PlayedModel(call.model)
        refusal = _refuse(call, model)
        if refusal is not None:
            return failed(call, refusal)
        if model.answered_by and call.generates:
            call = replace(call, model=model.answered_by)
        try:
            order = self._find_order(call) if call.generates else None
        except ValueError as problem:
            return failed(call, invalid_argument(f"Magic prompt: {problem}."))
        if order is None:
            return _answer(call, model, self._listed, self._chunks, self._voice)
        return order.kind.reply(FaultCase(call, model, order.argument, self._chunks if call.streams else 1))

    def _find_order(self, call: GeminiCall) -> FaultOrder | None:
        """The order in the call's last turn, else the fault that the dice have for it."""
        ordered = find_order(call.last_turn)
        if ordered is not None:
            return ordered if ordered.times is None or self._meet(call) < ordered.times else None
        return self._draw() if self._faults else None

    def _meet(self, call: GeminiCall) -> int:
        """Return how often this very call came before."""
        name = blake2b(b"%s:%s" % (call.model.encode(), call.raw), digest_size=16).digest()
        with self._lock:
            before = self._met.pop(name, 0)
            self._met[name] = before + 1
            if len(self._met) > _MOST_REMEMBERED:
                self._met.popitem(last=False)
        return before

    def _draw(self) -> FaultOrder | None:
        with self._lock:
            number = self._number
            self._number += 1
        drawn = Random(f"{self._seed}:{number}").random()  # noqa: S311  (no secret hangs on it)
        for fault in self._faults:
            drawn -= fault.share
            if drawn < 0:
                return fault.order
        return None


def _pace(pieces: Iterable[Piece], seconds: float) -> Iterator[Piece]:
    for piece in pieces:
        yield Pause(seconds)
        yield piece


def _refuse(call: GeminiCall, model: PlayedModel) -> dict[str, Any] | None:
    """The error document for a call that gets no answer, None for one that does."""
    if call.key is None:
        return failure(
            403,
            "PERMISSION_DENIED",
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API.",
        )
    if not call.method:
        return failure(404, "NOT_FOUND", _explain_unknown(call))
    if call.method == "listModels":
        return None
    if call.method != "getModel" and (call.problem or not call.parts):
        empty = "* GenerateContentRequest.contents: contents is not specified\n"
        return invalid_argument(call.problem or empty)
    return refuse_model(model, call)


def _explain_unknown(call: GeminiCall) -> str:
    if not call.action:
        return "The requested URL was not found on this server."
    return f"Method not found: {call.action}. This emulator serves {', '.join(SERVED)} by POST."


def _describe(model: str, description: str) -> dict[str, Any]:
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "description": description,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }
