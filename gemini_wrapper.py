"""Gemini for Python callers: one function a task, with the environment's settings and retries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtllm.domain.errors import NotConfigured, UpstreamInvalidAnswer
from mtllm.gemini.client import Gemini
from mtllm.tasks import TASK_BY_NAME, parse

if TYPE_CHECKING:
    from mtllm.resilience.retry import Retrier
    from mtllm.settings import Settings

__all__ = ["Gemini", "classify_text", "generate_code", "generate_text"]

_shared: tuple[Gemini, Retrier] | None = None
_sharing = threading.Lock()


def generate_text(prompt: str) -> str:
    """The model's answer to `prompt`, with the environment's settings and retries.

    Calls from here go past the service: no cache, no rate limit, no ledger. Raises ApiError: InvalidRequest for a
    prompt the API would not take either, NotConfigured without a key, else what went wrong at Gemini.
    """
    return _complete("text", {"prompt": prompt})


def generate_code(prompt: str) -> str:
    """Code for what `prompt` describes, without the fence around it. Otherwise like `generate_text`."""
    return _complete("code", {"prompt": prompt})


def classify_text(text: str, categories: Sequence[str]) -> str:
    """The one of `categories` that fits `text`, spelled as given. Otherwise like `generate_text`."""
    labels = categories if isinstance(categories, str) else list(categories)  # a string is not taken for its letters
    return _complete("classify", {"text": text, "categories": labels})


def _complete(task_name: str, fields: Mapping[str, object]) -> str:
    from mtllm.settings import load_settings

    settings = load_settings()
    task = TASK_BY_NAME[task_name]
    instruction = parse(task, json.dumps(fields).encode(), max_chars=settings.max_prompt_chars).instruction
    gemini, retrier = _shared_client(settings)
    deadline = time.monotonic() + settings.gemini_timeout_seconds

    def complete() -> str:
        answer = retrier.run(lambda: gemini.generate(instruction, deadline=deadline), deadline=deadline)
        if answer.failure is not None:
            raise answer.failure
        return task.read(instruction, answer)

    for _ in range(task.repairs):
        try:
            return complete()
        except UpstreamInvalidAnswer:
            continue
    return complete()


def _shared_client(settings: Settings) -> tuple[Gemini, Retrier]:
    from mtllm.resilience.retry import Retrier, RetryBudget

    global _shared  # one pool of connections for all callers, built when the first one comes
    with _sharing:
        if _shared is None:
            if settings.google_api_key is None:
                raise NotConfigured("No Gemini key is configured: set GOOGLE_API_KEY.")
            gemini = Gemini(
                api_key=settings.google_api_key,
                model=settings.gemini_model,
                endpoint=settings.gemini_api_endpoint,
                kind=settings.gemini_client,
            )
            _shared = gemini, Retrier(max_attempts=settings.gemini_max_attempts, budget=RetryBudget())
        return _shared
