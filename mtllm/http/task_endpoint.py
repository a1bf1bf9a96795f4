"""The task endpoints over plain WSGI: one path for all tasks, hits and misses, answers and errors.

Flask's dispatch costs as much as all of a hit's own work (docs/performance.md), and a task needs nothing of it: its
path is fixed, its body is JSON bytes, its answer is ready bytes. Everything else the service answers through Flask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtllm.completions.dry_run import DryRuns
from mtllm.completions.service import Completions
from mtllm.domain import errors
from mtllm.domain.caller import Caller
from mtllm.domain.completion import CacheControl, Completion
from mtllm.domain.errors import ApiError, FieldError
from mtllm.http import sse
from mtllm.http.body import JSON, read_body
from mtllm.http.dispatcher import waiting
from mtllm.http.estimate import render_estimate
from mtllm.http.exchange import Exchange
from mtllm.http.guard import Guard
from mtllm.http.lifecycle import Lifecycle
from mtllm.http.request import read_cache_control, read_tag
from mtllm.http.shapes import answer_body, failure_body, failure_headers, shape_error
from mtllm.security.access import Access, challenge
from mtllm.settings import Settings
from mtllm.tasks import Job, Task, parse
from mtllm.wiring import AnyLimiter, Budgets

EVENT_STREAM = "text/event-stream"
UNBUFFERED = [("X-Accel-Buffering", "no")]
"""Tells nginx, and what follows it, to pass a stream on as it comes, whatever its configuration says of buffers."""


class TaskReply(NamedTuple):
    """A response without the headers that every response has; a body that is not bytes comes in parts."""

    status: int
    body: bytes | Iterable[bytes]
    media_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()


class TaskEndpoint:
    """Answers POSTs on the tasks' paths."""

    def __init__(
        self,
        settings: Settings,
        guard: Guard,
        lifecycle: Lifecycle,
        *,
        limiter: AnyLimiter,
        budgets: Budgets,
        completions: Completions,
        dry_runs: DryRuns,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._lifecycle = lifecycle
        self._limiter = limiter
        self._budgets = budgets
        self._completions = completions
        self._dry_runs = dry_runs

    def reply(self, exchange: Exchange, task: Task) -> TaskReply:
        """Return the answer of `task` to the request, or the error it ended in. Raises nothing."""
        exchange.task = task
        try:
            self._guard.admit(exchange, Access.KEY)
            self._count(exchange)
            body = read_body(exchange, self._settings.max_request_bytes)
            return self._answer(exchange, task, body)
        except ApiError as error:
            return refuse(exchange, error)
        except Exception as defect:  # the last line of defence: the client gets a sentence, the log the traceback
            return refuse(exchange, errors.wrap_defect(defect))

    def reply_item(self, exchange: Exchange, task: Task, body: bytes) -> TaskReply:
        """Return the answer of `task` to one item of a batch whose caller was admitted; it never streams."""
        exchange.task = task
        try:
            self._count(exchange)
            return self._answer(exchange, task, body, streams=False)
        except ApiError as error:
            return refuse(exchange, error)
        except Exception as defect:  # as above
            return refuse(exchange, errors.wrap_defect(defect))

    def _answer(self, exchange: Exchange, task: Task, body: bytes, *, streams: bool = True) -> TaskReply:
        exchange.job = job = parse(task, body, max_chars=self._settings.max_prompt_chars)
        exchange.cache_control = cache_control = read_cache_control(exchange.environ.get("HTTP_CACHE_CONTROL"))
        key = exchange.key
        tag = exchange.environ.get("HTTP_X_TAG")
        caller = Caller(
            exchange.request_id,
            exchange.account,
            key.name if key else None,
            self._budgets.of(key),
            key.models if key else None,
            read_tag(tag) if tag else job.tag,
        )
        if job.dry_run:
            with waiting():
                return TaskReply(200, render_estimate(self._dry_runs.estimate(job, caller)))
        if job.stream and not streams:
            raise errors.InvalidRequest(details=(FieldError("stream", "is not served in a batch"),))
        if job.stream:
            return self._stream(exchange, job, caller, cache_control)
        deadline = exchange.started + self._settings.gemini_timeout_seconds
        exchange.completion = completion = self._completions.complete(job, caller, cache_control, deadline=deadline)
        if completion.answer is None:
            return refuse(exchange, completion.error or errors.InternalError())
        return TaskReply(200, answer_body(exchange, completion))

    def _count(self, exchange: Exchange) -> None:
        """Count the request against its client's windows. Raises RateLimited, or Draining instead."""
        if self._lifecycle.draining:
            raise errors.Draining(retry_after=self._lifecycle.seconds_left())
        limits = exchange.limits(self._settings.rate_limits)
        exchange.verdict = verdict = self._limiter.hit(exchange.account, limits)
        if verdict is not None and not verdict.admitted:
            raise errors.RateLimited(retry_after=verdict.retry_after)

    def _stream(self, exchange: Exchange, job: Job, caller: Caller, cache_control: CacheControl) -> TaskReply:
        """Return the answer as server-sent events; an error before the first of them is an ordinary one."""
        live = self._completions.stream(
            job,
            caller,
            cache_control,
            deadline=exchange.started + self._settings.stream_max_seconds,
            gap=self._settings.gemini_timeout_seconds,
        )
        first = sse.next_part(exchange, live)
        if isinstance(first, Completion):
            exchange.completion = first
            if first.error is not None:
                return refuse(exchange, first.error)
        exchange.pending = None if isinstance(first, Completion) else live
        return TaskReply(200, sse.EventBody(exchange, live, first), EVENT_STREAM, UNBUFFERED)


def refuse(exchange: Exchange, error: ApiError) -> TaskReply:
    """Note `error` and return its JSON: a sentence, a code, the request's id, and details where there are any."""
    error = shape_error(exchange, error)
    exchange.fail(error)
    more = [*error.headers().items(), *failure_headers(exchange, error)]
    if error.status == 401:
        more.append(("WWW-Authenticate", challenge(exchange.environ.get("PATH_INFO", ""))))
    return TaskReply(error.status, failure_body(exchange, error), JSON, more)
