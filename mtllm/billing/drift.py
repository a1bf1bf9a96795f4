"""How far our estimates of tokens are off: beside Gemini's own counts, for a share of the calls.

The counting is done by a process of its own that lives for half a second (`mtllm/billing/counting.py`). In this one the
vocabulary would take 45 MB for ever, and reading it would stop every thread for a tenth of a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MOST_CALLS = 64
"""In one batch."""
MOST_CHARACTERS = 1_000_000
"""Of all texts that wait for their batch."""
GATHER_SECONDS = 1.0
"""From the first call of a busy time to its batch."""
REST_SECONDS = 60.0
"""From one batch to the next."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Gemini's token counts beside our estimates for the same calls."""

    samples: int = 0
    input_reported: int = 0
    input_estimated: int = 0
    output_reported: int = 0
    output_estimated: int = 0
    dropped: int = 0
    """Calls that were not compared: a batch was full, or could not be counted."""

    @property
    def input_ratio(self) -> float | None:
        """Our estimate over Gemini's count for what went in; None before the first call."""
        return _ratio(self.input_estimated, self.input_reported)

    @property
    def output_ratio(self) -> float | None:
        """The same for what came out. Thinking is in Gemini's count and not in the text: it pulls the ratio down."""
        return _ratio(self.output_estimated, self.output_reported)


def _ratio(estimated: int, reported: int) -> float | None:
    return round(estimated / reported, 4) if reported else None


@dataclass(frozen=True, slots=True)
class _Sample:
    prompt: str
    answer: str
    input: int
    output: int


class CountingFailedError(Exception):
    """Texts could not be counted; the sentence says why and quotes nothing of them."""


class DriftMeter:
    """Adds up Gemini's token counts and the estimates that would have stood in for them, off the request's path.

    `estimate` counts a batch of texts, in a thread of the meter's own: the first `gather_seconds` after a call, further
    ones `rest_seconds` apart. What does not fit into a batch is dropped and counted. Without calls there is no thread.
    """

    def __init__(
        self,
        estimate: Callable[[Sequence[str]], Sequence[int]],
        *,
        most_calls: int = MOST_CALLS,
        most_characters: int = MOST_CHARACTERS,
        gather_seconds: float = GATHER_SECONDS,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._estimate = estimate
        self._most_calls = most_calls
        self._most_characters = most_characters
        self._gather_seconds = gather_seconds
        self._rest_seconds = rest_seconds
        self._lock = threading.Lock()
        self._waiting: list[_Sample] = []
        self._characters = 0
        self._drift = Drift()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._told = False

    def observe(self, prompt_text: str, answer_text: str, input_tokens: int, output_tokens: int) -> None:
        """Compare our estimates with the tokens that Gemini reported, soon; returns at once."""
        characters = len(prompt_text) + len(answer_text)
        with self._lock:
            if self._closed.is_set():
                return
            if len(self._waiting) == self._most_calls or self._characters + characters > self._most_characters:
                self._drift = _add(self._drift, dropped=1)
                return
            self._waiting.append(_Sample(prompt_text, answer_text, input_tokens, output_tokens))
            self._characters += characters
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="token-drift", daemon=True)
                self._thread.start()

    def snapshot(self) -> Drift:
        """Return the sums so far."""
        return self._drift

    def close(self, timeout: float = 5.0) -> None:
        """End the thread, after the batch at which it is; wait at most `timeout` seconds. Later calls are ignored."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        seconds = self._gather_seconds
        while not self._closed.wait(seconds):
            with self._lock:
                batch, self._waiting, self._characters = self._waiting, [], 0
                if not batch:
                    self._thread = None
                    return
            self._compare(batch)
            seconds = self._rest_seconds

    def _compare(self, batch: Sequence[_Sample]) -> None:
        try:
            counts = self._estimate([text for call in batch for text in (call.prompt, call.answer)])
        except CountingFailedError as problem:
            if not self._told:
                self._told = True
                logger.warning("Estimates are not compared with Gemini's counts: %s.", problem)
            with self._lock:
                self._drift = _add(self._drift, dropped=len(batch))
            return
        with self._lock:
            self._drift = _add(
                self._drift,
                samples=len(batch),
                input_reported=sum(call.input for call in batch),
                input_estimated=sum(counts[::2]),
                output_reported=sum(call.output for call in batch),
                output_estimated=sum(counts[1::2]),
            )


def _add(drift: Drift, **more: int) -> Drift:
    return Drift(**{name: getattr(drift, name) + more.get(name, 0) for name in Drift.__slots__})
