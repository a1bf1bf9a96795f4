"""Gemini for one key: one call, one answer, every failure in our own words.

    Gemini          one attempt per call; whoever calls decides about retries, breaker and money
    GeminiStream    the same as a stream of deltas

How a request is said and an answer is read stands in `sdk` and `rest`, two ways to the same end; how calls end on time
in `deadlines`, what failures mean in `failures`. Foreign exceptions are translated at one border, with the cause kept;
our sentences hold nothing that came from Gemini.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Literal, Self

from mtllm.domain.completion import Answer, Instruction
from mtllm.domain.errors import UpstreamTimeout
from mtllm.domain.money import TokenUsage
from mtllm.gemini.answers import Chunk, Draft
from mtllm.gemini.deadlines import BoundedCall, Cut, Watchdog
from mtllm.gemini.failures import translate_failures

if TYPE_CHECKING:
    from mtllm.gemini.connections import Session
    from mtllm.gemini.rest import Rest
    from mtllm.gemini.sdk import Sdk

ClientKind = Literal["sdk", "rest"]

GOOGLE = "https://generativelanguage.googleapis.com"


class Gemini:
    """Gemini's generateContent and streamGenerateContent for one key and one model. Thread-safe.

    `endpoint` is the URL of another server that speaks the protocol; a path comes before the API's own. `kind`: through
    google-generativeai, or over plain JSON without it. `max_connections` are kept alive; more calls than that work but
    connect anew. Proxies of the environment are honoured except for a loopback endpoint. Resolving the endpoint's name
    is the one step that a deadline cannot end.
    """

    def __init__(
        self,
        *,
        api_key: str,
        model: str,
        endpoint: str | None = None,
        kind: ClientKind = "sdk",
        max_connections: int = 32,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api_key = _checked_key(api_key)
        self._model = model
        self._endpoint = (endpoint or GOOGLE).rstrip("/")
        self._kind = kind
        self._max_connections = max_connections
        self._monotonic = monotonic
        self._watchdog = Watchdog(monotonic=monotonic)
        self._building = threading.Lock()
        self._session: Session | None = None
        self._built: Sdk | Rest | None = None

    @property
    def model(self) -> str:
        """The configured model; an answer names the one that wrote it."""
        return self._model

    def warm_up(self) -> None:
        """Import the SDK and build the client, once; the first call does it otherwise. Connects to nothing."""
        self._client()

    def close(self) -> None:
        """End what still runs, the deadline thread and the connections; a later call fails as a cancelled one does."""
        self._watchdog.close()
        with self._building:
            if self._session is not None:
                self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def generate(self, instruction: Instruction, *, deadline: float, model: str = "") -> Answer:
        """Ask `model`, the configured one by default, once; over by `deadline` (monotonic). Raises UpstreamFailure.

        A completed call whose answer cannot be used is an Answer with `failure` set, for it may cost money.
        """
        client = self._client_by(deadline)
        call = BoundedCall(self._watchdog, deadline)
        model = model or self._model
        draft = Draft(model)
        call.allow()
        try:
            with translate_failures(call), call.on_this_thread():
                draft.add(client.generate(model, instruction, call))
        finally:
            call.finish()
        return draft.answer()

    def stream(
        self,
        instruction: Instruction,
        *,
        gap_seconds: float,
        deadline: float,
        first_seconds: float = inf,
        model: str = "",
    ) -> GeminiStream:
        """Ask `model`, the configured one by default, once, and get the answer as it is written.

        The call is made by the first `next`.
        The first chunk takes at most `first_seconds`, it and each gap between chunks at most `gap_seconds`, and the
        whole ends by `deadline`.
        """
        model = model or self._model
        call = BoundedCall(self._watchdog, deadline)
        chunks = self._client_by(deadline).stream(model, instruction, call)
        first_seconds = min(first_seconds, gap_seconds)
        return GeminiStream(chunks, call, Draft(model), first_seconds=first_seconds, gap_seconds=gap_seconds)

    def count_tokens(self, model: str, instruction: Instruction, *, deadline: float) -> int:
        """Return how many tokens `instruction` is for `model`, by `deadline`. Free. Raises UpstreamFailure.

        ModelUnavailable tells that the model is not served to this key, which `models.get` does not.
        """
        from mtllm.gemini.rest import count_tokens

        with self._building:
            session = self._connect()
        call = BoundedCall(self._watchdog, deadline)
        call.allow()
        try:
            with translate_failures(call), call.on_this_thread():
                return count_tokens(session, model, instruction, call)
        finally:
            call.finish()

    def _client_by(self, deadline: float) -> Sdk | Rest:
        client = self._client()
        if self._monotonic() >= deadline:
            raise UpstreamTimeout  # the import, say, took all the time; nothing tells that Gemini fails
        return client

    def _client(self) -> Sdk | Rest:
        with self._building:
            if self._built is None:
                self._built = _client_of(self._kind)(self._connect(), self._endpoint)
            return self._built

    def _connect(self) -> Session:
        """Return the one session, made at the first call; connects to nothing yet."""
        if self._session is None:
            from mtllm.gemini.connections import Session

            self._session = Session(endpoint=self._endpoint, api_key=self._api_key, connections=self._max_connections)
        return self._session


class GeminiStream:
    """An answer that is still coming. Iterate for its deltas as Gemini sends them; close it in the end.

    One thread iterates and closes. `answer` is there once the iteration has ended by itself. `next` raises
    UpstreamFailure; what came before stays readable in `text_so_far`, `usage_so_far` and `partial_answer()`, and may
    have to be paid for.
    """

    answer: Answer

    def __init__(
        self,
        chunks: Generator[Chunk],
        call: BoundedCall,
        draft: Draft,
        *,
        first_seconds: float,
        gap_seconds: float,
    ) -> None:
        self._chunks = chunks
        self._call = call
        self._draft = draft
        self._allowed_seconds = first_seconds
        self._gap_seconds = gap_seconds
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next delta; never empty."""
        try:
            while (chunk := self._next_chunk()) is not None:
                self._draft.add(chunk)
                if chunk.text:
                    return chunk.text
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
        """Return what came so far as an answer, for the bill of a stream that did not end by itself."""
        return self._draft.partial_answer()

    def cancel(self) -> None:
        """End Gemini's side at once, from any thread: a running `next` raises, and so does the next one."""
        self._call.cut(Cut.CANCEL)

    def close(self) -> None:
        """Let go of the connection. Idempotent; for the thread that iterates."""
        if not self._closed:
            self._closed = True
            self._call.finish()
            self._chunks.close()

    def _next_chunk(self) -> Chunk | None:
        """Wait for the next chunk; None when there is no more."""
        if self._closed:
            return None
        self._call.allow(self._allowed_seconds)
        self._allowed_seconds = self._gap_seconds
        chunk: Chunk | None = None
        with translate_failures(self._call), self._call.on_this_thread():
            chunk = next(self._chunks, None)
            self._call.allow()  # the caller's pace is no gap of Gemini's
        return chunk


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the Gemini key is empty or holds characters that a header cannot carry")
    return key


def _client_of(kind: ClientKind) -> type[Sdk] | type[Rest]:
    """Import what is asked for, and nothing else."""
    if kind == "rest":
        from mtllm.gemini.rest import Rest

        return Rest
    from mtllm.gemini.sdk import Sdk

    return Sdk
