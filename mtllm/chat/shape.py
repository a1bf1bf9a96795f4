"""Answers, streams, errors and the list of models as OpenAI's clients read them. Bytes out, no HTTP.

What each field must be for which client: docs/openai.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mtllm.domain.completion import Completion, StoredAnswer
from mtllm.domain.errors import (
    ApiError,
    BudgetExceeded,
    InvalidRequest,
    ModelUnavailable,
    NotConfigured,
    QuotaExhausted,
    UpstreamAuthFailed,
)
from mtllm.domain.money import format_usd
from mtllm.tasks import AnswerOptions

LONG_WAIT_SECONDS = 60.0
"""Clients that are told to wait longer do not wait, and some ask again at once."""

DONE = b"data: [DONE]\n\n"

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_NO_RETRY_HELPS = (BudgetExceeded, ModelUnavailable, NotConfigured, QuotaExhausted, UpstreamAuthFailed)


class UnknownModel(ApiError):
    """The model that was asked for is none that this service serves, in OpenAI's words."""

    status, code = 404, "model_not_found"
    sentence = "The model does not exist, or this service does not serve it; GET /v1/models lists those it serves."


def as_openai_error(error: ApiError) -> ApiError:
    """Return the error that OpenAI would answer in place of ours: an unknown model is a 404."""
    if isinstance(error, InvalidRequest) and [detail.field for detail in error.details] == ["model"]:
        served = error.details[0].message.removeprefix("must be one of ")
        return UnknownModel(f"The model does not exist, or this service does not serve it; it serves {served}.")
    return error


def render_error(error: ApiError) -> bytes:
    """Return the body of an error. The first bad field is its `param`; the others are told in the message."""
    return json.dumps({"error": _error(error)}).encode()


def _error(error: ApiError) -> dict[str, Any]:
    details = error.details if isinstance(error, InvalidRequest) else ()
    told = "; ".join(f"{detail.field} {detail.message}" for detail in details)
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "message": f"{error.message} {told}".strip(),
        "type": kind,
        "param": details[0].field if details else None,
        "code": error.code,
    }


def retry_headers(error: ApiError) -> list[tuple[str, str]]:
    """Return what keeps a client from asking again where that helps nobody."""
    long = error.retry_after is not None and error.retry_after > LONG_WAIT_SECONDS
    return [("x-should-retry", "false")] if long or isinstance(error, _NO_RETRY_HELPS) else []


def render_answer(completion: Completion, options: AnswerOptions, request_id: str) -> bytes:
    """Return a chat.completion."""
    assert completion.answer is not None  # noqa: S101  # asked for by the caller
    answer = completion.answer
    text = answer.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if options.function:
        message |= {"content": None, "tool_calls": [_call(options.function, text, request_id)]}
    body = {
        **_head(request_id, "chat.completion", int(answer.stored_at), answer.model),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer, options)}],
        "usage": _usage(answer),
        "cost": _cost(completion),
    }
    if completion.ignored:
        body["ignored"] = completion.ignored
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def render_models(models: Iterable[str], since: int) -> bytes:
    """Return the list of models; `since` is the epoch second that clients are told as their beginning."""
    listed = [{"id": model, "object": "model", "created": since, "owned_by": "google"} for model in models]
    return json.dumps({"object": "list", "data": listed}).encode()


class ChatEvents:
    """Writes the events of one stream: chunks, the usage where it was asked for, and `[DONE]`."""

    def __init__(self, options: AnswerOptions, request_id: str, created: int, model: str) -> None:
        self._options = options
        self._request_id = request_id
        self._created = created
        self._model = model
        self._begun = False

    def delta(self, text: str) -> bytes:
        """Return the event of one delta, the first with the role before it."""
        first = b"" if self._begun else self._first()
        self._begun = True
        if self._options.function:
            call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
            return first + self._chunk({"tool_calls": [call]})
        return first + self._chunk({"content": text})

    def done(self, completion: Completion) -> Iterator[bytes]:
        """Yield the last events of a stream that ended well."""
        answer = completion.answer
        assert answer is not None  # noqa: S101  # as above
        self._model = answer.model
        if completion.cached:
            yield self.delta(answer.text)
        elif not self._begun:
            yield self._first()
        yield self._chunk({}, _finish(answer, self._options))
        if self._options.include_usage:
            more = {"usage": _usage(answer), "cost": _cost(completion), "cached": completion.cached}
            yield self._event({"choices": [], **more})
        yield DONE

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """Yield the end of a stream that broke: clients raise what it says."""
        yield b"data: " + render_error(error) + b"\n\n"
        yield DONE

    def _first(self) -> bytes:
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        if self._options.function:
            call = _call(self._options.function, "", self._request_id)
            delta = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}
        return self._chunk(delta)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        usage = {"usage": None} if self._options.include_usage else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event({"choices": [choice], **usage})

    def _event(self, fields: dict[str, Any]) -> bytes:
        head = _head(self._request_id, "chat.completion.chunk", self._created, self._model)
        return b"data: " + json.dumps(head | fields).encode() + b"\n\n"


def _head(request_id: str, kind: str, created: int, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": created, "model": model}


def _call(function: str, arguments: str, request_id: str) -> dict[str, Any]:
    return {"id": f"call_{request_id}", "type": "function", "function": {"name": function, "arguments": arguments}}


def _finish(answer: StoredAnswer, options: AnswerOptions) -> str:
    if answer.finish_reason == "max_tokens":
        return "length"
    return "tool_calls" if options.function else "stop"


def _usage(answer: StoredAnswer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "completion_tokens_details": {"reasoning_tokens": usage.thinking},
    }


def _cost(completion: Completion) -> dict[str, Any]:
    cost = completion.receipt.amount.cost
    return {"total": format_usd(cost.total), "nanodollars": cost.total}
