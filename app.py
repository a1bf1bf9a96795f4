"""The HTTP edge: the Flask application, its routes, its errors, and `main()`.

`app` itself is built on first access (`waitress-serve app:app`); importing this module starts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from mtllm import process
from mtllm.domain import errors
from mtllm.domain.errors import ApiError
from mtllm.http import headers
from mtllm.http.cors import Cors
from mtllm.http.exchange import ENVIRON_KEY, Exchange
from mtllm.http.guard import Guard
from mtllm.http.headers import Headers
from mtllm.http.lifecycle import Lifecycle, waitress_threads, waitress_unsent
from mtllm.http.task_endpoint import Reply, TaskEndpoint, refusal
from mtllm.pages import dashboard, swagger
from mtllm.security.access import access_of
from mtllm.settings import Settings, SettingsError, load_settings
from mtllm.stats import health as operations
from mtllm.stats import metrics, usage
from mtllm.stats.recent import Recent
from mtllm.tasks import TASKS
from mtllm.wiring import DEFAULT_THREADS, Service

StartResponse = Callable[..., Any]

STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in HTTPStatus}
STATUS_LINES[errors.Abandoned.status] = f"{errors.Abandoned.status} CLIENT CLOSED REQUEST"


class Api(Flask):
    """Flask, with one way in and one way out: every request has its `Exchange`, every response its headers."""

    metrics: metrics.Metrics

    def __init__(self, settings: Settings, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__("mtllm", static_folder=None)
        self.settings = settings
        self.clock = clock
        self.monotonic = monotonic
        self.service = Service(settings, clock=clock, monotonic=monotonic)
        self.lifecycle = Lifecycle(settings.drain_seconds)
        self.recent = Recent()
        self.cors = Cors(self, settings, headers.EXPOSED)
        self.guard = Guard(settings, self.service.keys)
        self.task_endpoint = TaskEndpoint(settings, self.service, self.lifecycle, self.guard)
        self._tasks = {task.path: task for task in TASKS}
        self.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes

    def wsgi_app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Begin an exchange, let the task edge or Flask answer, and record the exchange when it is over."""
        self.lifecycle.begin()
        try:
            exchange = self._begun(environ)
            task = self._tasks.get(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" else None
            if task is not None:
                body = self._send(exchange, self.task_endpoint.reply(exchange, task), start_response)
            else:
                environ[ENVIRON_KEY] = exchange  # a cycle, which only the garbage collector ends: not for the tasks
                _encode_query(environ)
                body = super().wsgi_app(environ, partial(self._start, exchange, start_response))
        except BaseException:
            self.lifecycle.end()
            raise
        if exchange.length is None:
            return Closing(body, partial(self._over, exchange))
        self._over(exchange, exchange.length)
        return body

    def _send(self, exchange: Exchange, reply: Reply, start_response: StartResponse) -> Iterable[bytes]:
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
        """The one way out: whatever answered, every response gets its headers here."""
        exchange.status = int(status[:3])
        for name, value in own:
            if name == "Content-Length":
                exchange.length = int(value)
        own += exchange.headers(self.service.spend.total(), self.monotonic())
        own += self.cors.headers(exchange.environ)
        return start_response(status, own, exc_info)

    def _begun(self, environ: dict[str, Any]) -> Exchange:
        if not self.service.is_open:
            self._open_service(environ)
        client = self.service.clients.client(environ.get("REMOTE_ADDR"), environ.get("HTTP_X_FORWARDED_FOR"))
        return Exchange(environ, client=client, timestamp=self.clock(), started=self.monotonic())

    def _open_service(self, environ: dict[str, Any]) -> None:
        self.service.open(waitress_threads(environ) or DEFAULT_THREADS)
        unsent = waitress_unsent(environ)
        if unsent is not None:
            self.lifecycle.watch_connections(unsent)

    def _over(self, exchange: Exchange, sent: int) -> None:
        if exchange.status >= 400 and (burst := self.service.bursts.observe(exchange.account, exchange.status)):
            exchange.findings += (burst,)
        event = exchange.event(self.monotonic(), sent)
        origin = exchange.completion.origin if exchange.completion else None
        self.service.logger.record(event)
        self.metrics.observe(event, origin)
        self.recent.observe(event, origin)
        self.lifecycle.end()


def _encode_query(environ: dict[str, Any]) -> None:
    """Percent-encode what a lenient server let through of a query as raw bytes: werkzeug fails on bytes not UTF-8."""
    query = environ.get("QUERY_STRING", "")
    if not query.isascii():
        environ["QUERY_STRING"] = "".join(char if char.isascii() else f"%{ord(char):02X}" for char in query)


class Closing:
    """A body whose length only its end tells: a stream, an export. Counts it on its way and tells when it is over."""

    def __init__(self, body: Iterable[bytes], over: Callable[[int], None]) -> None:
        self._body = body
        self._over = over
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            self._sent += len(part)
            yield part

    def close(self) -> None:
        """Called by the server when the response is done with, sent whole or not (PEP 3333)."""
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            self._over(self._sent)


def create_app(
    settings: Settings, *, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
) -> Api:
    """The application that `settings` describe. Opens nothing; the first request does."""
    app = Api(settings, clock, monotonic)
    app.before_request(lambda: enter(app))
    app.register_error_handler(ApiError, answer_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(Exception, answer_defect)
    for task in TASKS:
        app.add_url_rule(task.path, task.name, methods=["POST"])  # no view: the task edge answers what matches
    app.metrics = metrics.register(app, app.service, app.lifecycle)
    operations.register(app, app.service, app.lifecycle, app.metrics, app.recent)
    usage.register(app, app.service)
    dashboard.register(app, app.service.keys)
    swagger.register(app, app.service)
    for warning in app.service.warnings():
        print(f"Warning: {warning}", file=sys.stderr)
    return app


def current_exchange() -> Exchange:
    """The exchange of the request being answered."""
    exchange: Exchange = request.environ[ENVIRON_KEY]
    return exchange


def enter(app: Api) -> None:
    """What every request that Flask answers passes before its view; what has no route is a 404 for everybody."""
    exchange = current_exchange()
    app.guard.inspect(exchange)
    if request.routing_exception is not None:
        raise request.routing_exception
    group_by = request.args.get("group_by") if request.query_string else None
    app.guard.authorize(exchange, access_of(request.method, request.path, group_by))


def answer_error(error: ApiError) -> Response:
    """The refusal as Flask's response."""
    reply = refusal(current_exchange(), error)
    return Response(reply.body, reply.status, reply.headers, content_type=reply.media_type)


def answer_http_error(error: HTTPException) -> Response:
    """Flask's and werkzeug's own refusals, in our shape."""
    if isinstance(error, RequestRedirect):
        return error.get_response()  # type: ignore[return-value]  # werkzeug's base class of Flask's Response
    if error.code == 405:
        return answer_error(errors.MethodNotAllowed(tuple(getattr(error, "valid_methods", None) or ())))
    return answer_error(_BY_STATUS.get(error.code or 500, errors.InvalidRequest)())


_BY_STATUS: dict[int, type[ApiError]] = {
    404: errors.NotFound,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    500: errors.InternalError,
}


def answer_defect(defect: Exception) -> Response:
    """A defect of ours: the client gets a sentence, the log the traceback."""
    return answer_error(errors.caused_by(defect))


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    with exit_on_bad_settings():
        app = create_app(load_settings())
    process.prepare()
    app.lifecycle.drain_on_sigterm(app.service.close)
    globals()["app"] = app
    return app


@contextlib.contextmanager
def exit_on_bad_settings() -> Iterator[None]:
    """Settings that cannot be used end the process with status 2 and every problem on standard error."""
    try:
        yield
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2) from None


def main(argv: list[str] | None = None) -> int:
    """`python app.py`: serve with waitress until SIGTERM or Ctrl-C."""
    options = _options(argv)
    process.prepare()
    with exit_on_bad_settings():
        settings = load_settings()
        return _serve_offline(settings) if options.offline else _serve(settings)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Multi-Task LLM API: text, code and classification by Google Gemini over HTTP.",
        epilog="Settings come from the environment and from .env; .env.example lists them all.",
    )
    parser.add_argument(
        "--offline", action="store_true", help="serve canned answers from a local emulator, without a key"
    )
    return parser.parse_args(argv)


def _serve_offline(settings: Settings) -> int:
    from mtllm.emulator.server import Emulator  # loaded only where it is asked for

    with Emulator() as emulator:
        return _serve(settings.offline(emulator.url))


def _serve(settings: Settings) -> int:
    from mtllm.http.serving import CannotServeError, serve  # only `python app.py` brings its own server

    app = create_app(settings)
    app.lifecycle.drain_on_sigterm(app.service.close)
    try:
        serve(app)
    except CannotServeError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
