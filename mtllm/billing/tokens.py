"""Tokens counted without asking Gemini, and how far off that count is.

tiktoken's `cl100k_base` is not Gemini's tokenizer. With a correction for figures it stands in where Gemini reported no
usage, and what it says is marked as estimated; `DriftMeter` shows how good the stand-in is.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import queue
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mtllm.billing.prices import DEFAULT_MODEL, Price
from mtllm.domain.money import dollars
from mtllm.project import project_path

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)

VOCABULARY_DIR = project_path("data/tiktoken")
DOCUMENTED_PRICE = Price(
    DEFAULT_MODEL, date(2025, 7, 22), input=100_000_000, cached_input=10_000_000, output=400_000_000
)
"""$0.10 and $0.40 per million tokens (cached input $0.01): what is charged where no other price is given."""

_VOCABULARY_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # tiktoken's cache name of cl100k_base.tiktoken
_VOCABULARY_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)  # how cl100k_base cuts text into words; a test holds it against tiktoken's own
_FIGURES = re.compile("[0-9]{2,3}")
"""What tiktoken takes as one token at most, and Gemini as one for each digit."""
_CHUNK_CHARS = 16_384
_BYTES_PER_TOKEN = 4  # of English; only used when the vocabulary cannot be read
_loading = threading.Lock()


class TokenCounter:
    """Counts tokens with `cl100k_base`, read from disk at the first count (0.3 s, 45 MB, shared in the process).

    It cannot reach a network: the vocabulary is read here and not through tiktoken's loader, which would download a
    missing one. Safe to share between threads.
    """

    def __init__(self, vocabulary_dir: Path | str = VOCABULARY_DIR, price: Price = DOCUMENTED_PRICE) -> None:
        self._file = Path(vocabulary_dir) / _VOCABULARY_FILE
        self._price = price

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` has. Every string is plain text: `<|endoftext|>` and lone surrogates too.

        Longer text is counted in pieces of 16,384 characters, so that no text takes more than linear time; each cut
        can split a word and then adds or removes a token or two (under 0.1 % in all). When the vocabulary is missing
        or damaged the count is a guess of four bytes a token, and the log says so once.
        """
        encoding = _encoding(self._file)
        if encoding is None:
            return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)
        if len(text) <= _CHUNK_CHARS:
            return len(encoding.encode_ordinary(text))
        pieces = (text[start : start + _CHUNK_CHARS] for start in range(0, len(text), _CHUNK_CHARS))
        return sum(len(encoding.encode_ordinary(piece)) for piece in pieces)

    def estimate_tokens(self, text: str) -> int:
        """Return how many tokens Gemini would count, as far as tiktoken can tell: never fewer than `count_tokens`.

        Gemini's tokenizer makes each digit a token, tiktoken up to three digits one: a run of n digits adds
        n - ceil(n / 3). docs/money.md says how far off that still is.
        """
        return self.count_tokens(text) + sum(len(figures) - 1 for figures in _FIGURES.findall(text))

    def calculate_cost(self, input_tokens: int, output_tokens: int) -> tuple[float, float, float]:
        """Return dollars for input, output and both, at $0.10 and $0.40 per million unless another price was given.

        A float is for people and scripts; the service adds up nano-dollars (`Price.cost`).
        """
        cost = self._price.cost(input_tokens, output_tokens)
        return dollars(cost.input), dollars(cost.output), dollars(cost.total)


def _encoding(file: Path) -> tiktoken.Encoding | None:
    with _loading:  # once: whoever comes while the file is read waits for it instead of reading it too
        return _read_encoding(file)


@functools.cache
def _read_encoding(file: Path) -> tiktoken.Encoding | None:
    import tiktoken

    try:
        content = file.read_bytes()
    except OSError as error:
        logger.warning("Tokens are guessed: the vocabulary cannot be read (%s).", error.strerror)
        return None
    if hashlib.sha256(content).hexdigest() != _VOCABULARY_SHA256:
        logger.warning("Tokens are guessed: the vocabulary in %s is damaged.", file.parent.name)
        return None
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    return tiktoken.Encoding("cl100k_base", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={})


@dataclass(frozen=True, slots=True)
class Drift:
    """Gemini's token counts beside our estimates for the same calls."""

    samples: int = 0
    input_reported: int = 0
    input_estimated: int = 0
    output_reported: int = 0
    output_estimated: int = 0
    dropped: int = 0
    """Calls that were not compared because the comparison lagged behind."""

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


class DriftMeter:
    """Adds up Gemini's token counts and the estimates that would have stood in for them, off the request's path.

    A thread is started by the first call; at most `queue_size` calls wait for it, further ones are dropped and counted.
    """

    def __init__(self, estimate_tokens: Callable[[str], int], *, queue_size: int = 64) -> None:
        self._estimate = estimate_tokens
        self._calls: queue.Queue[_Sample | None] = queue.Queue(queue_size)
        self._lock = threading.Lock()
        self._drift = Drift()
        self._thread: threading.Thread | None = None
        self._closed = False

    def observe(self, prompt_text: str, answer_text: str, input_tokens: int, output_tokens: int) -> None:
        """Compare our estimates with the tokens that Gemini reported, soon; returns at once."""
        call = _Sample(prompt_text, answer_text, input_tokens, output_tokens)
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="token-drift", daemon=True)
                self._thread.start()
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._drift = _add(self._drift, dropped=1)

    def snapshot(self) -> Drift:
        """Return the sums so far."""
        return self._drift

    def close(self, timeout: float = 5.0) -> None:
        """Finish what waits, within `timeout` seconds, and end the thread. Later calls are ignored."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            with suppress(queue.Full):
                self._calls.put(None, timeout=timeout)
            thread.join(timeout)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            input_estimated, output_estimated = self._estimate(call.prompt), self._estimate(call.answer)
            with self._lock:
                self._drift = _add(
                    self._drift,
                    samples=1,
                    input_reported=call.input,
                    input_estimated=input_estimated,
                    output_reported=call.output,
                    output_estimated=output_estimated,
                )


def _add(drift: Drift, **more: int) -> Drift:
    return Drift(**{name: getattr(drift, name) + more.get(name, 0) for name in Drift.__slots__})
