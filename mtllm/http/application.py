"""The Flask application: every request has one way in and one way out, whatever answers it.

    wsgi_app ── begin an Exchange ── task endpoint (POSTs of tasks) or Flask (all else) ── headers ── observers

Nothing of the pages is known here: routes are added by those who have the views, and observers of finished requests are
handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from mtllm.domain import errors
from mtllm.domain.errors import ApiError
from mtllm.domain.events import RequestEvent
from mtllm.http import batch, headers, waitress_server
from mtllm.http.batch import BatchEndpoint
from mtllm.http.cors import Cors
from mtllm.http.exchange import Exchange, current_exchange
from mtllm.http.guard import Guard
from mtllm.http.headers import Headers
from mtllm.http.lifecycle import Lifecycle
from mtllm.http.task_endpoint import TaskEndpoint, TaskReply, refuse
from mtllm.security.access import access_of
from mtllm.settings import Settings
from mtllm.tasks import Task
from mtllm.wiring import DEFAULT_THREADS, Clock, Service

StartResponse = Callable[..., Any]
Observer = Callable[[RequestEvent], None]
"""Is told of every finished request, in the thread that finished it."""

STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}
STATUS_LINES[errors.Abandoned.status] = f"{errors.Abandoned.status} CLIENT CLOSED REQUEST"


class Api(Flask):
    """Flask with its own way in and out: every request has its `Exchange`, every response its headers."""

    def __init__(
        self,
        settings: Settings,
        service: Service,
        tasks: Sequence[Task],
        *,
        clock: Clock,
        monotonic: Clock,
    ) -> None:
        super().__init__("mtllm", static_folder=None)
        self.settings = settings
        self.service = service
        """The parts: opened by the first request, closed by whoever made the application."""
        self.lifecycle = service.parts.add(Lifecycle(settings.drain_seconds), checks={"draining": Lifecycle.check})
        self.observers: Sequence[Observer] = ()
        self.server_threads = DEFAULT_THREADS
        """Threads of a server that is not waitress; whoever starts it may say so before the first request."""
        self._opening = threading.Lock()
        self.clock = clock
        self.monotonic = monotonic
        self._parts = service.parts
        self._clients = service.clients
        self._bursts = service.bursts
        self._spend = service.spend
        self._keys = service.keys
        self._cors = Cors(self, settings, headers.EXPOSED)
        self._guard = Guard(settings, service.keys)
        self._task_endpoint = TaskEndpoint(
            settings,
            self._guard,
            self.lifecycle,
            limiter=service.limiter,
            budgets=service.budgets,
            completions=service.completions,
            dry_runs=service.dry_runs,
        )
        self._tasks = {task.path: task for task in tasks}
        self._batch_endpoint = BatchEndpoint(
            {task.name: task for task in tasks},
            self._guard,
            self.lifecycle,
            self._task_endpoint,
            most_items=settings.batch_max_items,
            concurrency=lambda: settings.batch_concurrency or max(1, service.admission.state().slots // 4),
            max_request_bytes=settings.max_request_bytes,
            observe=self._observe,
            clock=clock,
            monotonic=monotonic,
        )
        self.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
        self.before_request(self._enter)
        self.register_error_handler(ApiError, answer_error)
        self.register_error_handler(HTTPException, answer_http_error)
        self.register_error_handler(Exception, answer_defect)
        for task in tasks:
            self.add_url_rule(task.path, task.name, methods=["POST"])  # no view: the task endpoint answers it
        self.add_url_rule(batch.PATH, "batch", methods=["POST"])

    # The way in

    def wsgi_app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Begin an exchange, let the task endpoint or Flask answer, and tell the observers when it is over."""
        self.lifecycle.begin()
        try:
            exchange = self._begin(environ)
            posted = environ["PATH_INFO"] if environ["REQUEST_METHOD"] == "POST" else ""
            task = self._tasks.get(posted)
            if task is not None:
                body = self._send(exchange, self._task_endpoint.reply(exchange, task), start_response)
            elif posted == batch.PATH:
                body = self._send(exchange, self._batch_endpoint.reply(exchange), start_response)
            else:
                exchange.bind(environ)
                _encode_query(environ)
                body = super().wsgi_app(environ, partial(self._start, exchange, start_response))
        except BaseException:
            self.lifecycle.end()
            raise
        if exchange.length is None:
            return CountedBody(body, partial(self._finish, exchange))
        self._finish(exchange, exchange.length)
        return body

    def _begin(self, environ: dict[str, Any]) -> Exchange:
        if not self._parts.is_open:
            self._open(environ)
        client = self._clients.client(environ.get("REMOTE_ADDR"), environ.get("HTTP_X_FORWARDED_FOR"))
        return Exchange(environ, client=client, timestamp=self.clock(), started=self.monotonic())

    def _open(self, environ: dict[str, Any]) -> None:
        """Start the service with the threads of the server that brings the first request."""
        server = waitress_server.find_server(environ)
        if server is None:
            self.open(self.server_threads)
        else:
            self.open_under_waitress(server)

    def open(self, threads: int) -> None:
        """Start the service for a server with so many threads; do nothing when it runs."""
        self._parts.open(threads)

    def open_under_waitress(self, server: Any) -> None:
        """Start the service for a waitress server, which gets our channel, our dispatcher and THREADS threads."""
        with self._opening:
            if not self._parts.is_open:
                threads = waitress_server.quicken(server, self.settings.threads)
                self.lifecycle.watch_connections(waitress_server.watch_unsent(server))
                self.open(threads)

    def _enter(self) -> Response | None:
        """Admit a request before its view, where Flask answers; return a redirect that answers it instead.

        An unknown path is 404 for every caller.
        """
        exchange = current_exchange()
        if request.routing_exception is not None:
            self._guard.inspect(exchange)
            if isinstance(request.routing_exception, RequestRedirect):
                return answer_redirect(request.routing_exception)
            raise request.routing_exception
        group_by = request.args.get("group_by") if request.query_string else None
        self._guard.admit(exchange, access_of(request.method, request.path, group_by))
        return None

    # The way out

    def _send(self, exchange: Exchange, reply: TaskReply, start_response: StartResponse) -> Iterable[bytes]:
        own = [("Content-Type", reply.media_type), *reply.headers]
        body = reply.body
        if not isinstance(body, bytes):
            self._start(exchange, start_response, STATUS_LINES[reply.status], own)
            return body
        own.append(("Content-Length", str(len(body))))
        self._start(exchange, start_response, STATUS_LINES[reply.status], own)
        return (body,)

    def _start(
        self, exchange: Exchange, start_response: StartResponse, status: str, own: Headers, exc_info: Any = None
    ) -> Any:
        """Give a response its headers; every response comes by here, whatever answered."""
        exchange.status = int(status[:3])
        for name, value in own:
            if name == "Content-Length":
                exchange.length = int(value)
        overall = self._spend.total() if exchange.key is not None or self._keys.open else None
        own += exchange.headers(overall, self.monotonic())
        own += self._cors.headers(exchange.environ)
        return start_response(status, own, exc_info)

    def _finish(self, exchange: Exchange, sent: int) -> None:
        if exchange.status >= 400 and (burst := self._bursts.observe(exchange.account, exchange.status)):
            exchange.findings += (burst,)
        self._observe(exchange, sent)
        self.lifecycle.end()

    def _observe(self, exchange: Exchange, sent: int) -> None:
        event = exchange.event(self.monotonic(), sent)
        for observe in self.observers:
            observe(event)


class CountedBody:
    """A body of unknown length (a stream, an export): counts its bytes on their way and tells when it is over."""

    def __init__(self, body: Iterable[bytes], finish: Callable[[int], None]) -> None:
        self._body = body
        self._finish = finish
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            self._sent += len(part)
            yield part

    def close(self) -> None:
        """Finish the request; the server calls this when it is done with the response, sent whole or not (PEP 3333)."""
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            self._finish(self._sent)


def _encode_query(environ: dict[str, Any]) -> None:
    """Percent-encode what a lenient server let through of a query as raw bytes: werkzeug fails on bytes not UTF-8."""
    query = environ.get("QUERY_STRING", "")
    if not query.isascii():
        environ["QUERY_STRING"] = "".join(char if char.isascii() else f"%{ord(char):02X}" for char in query)


# Errors ---------------------------------------------------------------------------------------------------------------

_BY_STATUS: dict[int, type[ApiError]] = {
    404: errors.NotFound,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    500: errors.InternalError,
}


def answer_error(error: ApiError) -> Response:
    """Return the refusal as Flask's response."""
    reply = refuse(current_exchange(), error)
    return Response(reply.body, reply.status, reply.headers, content_type=reply.media_type)


def answer_redirect(redirect: RequestRedirect) -> Response:
    """Send the caller to another path of the same place.

    Without scheme and host, since behind a proxy ours are not those that the caller reaches (RFC 9110, section 10.2.2).
    """
    target = urlsplit(redirect.new_url)
    location = target._replace(scheme="", netloc="", path="/" + target.path.lstrip("/")).geturl()
    return Response(status=redirect.code, headers={"Location": location})


def answer_http_error(error: HTTPException) -> Response:
    """Return a refusal of Flask's or werkzeug's own in the shape of ours."""
    if error.code == 405:
        return answer_error(errors.MethodNotAllowed(tuple(getattr(error, "valid_methods", None) or ())))
    return answer_error(_BY_STATUS.get(error.code or 500, errors.InvalidRequest)())


def answer_defect(defect: Exception) -> Response:
    """Return a sentence for the caller of a defect of ours; the log gets its traceback."""
    return answer_error(errors.wrap_defect(defect))
