"""Gemini through google-generativeai: one call, one answer, every failure in our own words.

    Gemini               one attempt per call; whoever calls decides about retries, breaker and money
    GeminiStream         the same as a stream of deltas
    generate_text, generate_code, classify_text      for Python callers, with the environment's settings

The SDK is used for its messages and its REST client and nowhere else in the project. Its global `configure()` is not
touched, its own retries are off, and it is imported by the first call (or `warm_up`), since that takes half a second
and 45 MB. Foreign exceptions are translated here, at one border, with the cause kept; our sentences hold nothing that
came from Gemini. How calls end on time and what failures mean is told in upstream/.

Thought parts are left out of an answer. They come only when asked for, which this SDK cannot do, and its messages would
not tell them from text, so they are taken out before it reads them.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Self

from mtllm.domain.completion import Answer, FinishReason, Instruction
from mtllm.domain.errors import (
    ApiError,
    ContentBlocked,
    MaxOutputTokensTooSmall,
    UpstreamInvalidAnswer,
    UpstreamTimeout,
)
from mtllm.domain.money import TokenUsage
from mtllm.gemini.deadlines import BoundedCall, Cut, Watchdog
from mtllm.gemini.failures import translated

if TYPE_CHECKING:
    pass

GOOGLE = "https://generativelanguage.googleapis.com"
SOCKET_GRACE_SECONDS = 1.0
"""The socket's own time-out is later than the call's end by this; it matters only if the deadline thread is gone."""

# Numbers of FinishReason in the API's protocol buffers; names that the SDK does not know arrive as 0.
_STOP, _MAX_TOKENS = 1, 2
_BLOCKED = frozenset({3, 4, 6, 7, 8, 9, 11})
"""SAFETY, RECITATION, LANGUAGE, BLOCKLIST, PROHIBITED_CONTENT, SPII, IMAGE_SAFETY."""


class Gemini:
    """Gemini's generateContent and streamGenerateContent for one key and one model. Thread-safe.

    `endpoint` is the URL of another server that speaks the protocol. `max_connections` are kept alive; more calls
    than that work but connect anew. Proxies of the environment are honoured except for a loopback endpoint.
    Resolving the endpoint's name is the one step that a deadline cannot end.
    """

    def __init__(
        self,
        *,
        api_key: str,
        model: str,
        endpoint: str | None = None,
        max_connections: int = 32,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api_key = _checked_key(api_key)
        self._model = model
        self._endpoint = (endpoint or GOOGLE).rstrip("/")
        self._max_connections = max_connections
        self._monotonic = monotonic
        self._building = threading.Lock()
        self._built: _Sdk | None = None

    @property
    def model(self) -> str:
        """The configured model; an answer names the one that wrote it."""
        return self._model

    def warm_up(self) -> None:
        """Import the SDK and build the client, once; the first call does it otherwise. Connects to nothing."""
        self._sdk()

    def close(self) -> None:
        """End what still runs, the deadline thread and the connections; a later call fails as a cancelled one does."""
        with self._building:
            if self._built is not None:
                self._built.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def generate(self, instruction: Instruction, *, deadline: float) -> Answer:
        """Ask once; over by `deadline` (monotonic seconds). Raises UpstreamFailure.

        A completed call whose answer cannot be used is an Answer with `failure` set, for it may cost money.
        """
        sdk = self._sdk_by(deadline)
        request = sdk.request(self._model, instruction)
        call = BoundedCall(sdk.watchdog, deadline)
        call.allow()
        try:
            with translated(call), call.on_this_thread():
                message = sdk.client.generate_content(request, **_one_attempt(call))
        finally:
            call.over()
        draft = _Draft(self._model)
        draft.add(type(message).pb(message))
        return draft.answer()

    def stream(
        self, instruction: Instruction, *, gap_seconds: float, deadline: float, first_seconds: float = inf
    ) -> GeminiStream:
        """Ask once and get the answer as it is written. The call is made by the first `next`.

        The first chunk takes at most `first_seconds`, it and each gap between chunks at most `gap_seconds`, and the
        whole ends by `deadline`.
        """
        sdk = self._sdk_by(deadline)
        request = sdk.request(self._model, instruction)
        call = BoundedCall(sdk.watchdog, deadline)

        def send() -> Any:
            return sdk.client.stream_generate_content(request, **_one_attempt(call))

        first_seconds = min(first_seconds, gap_seconds)
        return GeminiStream(send, call, self._model, first_seconds=first_seconds, gap_seconds=gap_seconds)

    def _sdk_by(self, deadline: float) -> _Sdk:
        sdk = self._sdk()
        if self._monotonic() >= deadline:
            raise UpstreamTimeout  # the import, say, took all the time; nothing tells that Gemini fails
        return sdk

    def _sdk(self) -> _Sdk:
        with self._building:
            if self._built is None:
                self._built = _Sdk(self._api_key, self._endpoint, self._max_connections, self._monotonic)
            return self._built


class GeminiStream:
    """An answer that is still coming: iterate for its deltas, as Gemini sends them; close it in the end.

    One thread iterates and closes. `answer` is there once the iteration has ended by itself. `next` raises
    UpstreamFailure; what came before stays readable in `text_so_far`, `usage_so_far` and `partial_answer()`, and may
    have to be paid for.
    """

    answer: Answer

    def __init__(
        self, send: Callable[[], Any], call: BoundedCall, model: str, *, first_seconds: float, gap_seconds: float
    ) -> None:
        self._send = send
        self._call = call
        self._first_seconds = first_seconds
        self._gap_seconds = gap_seconds
        self._messages: Any = None
        self._draft = _Draft(model)
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next delta; never empty."""
        try:
            while (message := self._next_message()) is not None:
                if delta := self._draft.add(type(message).pb(message)):
                    return delta
        except BaseException:
            self.close()
            raise
        if not self._closed:
            self.answer = self._draft.answer()
            self.close()
        raise StopIteration

    @property
    def text_so_far(self) -> str:
        """The deltas that came, joined."""
        return self._draft.text

    @property
    def usage_so_far(self) -> TokenUsage | None:
        """The running totals of the last chunk that had any."""
        return self._draft.usage

    @property
    def model(self) -> str:
        """The model that answers; the configured one until Gemini has said."""
        return self._draft.model

    def partial_answer(self) -> Answer:
        """What came so far as an answer, for the bill of a stream that did not end by itself."""
        return Answer(self.text_so_far, self.model, self.usage_so_far)

    def cancel(self) -> None:
        """End Gemini's side at once, from any thread: a running `next` raises, and so does the next one."""
        self._call.cut(Cut.CANCEL)

    def close(self) -> None:
        """Let go of the connection. Idempotent; for the thread that iterates."""
        if not self._closed:
            self._closed = True
            self._call.over()
            if self._messages is not None:
                self._messages.cancel()

    def _next_message(self) -> Any:
        if self._closed:
            return None
        self._call.allow(self._first_seconds if self._messages is None else self._gap_seconds)
        with translated(self._call, is_whole=lambda: self._draft.finished), self._call.on_this_thread():
            if self._messages is None:
                self._messages = self._send()
            message = next(self._messages, None)
            self._call.allow()  # the caller's pace is no gap of Gemini's
            return message
        return None  # the answer was whole before the connection failed


_importing = threading.Lock()


class _Sdk:
    """The imported SDK with a client of our own making."""

    def __init__(self, api_key: str, endpoint: str, connections: int, monotonic: Callable[[], float]) -> None:
        with _importing, warnings.catch_warnings():  # the SDK announces its end of life, and its dependencies theirs
            warnings.simplefilter("ignore")
            # First the package in which all the others go round in circles: where its import broke off once (no
            # descriptors left, say), the next one would otherwise enter the circle at a part that is there already,
            # and fail for the life of the process.
            import google.ai.generativelanguage_v1beta  # noqa: F401  # for the order alone
            from google.ai.generativelanguage import GenerativeServiceClient
            from google.generativeai import protos

            from mtllm.gemini.transport import Session, Transport

        self._request = protos.GenerateContentRequest
        self._string = int(protos.Type.STRING)
        self.watchdog = Watchdog(monotonic=monotonic)
        self.session = Session(endpoint=endpoint, api_key=api_key, connections=connections)
        self.client = GenerativeServiceClient(transport=Transport(self.session, endpoint))

    def close(self) -> None:
        self.watchdog.close()
        self.session.close()

    def request(self, model: str, instruction: Instruction) -> Any:
        """The SDK's message; made of its protocol buffers, since its own classes take five times as long."""
        config: dict[str, object] = {
            "temperature": instruction.temperature,
            "max_output_tokens": instruction.max_output_tokens,
            "candidate_count": 1,
        }
        if instruction.labels:
            config["response_mime_type"] = "text/x.enum"
            config["response_schema"] = {"type_": self._string, "enum": instruction.labels}
        message = self._request.pb()(
            model=model if "/" in model else f"models/{model}",
            contents=[{"role": "user", "parts": [{"text": instruction.prompt}]}],
            system_instruction=instruction.system and {"parts": [{"text": instruction.system}]},
            generation_config=config,
        )
        return self._request.wrap(message)


def _one_attempt(call: BoundedCall) -> dict[str, Any]:
    return {"retry": None, "timeout": max(0.0, call.remaining) + SOCKET_GRACE_SECONDS, "metadata": ()}


class _Draft:
    """An answer put together from one message or many."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage: TokenUsage | None = None
        self._parts: list[str] = []
        self._finish = 0
        self._blocked = False

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def finished(self) -> bool:
        return self._finish != 0

    def add(self, message: Any) -> str:
        """Take over one GenerateContentResponse (the protocol buffer); its text is returned."""
        self.model = message.model_version.removeprefix("models/") or self.model
        if message.HasField("usage_metadata"):
            self.usage = _usage(message.usage_metadata) or self.usage
        if not message.candidates:
            self._blocked = self._blocked or message.HasField("prompt_feedback")
            return ""
        candidate = message.candidates[0]
        self._finish = candidate.finish_reason or self._finish
        text = "".join(part.text for part in candidate.content.parts)
        self._parts.append(text)
        return text

    def answer(self) -> Answer:
        finish_reason = FinishReason.MAX_TOKENS if self._finish == _MAX_TOKENS else FinishReason.STOP
        text = self.text
        return Answer(text, self.model, self.usage, finish_reason, self._failure(bool(text.strip())))

    def _failure(self, has_text: bool) -> ApiError | None:
        """Reasons that are new, OTHER or missing mean that the answer is not known to be whole."""
        if self._blocked or self._finish in _BLOCKED:
            return ContentBlocked()
        if has_text and self._finish in (_STOP, _MAX_TOKENS):
            return None
        return MaxOutputTokensTooSmall() if self._finish == _MAX_TOKENS else UpstreamInvalidAnswer()


def _usage(reported: Any) -> TokenUsage | None:
    """Gemini's total includes thinking, which the SDK does not pass on; the prompt includes the cached part."""
    prompt = max(0, reported.prompt_token_count)
    total = reported.total_token_count
    output = total - prompt if total >= prompt and total else reported.candidates_token_count
    if not prompt and not output:
        return None
    return TokenUsage(prompt, max(0, output), min(prompt, max(0, reported.cached_content_token_count)))


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the Gemini key is empty or holds characters that a header cannot carry")
    return key
