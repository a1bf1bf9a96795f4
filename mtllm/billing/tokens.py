"""Tokens counted without asking Gemini, and how far off that count is.

tiktoken's `cl100k_base` is not Gemini's tokenizer. With a correction for figures it stands in where Gemini reported no
usage, and what it says is marked as estimated; `mtllm/billing/drift.py` shows how good the stand-in is.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mtllm.billing.prices import DEFAULT_MODEL, Price
from mtllm.domain.money import dollars
from mtllm.process import give_back_memory
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
_IDLE_SECONDS = 60.0


class TokenCounter:
    """Counts tokens with `cl100k_base`, read from disk at the first count (0.3 s, 45 MB, shared in the process).

    A minute after the last count the memory is given back.

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
        encoding = _vocabularies.encoding(self._file)
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


class Vocabularies:
    """What has been read of vocabularies, until none of it has been used for `idle_seconds`."""

    def __init__(self, idle_seconds: float = _IDLE_SECONDS, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._idle_seconds = idle_seconds
        self._monotonic = monotonic
        self._reading = threading.Lock()
        self._read: dict[Path, tiktoken.Encoding | None] = {}
        self._used = 0.0
        self._timer: threading.Timer | None = None

    def encoding(self, file: Path) -> tiktoken.Encoding | None:
        """Return the encoding of a file; None where it cannot be used, which is told once."""
        with self._reading:  # once: whoever comes while the file is read waits for it instead of reading it too
            self._used = self._monotonic()
            if file not in self._read:
                self._read[file] = _read_encoding(file)
            if self._timer is None and self._read[file] is not None:
                self._wait(self._idle_seconds)
            return self._read[file]

    def release_if_idle(self) -> None:
        """Forget what has not been used for long, or look again when it may be."""
        with self._reading:
            self._timer = None
            rest = self._used + self._idle_seconds - self._monotonic()
            if rest > 0:
                self._wait(rest)
                return
            self._read = {file: encoding for file, encoding in self._read.items() if encoding is None}
        give_back_memory()

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self.release_if_idle)
        self._timer.daemon = True
        self._timer.start()


_vocabularies = Vocabularies()


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
