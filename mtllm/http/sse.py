"""Server-sent events of a streamed answer (contract: deltas, comments as keep-alive, then `done` or `error`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from mtllm.completions.live_stream import LiveStream
from mtllm.domain import errors
from mtllm.domain.completion import Completion, Origin
from mtllm.http.dispatcher import waiting
from mtllm.http.exchange import Exchange
from mtllm.http.shapes import Events, events_of

KEEP_ALIVE_SECONDS = 10.0
"""A silence this long is broken by a comment, so that no proxy takes the connection for dead."""

LOOK_SECONDS = 0.25
"""How often a silent stream looks whether its client is still there."""

KEEP_ALIVE = b": keep-alive\n"
"""A comment with one line end. Behind a second one, the commonest client for browsers reports a message without data
(@microsoft/fetch-event-source 2.0.1), and a page that parses each message would ask, and pay, again."""


class EventBody:
    """The body of a streamed response, which begins with `first`; closing it ends what is still under way."""

    def __init__(self, exchange: Exchange, live: LiveStream, first: str | Completion | None) -> None:
        self._exchange = exchange
        self._live = live
        self._first = first

    def __iter__(self) -> Iterator[bytes]:
        return events(self._exchange, self._live, self._first)

    def close(self) -> None:
        """End the stream; the server calls this when it is done with the response, sent whole or not (PEP 3333)."""
        close(self._exchange, self._live)


def next_part(
    exchange: Exchange, live: LiveStream, monotonic: Callable[[], float] = time.monotonic
) -> str | Completion | None:
    """Return the next delta, or the completion at the end; None when a keep-alive is due.

    Past `ends_by` the stream ends in a time-out. A client that is seen to have left ends it too: waitress tells where
    it looks ahead, as `python app.py` has it do; elsewhere the next write tells.
    """
    silent_until = monotonic() + KEEP_ALIVE_SECONDS
    gone = exchange.client_gone
    while (left := silent_until - monotonic()) > 0:
        with waiting():
            part = live.next(min(left, LOOK_SECONDS))
        if part is not None:
            return part
        if gone():
            return _end_upstream(live)
        if monotonic() > live.ends_by:
            return Completion(Origin.NONE, error=errors.UpstreamTimeout())
    return None


def events(exchange: Exchange, live: LiveStream, part: str | Completion | None) -> Iterator[bytes]:
    """Yield the body of the response, which begins with `part`."""
    written = events_of(exchange, live)
    while not isinstance(part, Completion):
        event = KEEP_ALIVE if part is None else written.delta(part)
        if event:
            yield event
        part = next_part(exchange, live)
    _conclude(exchange, part)
    yield from _end(written, part)


def close(exchange: Exchange, live: LiveStream) -> None:
    """End what is still under way, with its bill; the response may have been sent whole, in part or not at all."""
    if exchange.completion is None:
        _conclude(exchange, _end_upstream(live))


def _end_upstream(live: LiveStream) -> Completion:
    """End Gemini's side, wait for the bill and return it."""
    live.cancel()
    while True:
        with waiting():
            part = live.next(timeout=LOOK_SECONDS)
        if isinstance(part, Completion):
            return part


def _conclude(exchange: Exchange, completion: Completion) -> None:
    exchange.completion = completion
    if completion.error is not None:
        exchange.fail(completion.error)


def _end(events: Events, completion: Completion) -> Iterator[bytes]:
    return events.done(completion) if completion.error is None else events.failed(completion.error)
