"""Gemini as google-generativeai says and reads it: its messages and its REST client over connections of our own.

The SDK is used here and in `transport`, nowhere else. Its global `configure()` is not touched and its own retries are
off. Importing it takes half a second and 45 MB, so that happens when an `Sdk` is made.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator
from typing import Any

from mtllm.domain.completion import Instruction
from mtllm.gemini.answers import MAX_TOKENS, STOP, Chunk, read_usage
from mtllm.gemini.deadlines import BoundedCall

SOCKET_GRACE_SECONDS = 1.0
"""The socket's own time-out is later than the call's end by this; it matters only if the deadline thread is gone."""

FINISH_REASONS = {
    1: STOP,
    2: MAX_TOKENS,
    3: "SAFETY",
    4: "RECITATION",
    5: "OTHER",
    6: "LANGUAGE",
    7: "BLOCKLIST",
    8: "PROHIBITED_CONTENT",
    9: "SPII",
    10: "MALFORMED_FUNCTION_CALL",
    11: "IMAGE_SAFETY",
}
"""FinishReason by its number in the API's protocol buffers. Names that the SDK does not know arrive as 0."""


_importing = threading.Lock()


class Sdk:
    """The imported SDK with a client of its own for one endpoint. Thread-safe."""

    def __init__(self, *, api_key: str, endpoint: str, connections: int) -> None:
        with _importing, warnings.catch_warnings():  # the SDK announces its end of life, and its dependencies theirs
            warnings.simplefilter("ignore")
            # First the package in which all the others go round in circles: where its import broke off once (no
            # descriptors left, say), the next one would otherwise enter the circle at a part that is there already,
            # and fail for the life of the process.
            import google.ai.generativelanguage_v1beta  # noqa: F401  # for the order alone
            from google.ai.generativelanguage import GenerativeServiceClient
            from google.generativeai import protos

            from mtllm.gemini.transport import Session, Transport

        self._request_type = protos.GenerateContentRequest
        self._string_type = int(protos.Type.STRING)
        self.session = Session(endpoint=endpoint, api_key=api_key, connections=connections)
        self._client = GenerativeServiceClient(transport=Transport(self.session, endpoint))

    def request(self, model: str, instruction: Instruction) -> Any:
        """Return the SDK's message that asks `model` for what `instruction` wants.

        It is made of protocol buffers, since the SDK's own classes take five times as long.
        """
        config: dict[str, object] = {
            "temperature": instruction.temperature,
            "max_output_tokens": instruction.max_output_tokens,
            "candidate_count": 1,
        }
        if instruction.labels:
            config["response_mime_type"] = "text/x.enum"
            config["response_schema"] = {"type_": self._string_type, "enum": instruction.labels}
        message = self._request_type.pb()(
            model=model if "/" in model else f"models/{model}",
            contents=[{"role": "user", "parts": [{"text": instruction.prompt}]}],
            system_instruction=instruction.system and {"parts": [{"text": instruction.system}]},
            generation_config=config,
        )
        return self._request_type.wrap(message)

    def generate(self, request: Any, call: BoundedCall) -> Chunk:
        """Send `request` as generateContent and return the answer. Raises whatever the SDK raises."""
        return _read_message(self._client.generate_content(request, **_one_attempt(call)))

    def stream(self, request: Any, call: BoundedCall) -> Generator[Chunk]:
        """Send `request` as streamGenerateContent with the first `next`, and yield the chunks of the answer.

        Closing the generator ends the response. Raises whatever the SDK raises.
        """
        messages: Any = self._client.stream_generate_content(request, **_one_attempt(call))
        try:
            yield from map(_read_message, messages)
        finally:
            messages.cancel()

    def close(self) -> None:
        """Let go of the connections."""
        self.session.close()


def _one_attempt(call: BoundedCall) -> dict[str, Any]:
    return {"retry": None, "timeout": max(0.0, call.remaining) + SOCKET_GRACE_SECONDS, "metadata": ()}


def _read_message(wrapped: Any) -> Chunk:
    message = type(wrapped).pb(wrapped)
    model = message.model_version.removeprefix("models/")
    reported = message.usage_metadata
    usage = read_usage(
        prompt=reported.prompt_token_count,
        candidates=reported.candidates_token_count,
        total=reported.total_token_count,
        cached=reported.cached_content_token_count,
    )
    if not message.candidates:
        return Chunk(model=model, usage=usage, blocked=message.HasField("prompt_feedback"))
    candidate = message.candidates[0]
    number = candidate.finish_reason
    return Chunk(
        text="".join(part.text for part in candidate.content.parts),
        model=model,
        usage=usage,
        finish=FINISH_REASONS.get(number, str(number)) if number else "",
    )
