"""Gemini for Python callers: one function a task, with the environment's settings and retries.

Calls from here go past the service: no cache, no rate limit, no ledger.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtllm.completions.chain import make_chain
from mtllm.domain.completion import Route
from mtllm.domain.errors import NotConfigured
from mtllm.gemini.client import Gemini
from mtllm.resilience.retry import Retrier, RetryBudget, run_with_repairs
from mtllm.tasks import TASK_BY_NAME, parse

if TYPE_CHECKING:
    from mtllm.settings import Settings

__all__ = ["Gemini", "GeminiTasks", "classify_text", "generate_code", "generate_text"]


def generate_text(prompt: str) -> str:
    """Return the model's answer to `prompt`.

    Raises ApiError: InvalidRequest for a prompt that the API would not take either, NotConfigured without a key, else
    what went wrong at Gemini.
    """
    return _tasks().run("text", prompt=prompt)


def generate_code(prompt: str) -> str:
    """Return code for what `prompt` describes, without the fence around it. Raises as `generate_text` does."""
    return _tasks().run("code", prompt=prompt)


def classify_text(text: str, categories: Sequence[str]) -> str:
    """Return the one of `categories` that fits `text`, spelled as given. Raises as `generate_text` does."""
    labels = categories if isinstance(categories, str) else list(categories)  # a string is not taken for its letters
    return _tasks().run("classify", text=text, categories=labels)


class GeminiTasks:
    """Answers tasks over one Gemini client, with retries, repairs and the model chain. Thread-safe.

    Raises NotConfigured without a key.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.google_api_key is None:
            raise NotConfigured("No Gemini key is configured: set GOOGLE_API_KEY.")
        self._gemini = Gemini(
            api_key=settings.google_api_key,
            model=settings.gemini_model,
            endpoint=settings.gemini_api_endpoint,
            kind=settings.gemini_client,
        )
        self._retrier = Retrier(
            max_attempts=settings.gemini_max_attempts,
            budget=RetryBudget(),
            max_wait_seconds=settings.gemini_max_wait_seconds,
        )
        self._chain = make_chain(settings)
        self._timeout_seconds = settings.gemini_timeout_seconds
        self._max_prompt_chars = settings.max_prompt_chars

    def run(self, task_name: str, **fields: object) -> str:
        """Return the answer to one task, whose `fields` are those of its endpoint. Raises ApiError."""
        task = TASK_BY_NAME[task_name]
        job = parse(task, json.dumps(fields).encode(), max_chars=self._max_prompt_chars)
        deadline = time.monotonic() + self._timeout_seconds

        def ask(route: Route) -> str:
            by = self._chain.deadline_of(route, deadline)
            answer = self._retrier.run(
                lambda: self._gemini.generate(job.told(route.terms), deadline=by, model=route.model), deadline=by
            )
            self._chain.note_answer(route.model, answer.model)
            if answer.failure is not None:
                raise answer.failure
            return task.read(job.instruction, answer)

        def ask_with_repairs(route: Route) -> str:
            return run_with_repairs(lambda: ask(route), task.repairs)

        return self._chain.follow(job, self._chain.route(job), ask_with_repairs, deadline=deadline)

    def close(self) -> None:
        """End what still runs, and let go of the connections."""
        self._gemini.close()


_making = threading.Lock()


def _tasks() -> GeminiTasks:
    with _making:  # callers who come first together share one pool of connections
        return _from_environment()


@functools.cache
def _from_environment() -> GeminiTasks:
    from mtllm.settings import load_settings

    return GeminiTasks(load_settings())
