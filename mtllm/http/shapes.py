"""In whose shape a task is answered: our own, or OpenAI's for the tasks that say so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from flask import Flask, Response

from mtllm.chat.shape import (
    ChatEvents,
    as_openai_error,
    render_answer,
    render_error,
    render_models,
    retry_headers,
)
from mtllm.completions.live_stream import LiveStream
from mtllm.domain.completion import Completion
from mtllm.domain.errors import ApiError
from mtllm.domain.money import format_usd
from mtllm.http.error_body import error_body
from mtllm.http.exchange import Exchange
from mtllm.http.unfence import Unfence

OPENAI_PATHS = "/v1/"
"""Below it errors are in OpenAI's shape, unknown paths included."""


class Events(Protocol):
    """Writes the events of one stream."""

    def delta(self, text: str) -> bytes: ...
    def done(self, completion: Completion) -> Iterator[bytes]: ...
    def failed(self, error: ApiError) -> Iterator[bytes]: ...


def answer_body(exchange: Exchange, completion: Completion) -> bytes:
    """Return the body of a 200 in the shape of the request's task."""
    assert completion.answer is not None  # noqa: S101  # asked for by the caller
    if _is_openai(exchange):
        assert exchange.job is not None  # noqa: S101  # an answer comes of a job
        return render_answer(completion, exchange.job.options, exchange.request_id)
    return completion.answer.body_ignoring(completion.ignored)


def shape_error(exchange: Exchange, error: ApiError) -> ApiError:
    """Return the error as the shape of the request's task knows it."""
    return as_openai_error(error) if _is_openai(exchange) else error


def failure_body(exchange: Exchange, error: ApiError) -> bytes:
    """Return the body of an error in the shape of the request's task or path."""
    return render_error(error) if _is_openai(exchange) else error_body(error, exchange.request_id)


def failure_headers(exchange: Exchange, error: ApiError) -> list[tuple[str, str]]:
    """Return the headers of an error that only one shape has."""
    return retry_headers(error) if _is_openai(exchange) else []


def events_of(exchange: Exchange, live: LiveStream) -> Events:
    """Return what writes the events of a stream."""
    if _is_openai(exchange):
        assert exchange.job is not None  # noqa: S101  # as above
        return ChatEvents(exchange.job.options, exchange.request_id, int(exchange.timestamp), live.model)
    fenced = exchange.task is not None and exchange.task.fenced
    return OwnEvents(exchange.request_id, Unfence() if fenced else None)


def _is_openai(exchange: Exchange) -> bool:
    if exchange.task is not None:
        return exchange.task.shape == "openai"
    return str(exchange.environ.get("PATH_INFO", "")).startswith(OPENAI_PATHS)


class OwnEvents:
    """Deltas without a name, then `done` with the whole answer and its cost, or `error`."""

    def __init__(self, request_id: str, unfence: Unfence | None = None) -> None:
        self._request_id = request_id
        self._unfence = unfence

    def delta(self, text: str) -> bytes:
        """Return the event of one delta; empty where all of it is held back, since it may be a fence."""
        return _delta(self._unfence.feed(text) if self._unfence else text)

    def done(self, completion: Completion) -> Iterator[bytes]:
        """Yield the last events of a stream that ended well; a stored answer comes as one delta before them."""
        answer = completion.answer
        assert answer is not None  # noqa: S101  # an answer or an error, by construction
        if completion.cached:
            yield _delta(answer.text)
        elif self._unfence and (rest := self._unfence.end()):
            yield _delta(rest)
        said = {"cost": _cost(completion), "cached": completion.cached, "request_id": self._request_id}
        body = answer.body_ignoring(completion.ignored)
        yield b"event: done\n" + _data(json.loads(body) | said)

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """Yield the end of a stream that broke."""
        yield b"event: error\ndata: " + error_body(error, self._request_id) + b"\n\n"


def _cost(completion: Completion) -> dict[str, Any]:
    cost = completion.receipt.amount.cost
    return {
        "input": format_usd(cost.input),
        "output": format_usd(cost.output),
        "total": format_usd(cost.total),
        "nanodollars": cost.total,
    }


def _delta(text: str) -> bytes:
    return _data({"delta": text}) if text else b""


def _data(value: dict[str, Any]) -> bytes:
    """Return an event in ASCII: clients of `str.splitlines` (httpx) end a line at U+2028 and its like too."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def register_models(app: Flask, models: Callable[[], tuple[str, ...]], clock: Callable[[], float] = time.time) -> None:
    """Add GET /v1/models: those that a request may name."""
    since = int(clock())

    def list_models() -> Response:
        return Response(render_models(models(), since), mimetype="application/json")

    app.add_url_rule("/v1/models", "models", list_models)
