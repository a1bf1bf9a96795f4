"""Gemini through google-generativeai: its messages and its REST client, over connections of our own.

Its global `configure()` is not touched, and its own retries are off. Importing it takes half a second and 45 MB, so
that happens when an `Sdk` is made. Answers are read from Google's JSON on its way to the SDK, whose messages lack the
finish reasons, the thoughts and the counts of newer models.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse

from mtllm.domain.completion import Instruction
from mtllm.gemini.answers import Chunk, read_chunk
from mtllm.gemini.bodies import read_document, read_documents
from mtllm.gemini.connections import Session
from mtllm.gemini.deadlines import BoundedCall
from mtllm.gemini.rest import SOCKET_GRACE_SECONDS, contents, generation_config

_importing = threading.Lock()


class Sdk:
    """The imported SDK with a client of its own for one endpoint. Thread-safe."""

    def __init__(self, session: Session, endpoint: str) -> None:
        self.session = session
        self._documents = threading.local()
        with _importing, warnings.catch_warnings():  # the SDK announces its end of life, and its dependencies theirs
            warnings.simplefilter("ignore")
            # First the package in which all the others go round in circles: where its import broke off once (no
            # descriptors left, say), the next one would otherwise enter the circle at a part that is there already,
            # and fail for the life of the process.
            import google.ai.generativelanguage_v1beta  # noqa: F401  # for the order alone
            from google.ai.generativelanguage import GenerativeServiceClient
            from google.generativeai import protos

            from mtllm.gemini.sdk_transport import Transport

        self._request_type = protos.GenerateContentRequest
        self._string_type = int(protos.Type.STRING)
        bridge = _Bridge(self.session, endpoint, self._documents)
        self._client = GenerativeServiceClient(transport=Transport(bridge, endpoint))

    def generate(self, model: str, instruction: Instruction, call: BoundedCall) -> Chunk:
        """Ask for a whole answer. Raises UpstreamFailure, or whatever the SDK raises."""
        read = self._begin(instruction)
        self._client.generate_content(self._request(model, instruction), **_one_attempt(call))
        return read_chunk(read.popleft())

    def stream(self, model: str, instruction: Instruction, call: BoundedCall) -> Generator[Chunk]:
        """Ask with the first `next`, and yield the chunks of the answer. Closing the generator ends the response.

        Raises like `generate`.
        """
        read = self._begin(instruction)
        messages: Any = self._client.stream_generate_content(self._request(model, instruction), **_one_attempt(call))
        try:
            for _ in messages:
                yield read_chunk(read.popleft())
        finally:
            messages.cancel()

    def _begin(self, instruction: Instruction) -> deque[Mapping[str, Any]]:
        """Leave for the bridge, on this thread, what the SDK cannot say; return where it leaves what it reads."""
        self._documents.instruction = instruction
        read = self._documents.read = deque[Mapping[str, Any]]()
        return read

    def _request(self, model: str, instruction: Instruction) -> Any:
        """Return the SDK's message, made of protocol buffers: the SDK's own classes take five times as long."""
        config: dict[str, object] = {"max_output_tokens": instruction.max_output_tokens, "candidate_count": 1}
        if instruction.temperature is not None:
            config["temperature"] = instruction.temperature
        if instruction.top_p is not None:
            config["top_p"] = instruction.top_p
        if instruction.stop:
            config["stop_sequences"] = instruction.stop
        if instruction.labels:
            config["response_mime_type"] = "text/x.enum"
            config["response_schema"] = {"type_": self._string_type, "enum": instruction.labels}
        message = self._request_type.pb()(
            model=model if "/" in model else f"models/{model}",
            contents=contents(instruction),
            system_instruction=instruction.system and {"parts": [{"text": instruction.system}]},
            generation_config=config,
        )
        return self._request_type.wrap(message)


class _Bridge:
    """What the SDK takes for a session of requests: sends what it says, and notes each document on its way back."""

    def __init__(self, session: Session, endpoint: str, documents: threading.local) -> None:
        self._session = session
        self._base = "{0.scheme}://{0.netloc}{0.path}".format(urlsplit(endpoint)).rstrip("/")
        self._documents = documents

    def post(
        self,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, str],  # noqa: ARG002  # ours are the session's
        params: Sequence[tuple[str, str]],  # noqa: ARG002  # see below
        data: str,
        stream: bool = False,  # noqa: ARG002  # the SDK says it; here every body is read as it comes
    ) -> _SdkResponse:
        """Send one request, with the arguments of `requests`. Raises UpstreamFailure for a bad status."""
        path = url.removeprefix(self._base)
        # Without the SDK's parameters: they ask for enums as numbers, and its tables lack the newer ones.
        raw = self._session.send(path, self._complete(data).encode(), timeout=timeout)
        return _SdkResponse(raw, self._documents.read)

    def _complete(self, data: str) -> str:
        """Return the request with what the SDK's messages have no field for."""
        instruction: Instruction = self._documents.instruction
        if instruction.thinking is None and instruction.json_schema is None and instruction.seed is None:
            return data
        asked = json.loads(data)
        asked["generationConfig"] = generation_config(instruction)
        return json.dumps(asked)


class _SdkResponse:
    """An answer with a good status, with the attributes of a `requests.Response` that the SDK uses."""

    status_code = 200

    def __init__(self, raw: BaseHTTPResponse, read: deque[Mapping[str, Any]]) -> None:
        self._raw = raw
        self._read = read

    @property
    def headers(self) -> Mapping[str, str]:
        return self._raw.headers

    @property
    def content(self) -> bytes:
        """Read the body of a plain answer, which works once."""
        body, document = read_document(self._raw)
        self._read.append(document)
        return body

    def iter_content(self, *, decode_unicode: bool) -> Iterator[str]:  # noqa: ARG002  # the SDK wants text, always
        """Yield the body of a stream as the JSON array that the SDK expects, each part ending with one element."""
        separator = "["
        for text, document in read_documents(self._raw):
            self._read.append(document)
            yield separator + text
            separator = ","
        yield "[]" if separator == "[" else "]"

    def close(self) -> None:
        self._raw.close()


def _one_attempt(call: BoundedCall) -> dict[str, Any]:
    return {"retry": None, "timeout": max(0.0, call.remaining) + SOCKET_GRACE_SECONDS, "metadata": ()}
