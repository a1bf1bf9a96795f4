"""An answer of Gemini's, put together from one response or from the many of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mtllm.domain.completion import Answer, FinishReason
from mtllm.domain.errors import ApiError, ContentBlocked, MaxOutputTokensTooSmall, UpstreamInvalidAnswer
from mtllm.domain.money import TokenUsage

STOP: Final = "STOP"
MAX_TOKENS: Final = "MAX_TOKENS"
BLOCKED: Final = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"}
)
"""Google's names of the finish reasons by which an answer is withheld."""


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
        """The text so far."""
        return "".join(self._parts)

    @property
    def is_finished(self) -> bool:
        """Whether Gemini has said how the answer ended."""
        return bool(self._finish)

    def add(self, chunk: Chunk) -> None:
        """Take over one chunk."""
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        self._finish = chunk.finish or self._finish
        self._blocked = self._blocked or chunk.blocked
        self._parts.append(chunk.text)

    def answer(self) -> Answer:
        """Return the answer, with its `failure` set when it cannot be used."""
        finish_reason = FinishReason.MAX_TOKENS if self._finish == MAX_TOKENS else FinishReason.STOP
        text = self.text
        return Answer(text, self.model, self.usage, finish_reason, self._failure(has_text=bool(text.strip())))

    def partial_answer(self) -> Answer:
        """Return what came so far as an answer, for the bill of a stream that broke off."""
        return Answer(self.text, self.model, self.usage)

    def _failure(self, *, has_text: bool) -> ApiError | None:
        """An answer is whole only if Gemini says so: not with a reason that is new, OTHER or missing."""
        if self._blocked or self._finish in BLOCKED:
            return ContentBlocked()
        if has_text and self._finish in (STOP, MAX_TOKENS):
            return None
        if self._finish == MAX_TOKENS:
            return MaxOutputTokensTooSmall()
        return UpstreamInvalidAnswer()


def read_usage(*, prompt: int, candidates: int, total: int, cached: int) -> TokenUsage | None:
    """Return the token counts of a usage report; None when it reports nothing.

    The prompt includes its cached part. The total includes thinking, which the other counts leave out, so the output is
    what the total has beside the prompt.
    """
    prompt = max(0, prompt)
    output = total - prompt if total >= prompt and total else max(0, candidates)
    if not prompt and not output:
        return None
    return TokenUsage(prompt, output, min(prompt, max(0, cached)))
