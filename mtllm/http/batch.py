"""Batches: many items in one request, each answered as if it had come alone, a line of JSON as each one ends.

An item is one request of its task: it is counted by the rate limit, reserved in the budgets, looked up, bought, booked
and logged by the same code, under an id of its own. Identical items share one flight. At most so many run at once that
other callers find places free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtllm.domain import errors
from mtllm.domain.errors import ApiError, FieldError
from mtllm.domain.money import format_usd
from mtllm.http.body import read_body
from mtllm.http.dispatcher import waiting
from mtllm.http.exchange import Exchange
from mtllm.http.guard import Guard
from mtllm.http.lifecycle import Lifecycle
from mtllm.http.request import read_tag
from mtllm.http.task_endpoint import UNBUFFERED, TaskEndpoint, TaskReply, refuse
from mtllm.security.access import Access
from mtllm.tasks import Task, explain

PATH = "/api/v1/batch"
LINES = "application/x-ndjson"
LOOK_SECONDS = 0.25
"""How often a silent batch looks whether its client is still there."""


class BatchRequest(BaseModel):
    """Body of POST /api/v1/batch."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    items: list[dict[str, Any]] = Field(
        min_length=1,
        description="Each has `task` (text, code, classify, extract or chat), the fields of that task's request, and, "
        "if wanted, an `id` of yours.",
        examples=[[{"id": "a", "task": "text", "prompt": "Explain HTTP caching."}]],
    )


class BatchItem(NamedTuple):
    """One item on its way: its number, the caller's own id, and its line once it has ended."""

    number: int
    id: Any
    exchange: Exchange
    reply: TaskReply


class BatchEndpoint:
    """Answers POSTs on the batch's path. `observe` is told of each item that has ended, with the bytes of its line."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        guard: Guard,
        lifecycle: Lifecycle,
        endpoint: TaskEndpoint,
        *,
        most_items: int,
        concurrency: Callable[[], int],
        max_request_bytes: int,
        observe: Callable[[Exchange, int], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._guard = guard
        self._lifecycle = lifecycle
        self._endpoint = endpoint
        self._most_items = most_items
        self._concurrency = concurrency
        self._max_request_bytes = max_request_bytes
        self._observe = observe
        self._clock = clock
        self._monotonic = monotonic

    def reply(self, exchange: Exchange) -> TaskReply:
        """Return the lines of a batch, which begin at once, or the error that it ended in. Raises nothing."""
        try:
            self._guard.admit(exchange, Access.KEY)
            if self._lifecycle.draining:
                raise errors.Draining(retry_after=self._lifecycle.seconds_left())
            if tag := exchange.environ.get("HTTP_X_TAG"):
                read_tag(tag)  # a bad one is the whole batch's
            items = self._read(exchange)
        except ApiError as error:
            return refuse(exchange, error)
        return TaskReply(200, BatchBody(self, exchange, items), LINES, UNBUFFERED)

    def _read(self, exchange: Exchange) -> list[dict[str, Any]]:
        try:
            items = BatchRequest.model_validate_json(read_body(exchange, self._max_request_bytes)).items
        except ValidationError as problem:
            raise explain(problem) from None
        if len(items) > self._most_items:
            raise errors.InvalidRequest(details=(FieldError("items", f"must be at most {self._most_items}"),))
        return items

    def answer(self, exchange: Exchange, index: int, item: dict[str, Any]) -> BatchItem:
        """Answer one item, as its task would be answered alone."""
        own = Exchange(exchange.environ, client=exchange.client, timestamp=self._clock(), started=self._monotonic())
        own.request_id = f"{exchange.request_id[:120]}.{index}"
        own.key, own.trace_id = exchange.key, exchange.trace_id
        fields = {name: value for name, value in item.items() if name not in ("id", "task")}
        task = self._tasks.get(str(item.get("task")))
        if task is None:
            known = ", ".join(self._tasks)
            reply = refuse(own, errors.InvalidRequest(details=(FieldError("task", f"must be one of {known}"),)))
        else:
            reply = self._endpoint.reply_item(own, task, json.dumps(fields).encode())
        own.status = reply.status
        return BatchItem(index, item.get("id"), own, reply)

    def run(self, exchange: Exchange, items: list[dict[str, Any]], left: Event) -> Iterator[BatchItem | None]:
        """Yield the items as they end; None while nothing does. None begins once `left` is set."""
        ended: SimpleQueue[BatchItem | None] = SimpleQueue()

        def work(number: int, item: dict[str, Any]) -> None:
            if left.is_set():
                ended.put(None)
                return
            answered = self.answer(exchange, number, item)
            self._observe(answered.exchange, len(_body_of(answered.reply)))
            ended.put(answered)

        pool = ThreadPoolExecutor(self._concurrency(), thread_name_prefix="batch")
        try:
            for number in _beside_their_like(items):
                pool.submit(work, number, items[number])
            for _ in items:
                yield from _wait(ended)
        finally:
            left.set()
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # what is under way is bought, booked and logged all the same


def _beside_their_like(items: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of the items, identical ones one after the other, so that they share a flight or an answer.

    However small the cache is, then, none is bought twice.
    """
    first: dict[str, int] = {}
    alike = [json.dumps({**item, "id": None}, sort_keys=True) for item in items]
    for number, written in enumerate(alike):
        first.setdefault(written, number)
    return sorted(range(len(items)), key=lambda number: (first[alike[number]], number))


def _wait(ended: SimpleQueue[BatchItem | None]) -> Iterator[BatchItem | None]:
    """Yield the next item that has ended; None before it, for as long as none does."""
    while True:
        with waiting():
            try:
                item = ended.get(timeout=LOOK_SECONDS)
            except Empty:
                item = None
                silent = True
            else:
                silent = False
        yield item
        if not silent:
            return


class BatchBody:
    """The lines of one batch; closing it begins nothing more, and waits for what is under way."""

    def __init__(self, endpoint: BatchEndpoint, exchange: Exchange, items: list[dict[str, Any]]) -> None:
        self._endpoint = endpoint
        self._exchange = exchange
        self._items = items
        self._left = Event()

    def __iter__(self) -> Iterator[bytes]:
        gone = self._exchange.client_gone
        totals = BatchTotals()
        for item in self._endpoint.run(self._exchange, self._items, self._left):
            if gone():
                return
            if item is not None:
                totals.add(item)
                yield _line(item)
        yield totals.line(len(self._items))

    def close(self) -> None:
        """Begin nothing more; the server calls this when it is done with the response (PEP 3333)."""
        self._left.set()


class BatchTotals:
    """What the items of a batch add up to."""

    def __init__(self) -> None:
        self._ended = self._failed = self._cached = self._cost = 0

    def add(self, item: BatchItem) -> None:
        """Count one item that has ended."""
        self._ended += 1
        self._failed += item.reply.status != 200
        completion = item.exchange.completion
        if completion is not None:
            self._cached += completion.cached
            self._cost += completion.receipt.amount.cost.total

    def line(self, items: int) -> bytes:
        """Return the last line of a batch of so many items."""
        return _json(
            {
                "summary": True,
                "items": items,
                "succeeded": self._ended - self._failed,
                "failed": self._failed,
                "cached": self._cached,
                "not_begun": items - self._ended,
                "cost": _cost(self._cost),
            }
        )


def _line(item: BatchItem) -> bytes:
    completion = item.exchange.completion
    said: dict[str, Any] = json.loads(_body_of(item.reply))
    cost = completion.receipt.amount.cost.total if completion is not None else 0
    return _json(
        {
            **({"id": item.id} if item.id is not None else {}),
            "index": item.number,
            "status": item.reply.status,
            **({"body": said} if item.reply.status == 200 else said),
            "cached": completion is not None and completion.cached,
            "cost": _cost(cost),
        }
    )


def _body_of(reply: TaskReply) -> bytes:
    return reply.body if isinstance(reply.body, bytes) else b"{}"


def _cost(nano: int) -> dict[str, Any]:
    return {"total": format_usd(nano), "nanodollars": nano}


def _json(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"
