"""Server-sent events of a streamed answer (contract: deltas, comments as keep-alive, then `done` or `error`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import errors
from accounting.prices import format_usd
from service import Completion, LiveStream
from web.exchange import Exchange

KEEP_ALIVE_SECONDS = 10.0
"""A silence this long is broken by a comment, so that no proxy takes the connection for dead."""

LOOK_SECONDS = 0.25
"""How often a silent stream looks whether its client is still there."""

KEEP_ALIVE = b": keep-alive\n\n"


def events(
    exchange: Exchange,
    live: LiveStream,
    first: str | Completion | None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """The body of the response; ends the upstream call when the client is gone or the server closes it early."""
    try:
        part = first
        while not isinstance(part, Completion):
            yield KEEP_ALIVE if part is None else _data({"delta": part})
            part = _next(exchange, live, monotonic)
        exchange.completion = part
        yield from _end(exchange, part)
    finally:
        if not isinstance(exchange.completion, Completion):
            exchange.completion = _left(live)
            exchange.error = exchange.completion.error


def _next(exchange: Exchange, live: LiveStream, monotonic: Callable[[], float]) -> str | Completion | None:
    """The next part; None when it is time for a keep-alive."""
    silent_until = monotonic() + KEEP_ALIVE_SECONDS
    gone: Callable[[], bool] = exchange.environ.get("waitress.client_disconnected", _never)
    while monotonic() < silent_until:
        part = live.next(LOOK_SECONDS)
        if part is not None:
            return part
        if gone():
            raise GeneratorExit
    return None


def _never() -> bool:
    return False


def _left(live: LiveStream) -> Completion:
    """End Gemini's side and wait for the bill."""
    live.cancel()
    while True:
        part = live.next(timeout=LOOK_SECONDS)
        if isinstance(part, Completion):
            return part


def _end(exchange: Exchange, completion: Completion) -> Iterator[bytes]:
    if completion.error is not None:
        exchange.error = completion.error
        yield b"event: error\n" + _data(errors.as_json(completion.error, exchange.request_id))
        return
    assert completion.answer is not None  # noqa: S101  # an answer or an error, by construction
    answer = json.loads(completion.answer.body)
    if completion.cached:
        yield _data({"delta": next(iter(answer.values()))})
    yield b"event: done\n" + _data(answer | {"cost": _cost(completion)})


def _cost(completion: Completion) -> dict[str, Any]:
    receipt = completion.receipt
    return {
        "input": format_usd(receipt.input_cost),
        "output": format_usd(receipt.output_cost),
        "total": format_usd(receipt.total_cost),
        "nanodollars": receipt.total_cost,
    }


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
