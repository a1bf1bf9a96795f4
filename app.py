"""The HTTP edge: the Flask application, its routes, its errors, and `main()`.

`app` itself is built on first access (`waitress-serve app:app`); importing this module starts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

import errors
from accounting.till import Caller
from config import Settings, SettingsError, load_settings
from errors import ApiError
from security import hostile, inspect
from service import CacheWishes, Completion
from tasks import TASKS, Job, Task, parse
from web import headers, metrics, openapi, operations, sse, swagger, usage
from web.access import access_of, authorize, presented_key
from web.backend import DEFAULT_THREADS, Backend
from web.cors import Cors
from web.exchange import ENVIRON_KEY, Exchange
from web.lifecycle import Lifecycle, waitress_threads, waitress_unsent

JSON = "application/json"


class Api(Flask):
    """Flask, with one way in and one way out: every request has its `Exchange`, every response its headers."""

    metrics: metrics.Metrics

    def __init__(self, settings: Settings, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__("mtllm", static_folder=None)
        self.settings = settings
        self.clock = clock
        self.monotonic = monotonic
        self.backend = Backend(settings, clock=clock, monotonic=monotonic)
        self.lifecycle = Lifecycle(settings.drain_seconds)
        self.cors = Cors(self, settings, headers.EXPOSED)
        self.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Begin an exchange, let Flask answer, add the headers, and record the exchange when it is over."""
        exchange = self._begun(environ)

        def start(status: str, from_flask: list[tuple[str, str]], exc_info: Any = None) -> Any:
            exchange.status = int(status[:3])
            exchange.length = next((int(value) for name, value in from_flask if name == "Content-Length"), None)
            ours = exchange.headers(self.backend.spend.total(), self.monotonic())
            return start_response(status, [*from_flask, *ours, *self.cors.headers(environ)], exc_info)

        try:
            body = super().wsgi_app(environ, start)
        except BaseException:
            self.lifecycle.end()
            raise
        if exchange.length is None:
            return Closing(body, lambda sent: self._over(exchange, sent))
        self._over(exchange, exchange.length)
        return body

    def _begun(self, environ: dict[str, Any]) -> Exchange:
        self.lifecycle.begin()
        if not self.backend.is_open:
            self._open_backend(environ)
        client = self.backend.clients.client(environ.get("REMOTE_ADDR"), environ.get("HTTP_X_FORWARDED_FOR"))
        exchange = Exchange(environ, client=client, timestamp=self.clock(), started=self.monotonic())
        environ[ENVIRON_KEY] = exchange
        return exchange

    def _open_backend(self, environ: dict[str, Any]) -> None:
        self.backend.open(waitress_threads(environ) or DEFAULT_THREADS)
        unsent = waitress_unsent(environ)
        if unsent is not None:
            self.lifecycle.watch_connections(unsent)

    def _over(self, exchange: Exchange, sent: int) -> None:
        if exchange.status >= 400 and (burst := self.backend.bursts.observe(exchange.account, exchange.status)):
            exchange.findings += (burst,)
        self.backend.logger.record(exchange.event(self.monotonic(), sent))
        self.lifecycle.end()


class Closing:
    """A body whose length only its end tells: a stream, an export. Counts it as it goes out and tells when it is over."""

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
        app.add_url_rule(task.path, task.name, task_view(app, task), methods=["POST"])
    operations.register(app, app.backend, app.lifecycle)
    usage.register(app, app.backend)
    openapi.register(app, app.backend)
    swagger.register(app)
    for warning in app.backend.warnings():
        print(f"Warning: {warning}", file=sys.stderr)
    app.metrics = metrics.register(app, app.backend, app.lifecycle)
    return app


def current_exchange() -> Exchange:
    """The exchange of the request being answered."""
    exchange: Exchange = request.environ[ENVIRON_KEY]
    return exchange


def enter(app: Api) -> None:
    """What every request passes before its view: detection, then access."""
    exchange, environ = current_exchange(), request.environ
    path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
    exchange.findings = inspect(path, query, environ.get("HTTP_USER_AGENT", ""))
    if exchange.findings and app.settings.security_mode == "block" and hostile(exchange.findings):
        raise errors.Forbidden()
    if request.routing_exception is not None:
        raise request.routing_exception
    access = access_of(request.method, path, request.args.get("group_by") if query else None)
    secret = presented_key(environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"))
    exchange.key = authorize(app.backend.keys, access, secret)


def task_view(app: Api, task: Task) -> Callable[[], Response]:
    """The view of one task; all tasks share this path."""

    def view() -> Response:
        exchange, backend = current_exchange(), app.backend
        exchange.task = task
        if app.lifecycle.draining:
            raise errors.Draining(retry_after=app.lifecycle.seconds_left())
        admit(app, exchange)
        exchange.job = job = parse(task, body(), max_chars=app.settings.max_prompt_chars)
        wishes = headers.cache_wishes(exchange.environ.get("HTTP_CACHE_CONTROL"))
        key = exchange.key
        caller = Caller(exchange.request_id, exchange.account, key.name if key else None, backend.budgets(key))
        if job.stream:
            return stream(app, exchange, job, caller, wishes)
        deadline = exchange.started + app.settings.gemini_timeout_seconds
        exchange.completion = completion = backend.completions.complete(job, caller, wishes, deadline=deadline)
        return answer(completion)

    return view


def admit(app: Api, exchange: Exchange) -> None:
    """Count the request against its client's windows; raises RateLimited."""
    own = exchange.key.rate_limits if exchange.key else None
    limits = app.settings.rate_limits if own is None else own
    exchange.verdict = verdict = app.backend.limiter.hit(exchange.account, limits)
    if verdict is not None and not verdict.admitted:
        raise errors.RateLimited(retry_after=verdict.retry_after)


def body() -> bytes:
    """The request's body; raises UnsupportedMediaType unless it is declared as JSON, PayloadTooLarge past the limit."""
    if not request.is_json:
        raise errors.UnsupportedMediaType()
    return request.get_data(cache=False)


def answer(completion: Completion) -> Response:
    """The plain response; raises the error the completion ended with."""
    if completion.error is not None:
        raise completion.error
    assert completion.answer is not None  # noqa: S101  # an answer or an error, by construction
    return Response(completion.answer.body, mimetype=JSON)


def stream(app: Api, exchange: Exchange, job: Job, caller: Caller, wishes: CacheWishes) -> Response:
    """The response as server-sent events; an error before the first of them is an ordinary one."""
    settings = app.settings
    live = app.backend.completions.stream(
        job,
        caller,
        wishes,
        deadline=exchange.started + settings.stream_max_seconds,
        gap=settings.gemini_timeout_seconds,
    )
    first = live.next(sse.KEEP_ALIVE_SECONDS)
    if isinstance(first, Completion):
        exchange.completion = first
        if first.error is not None:
            raise first.error
    exchange.pending = not isinstance(first, Completion)
    return Response(sse.events(exchange, live, first), mimetype="text/event-stream")


def answer_error(error: ApiError) -> Response:
    """The JSON of section 4's shape: a sentence, a code, the request id, and details where there are any."""
    exchange = current_exchange()
    exchange.error = error
    exchange.fault = exchange.fault or error.__cause__ if error.status == 500 else None
    response = Response(json.dumps(errors.as_json(error, exchange.request_id)), error.status, mimetype=JSON)
    response.headers.update(error.headers())
    return response


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
    error = errors.InternalError()
    error.__cause__ = defect
    return answer_error(error)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    with exit_on_bad_settings():
        app = create_app(load_settings())
    app.lifecycle.drain_on_sigterm(app.backend.close)
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
    from gemini_emulator import Emulator  # loaded only where it is asked for

    with Emulator() as emulator:
        return _serve(settings.offline(emulator.url))


def _serve(settings: Settings) -> int:
    from waitress.server import create_server  # only `python app.py` brings its own server

    app = create_app(settings)
    app.lifecycle.drain_on_sigterm(app.backend.close)
    server: Any = create_server(
        app,
        host=settings.host,
        port=settings.port,
        threads=settings.threads,
        connection_limit=1000,
        channel_timeout=30,
        channel_request_lookahead=1,
        asyncore_use_poll=True,
        max_request_body_size=4 * settings.max_request_bytes,
        max_request_header_size=32 * 1024,
        clear_untrusted_proxy_headers=settings.trusted_proxies == 0,
        ident="mtllm",
    )
    print(banner(settings, server.effective_port))
    app.backend.open(settings.threads)
    try:
        server.run()
    except KeyboardInterrupt:
        print("Stopping.")
    finally:
        server.close()
        app.backend.close()
    return 0


def banner(settings: Settings, port: int) -> str:
    """What a person who starts the service wants to see first."""
    return f"Multi-Task LLM API on http://{settings.host}:{port} with {settings.gemini_model}"


if __name__ == "__main__":
    sys.exit(main())
