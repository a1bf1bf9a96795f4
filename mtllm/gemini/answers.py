"""An answer of Gemini's, put together from one response or from the many of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mtllm.domain.completion import Answer, FinishReason
from mtllm.domain.errors import (
    ApiError,
    ContentBlocked,
    MaxOutputTokensTooSmall,
    UpstreamAuthFailed,
    UpstreamFailure,
    UpstreamInvalidAnswer,
)
from mtllm.domain.money import TokenUsage
from mtllm.gemini.documents import as_count, as_object, as_objects

STOP: Final = "STOP"
MAX_TOKENS: Final = frozenset({"MAX_TOKENS", "CONTINUATION"})
BLOCKED: Final = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "ESCALATION",
        "MODEL_ARMOR",
    }
)
"""Google's names of the finish reasons by which an answer is withheld."""
LIMITED: Final = frozenset({"PUP_LIMITED_DISABLED"})
"""The account was limited for breaking the use policy."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One GenerateContentResponse: a whole answer, or what a stream adds to one.

    `model`: the one that answers, "" where it is not said. `finish`: Google's name of the finish reason, "" before the
    end. `blocked`: the prompt was refused, so there is no answer.
    """

    text: str = ""
    model: str = ""
    usage: TokenUsage | None = None
    finish: str = ""
    blocked: bool = False


def read_chunk(document: Mapping[str, Any]) -> Chunk:
    """Return what Google's JSON says, as far as it concerns us. Thoughts are left out of the text."""
    model = str(document.get("modelVersion") or "").removeprefix("models/")
    usage = _read_usage(as_object(document.get("usageMetadata")))
    candidates = as_objects(document.get("candidates"))
    if not candidates:
        return Chunk(model=model, usage=usage, blocked="promptFeedback" in document)
    candidate = candidates[0]
    parts = as_objects(as_object(candidate.get("content")).get("parts"))
    said = (part.get("text") for part in parts if part.get("thought") is not True)
    return Chunk(
        text="".join(text for text in said if isinstance(text, str)),
        model=model,
        usage=usage,
        finish=_finish_of(candidate.get("finishReason")),
    )


def _finish_of(reason: object) -> str:
    return _BY_NUMBER.get(reason, str(reason)) if isinstance(reason, int) else str(reason or "")


_BY_NUMBER = {
    0: "",
    1: STOP,
    2: "MAX_TOKENS",
    3: "SAFETY",
    4: "RECITATION",
    5: "OTHER",
    6: "LANGUAGE",
    7: "BLOCKLIST",
    8: "PROHIBITED_CONTENT",
    9: "SPII",
    10: "MALFORMED_FUNCTION_CALL",
    11: "IMAGE_SAFETY",
}
"""Finish reasons by number, for servers that send enums so."""


class Draft:
    """An answer that grows chunk by chunk."""

    def __init__(self, model: str) -> None:
        self.model = model
        """The model that answers; the one that was asked until Gemini has said."""
        self.usage: TokenUsage | None = None
        """The running totals of the last chunk that had any."""
        self._parts: list[str] = []
        self._finish = ""
        self._blocked = False

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(self._parts)

    def add(self, chunk: Chunk) -> None:
        """Take over one chunk."""
        self.model = chunk.model or self.model
        self.usage = _go_on(self.usage, chunk.usage)
        self._finish = chunk.finish or self._finish
        self._blocked = self._blocked or chunk.blocked
        self._parts.append(chunk.text)

    def answer(self) -> Answer:
        """Return the answer, with its `failure` set when it cannot be used."""
        is_cut = self._finish in MAX_TOKENS
        reason = FinishReason.MAX_TOKENS if is_cut else FinishReason.STOP
        text = self.text
        return Answer(text, self.model, self.usage, reason, self._failure(has_text=bool(text.strip())))

    def partial_answer(self) -> Answer:
        """Return what came so far as an answer, for the bill of a stream that broke off."""
        return Answer(self.text, self.model, self.usage)

    def _failure(self, *, has_text: bool) -> ApiError | None:
        """Return why the answer cannot be used: it is whole only if Gemini says so, in a word that we know."""
        if self._blocked or self._finish in BLOCKED:
            return ContentBlocked()
        if self._finish in LIMITED:
            failure: UpstreamFailure = UpstreamAuthFailed()
        elif has_text and (self._finish == STOP or self._finish in MAX_TOKENS):
            return None
        elif self._finish in MAX_TOKENS:
            return self._too_small()
        else:
            failure = UpstreamInvalidAnswer()
        failure.cause_words = (self._finish or "no finish reason",)
        return failure

    def _too_small(self) -> ApiError:
        thoughts = self.usage.thinking if self.usage else 0
        if not thoughts:
            return MaxOutputTokensTooSmall()
        return MaxOutputTokensTooSmall(
            f"The model spent {thoughts} tokens on thoughts, and max_output_tokens left none for text; raise it, or "
            'ask for less "thinking".'
        )


def _go_on(before: TokenUsage | None, now: TokenUsage | None) -> TokenUsage | None:
    """Return the running totals after a chunk: one that leaves the prompt out does not take it back."""
    if before is None or now is None or now.input:
        return now or before
    return replace(now, input=before.input, cached_input=before.cached_input)


def _read_usage(reported: Mapping[str, Any]) -> TokenUsage | None:
    """Return the token counts of a usage report; None when it reports nothing.

    The prompt includes its cached part and, where tools were used, what they gave in. The total includes thoughts,
    which `candidatesTokenCount` leaves out. A total too small for its parts is not believed.
    """
    prompt = as_count(reported.get("promptTokenCount")) + as_count(reported.get("toolUsePromptTokenCount"))
    thoughts = as_count(reported.get("thoughtsTokenCount"))
    total = as_count(reported.get("totalTokenCount"))
    said = as_count(reported.get("candidatesTokenCount"))
    if not prompt:  # the rest of the total, where the answer is counted
        prompt = max(0, total - said - thoughts) if said or thoughts else 0
    output = total - prompt if prompt and total - prompt >= said else said + thoughts
    if not prompt and not output:
        return None
    cached = min(prompt, as_count(reported.get("cachedContentTokenCount")))
    return TokenUsage(prompt, output, cached, min(thoughts, output))
