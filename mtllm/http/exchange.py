"""One request and its answer: collects facts on the way in, and makes all headers and the log event on the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import request

from mtllm.completions.live_stream import LiveStream
from mtllm.domain.completion import NO_CACHE_CONTROL, CacheControl, Completion, Origin
from mtllm.domain.errors import ApiError, UpstreamFailure
from mtllm.domain.events import RequestEvent
from mtllm.domain.findings import Finding
from mtllm.domain.limits import Limit, Verdict
from mtllm.http import headers
from mtllm.http.headers import Headers
from mtllm.http.request import choose_request_id, read_trace_id
from mtllm.security.access import ApiKey
from mtllm.tasks import Job, Task

_ENVIRON_KEY = "mtllm.exchange"


class Exchange:
    """Collects the facts of one request; headers and the log event are made from them, once."""

    __slots__ = (
        "cache_control",
        "client",
        "completion",
        "environ",
        "error",
        "fault",
        "findings",
        "job",
        "key",
        "length",
        "pending",
        "request_bytes",
        "request_id",
        "started",
        "status",
        "task",
        "timestamp",
        "trace_id",
        "verdict",
    )

    def __init__(self, environ: dict[str, Any], *, client: str, timestamp: float, started: float) -> None:
        self.environ = environ
        self.client = client
        self.timestamp = timestamp
        self.started = started
        self.request_id = choose_request_id(environ.get("HTTP_X_REQUEST_ID"))
        self.trace_id = read_trace_id(environ.get("HTTP_TRACEPARENT"))
        self.status = 0
        self.request_bytes = 0
        self.length: int | None = None
        self.key: ApiKey | None = None
        self.task: Task | None = None
        self.job: Job | None = None
        self.cache_control: CacheControl = NO_CACHE_CONTROL
        self.verdict: Verdict | None = None
        self.completion: Completion | None = None
        self.pending: LiveStream | None = None
        """The stream whose headers leave before its end."""
        self.error: ApiError | None = None
        self.fault: BaseException | None = None
        self.findings: tuple[Finding, ...] = ()

    def bind(self, environ: dict[str, Any]) -> None:
        """Let the views of this request find it.

        That makes a cycle, which only the garbage collector ends; so the task endpoint is handed the exchange instead.
        """
        environ[_ENVIRON_KEY] = self

    @property
    def account(self) -> str:
        """Return the name of the caller for limits, logs and ledger: the API key's name, else the address."""
        return self.key.name if self.key else self.client

    def limits(self, usual: tuple[Limit, ...]) -> tuple[Limit, ...]:
        """Return the rate limits of the caller: those of its key, where it has any of its own, else the usual ones."""
        own = self.key.rate_limits if self.key else None
        return usual if own is None else own

    @property
    def client_gone(self) -> Callable[[], bool]:
        """Return what tells whether the client has left; where the server does not know, it says no."""
        gone: Callable[[], bool] = self.environ.get("waitress.client_disconnected", _never)
        return gone

    def fail(self, error: ApiError) -> None:
        """Note that the request ended in `error`; the cause of a defect of ours is for the log alone."""
        self.error = error
        if error.status == 500:
            self.fault = error.__cause__

    def headers(self, overall: int | None, now: float) -> Headers:
        """Return every header of ours, given the nano-dollars spent since the start and the monotonic time.

        `overall` is None for a caller who may not know what everybody spends.
        """
        completion = self.completion
        rendered = [("X-Request-ID", self.request_id), *headers.STATIC]
        rendered += headers.money(completion, overall)
        if self.pending is not None:
            rendered += headers.PENDING
            rendered += headers.cache_status_of_stream(self.cache_control)
            rendered += headers.models_of_stream(self.pending)
        if self.verdict is not None:
            rendered += headers.limits(self.verdict)
        if completion is not None and completion.origin is not Origin.NONE:
            rendered += headers.cache_headers(completion, self.cache_control)
            rendered += headers.models(completion)
        rendered.append(("Server-Timing", headers.server_timing(completion, now - self.started)))
        return rendered

    def event(self, now: float, response_bytes: int) -> RequestEvent:
        """Return the record of this request, once it is over (`now` is monotonic)."""
        environ, completion, job = self.environ, self.completion, self.job
        event = RequestEvent(
            request_id=self.request_id,
            timestamp=self.timestamp,
            client=self.account,
            method=environ["REQUEST_METHOD"],
            path=environ.get("PATH_INFO", ""),
            status=self.status,
            duration=now - self.started,
            code=self.error.code if self.error else None,
            trace_id=self.trace_id,
            user_agent=environ.get("HTTP_USER_AGENT"),
            task=self.task.name if self.task else None,
            request_bytes=self.request_bytes,
            response_bytes=response_bytes,
            prompt=job.instruction.prompt if job else None,
            findings=self.findings,
            fault=self.fault,
            note=self.error.message if self.error else None,
            upstream=self.error.cause_words if isinstance(self.error, UpstreamFailure) else (),
            details=self.error.details if self.error else (),
        )
        if completion is not None:
            receipt, answer = completion.receipt, completion.answer
            event.attempts = receipt.attempts
            event.queue_seconds = completion.queue_seconds
            event.upstream_seconds = receipt.upstream_seconds
            event.amount = receipt.amount
            event.origin = completion.origin
            event.saved = completion.saved
            if completion.route is not None:
                event.requested_model = completion.route.asked
                event.fallback = completion.fallback
            if answer is not None:
                event.model = answer.model
                event.answer = answer
                event.cached = completion.cached
        return event


def _never() -> bool:
    return False


def current_exchange() -> Exchange:
    """Return the exchange of the request that a view answers."""
    exchange: Exchange = request.environ[_ENVIRON_KEY]
    return exchange
