"""A streamed answer on its way from the flow to the edge."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from mtllm.completions.ports import AnswerStream
from mtllm.domain.completion import Completion, Route


class LiveStream:
    """The two ends of one streamed answer: the flow passes deltas on, the edge takes them.

    `cancel` may be called at any time from the edge's thread: it ends Gemini's side at once. `ends_by` (monotonic) is
    when the edge need not wait any more: Gemini's side is over by then, and only its settlement can be late.
    """

    def __init__(self, ends_by: float) -> None:
        self.ends_by = ends_by
        self._parts: SimpleQueue[str | Completion] = SimpleQueue()
        self._source: AnswerStream | None = None
        self._lock = threading.Lock()
        self.route: Route | None = None
        """The route of the model that is being asked."""
        self.begun = False
        self.queue_seconds = 0.0
        """How long the stream waited for a slot."""
        self.cancelled = threading.Event()
        self.stopped = False
        """The service has cancelled it, not its client."""

    @property
    def model(self) -> str:
        """Return the model that answers; the one that is asked until Gemini has said."""
        source, route = self._source, self.route
        return source.model if source is not None else (route.model if route else "")

    def next(self, timeout: float) -> str | Completion | None:
        """Return the next delta, or the completion at the end; None when neither came within `timeout` seconds."""
        try:
            return self._parts.get(timeout=timeout)
        except Empty:
            return None

    def stop(self) -> None:
        """End the stream because the service ends; its client is still there."""
        self.stopped = True
        self.cancel()

    def cancel(self) -> None:
        """End Gemini's side, because the client has gone."""
        with self._lock:
            self.cancelled.set()
            source = self._source
        if source is not None:
            source.cancel()

    def feed_from(self, source: AnswerStream, route: Route) -> None:
        """Name the source of the deltas, so that it can be cancelled, and the route that it comes by."""
        with self._lock:
            self._source = source
            self.route = route
            cancelled = self.cancelled.is_set()
        if cancelled:
            source.cancel()

    def pass_on(self, delta: str) -> None:
        """Hand a delta to the edge."""
        self.begun = True
        self._parts.put(delta)

    def end(self, completion: Completion) -> None:
        """Hand the completion to the edge; nothing comes after it."""
        self._parts.put(completion)
