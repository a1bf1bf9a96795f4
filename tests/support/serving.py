"""The service behind real sockets: waitress in a thread, or a process of its own; and callers who see what comes when.

serving(app)               waitress in a thread of this process, as one of the two ways of starting sets it up
Process                    `python app.py` or `waitress-serve app:app`, which can be signalled
post, get                  one request, one Answer
EventStream                a streamed answer, event by event
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, Self

from waitress import wasyncore
from waitress.server import create_server

from app import Api
from mtllm.project import PROJECT
from mtllm.settings import Settings

PATIENCE = 20.0
"""Seconds after which whatever a test waits for is not going to come."""


@contextmanager
def serving(app: Api, *, threads: int = 8, look_ahead: int = 1) -> Iterator[int]:
    """Serve `app` on a port of the loopback; `look_ahead` 1 is `python app.py`, 0 is `waitress-serve`."""
    server: Any = create_server(
        app, host="127.0.0.1", port=0, threads=threads, channel_request_lookahead=look_ahead, asyncore_use_poll=True
    )
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            wasyncore.loop(timeout=1, use_poll=True, map=server._map, count=1)

    thread = threading.Thread(target=run, name="waitress")
    thread.start()
    try:
        yield server.effective_port
    finally:
        ended.set()
        server.pull_trigger()
        thread.join()
        server.task_dispatcher.shutdown()
        server.trigger.close()
        wasyncore.close_all(server._map)


@dataclass(frozen=True, slots=True)
class Answer:
    """One plain response."""

    status: int
    headers: HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The error's code."""
        code: str | None = self.json.get("code")
        return code


def post(port: int, path: str, body: Mapping[str, Any], **headers: str) -> Answer:
    """Send `body` as JSON; header names have underscores for hyphens."""
    return _asked(port, "POST", path, json.dumps(body), headers)


def get(port: int, path: str, **headers: str) -> Answer:
    """Ask for `path`."""
    return _asked(port, "GET", path, None, headers)


def _asked(port: int, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Answer:
    connection, begun = HTTPConnection("127.0.0.1", port, timeout=PATIENCE), time.monotonic()
    try:
        connection.request(method, path, body, _headers(headers))
        response = connection.getresponse()
        read = response.read()
        return Answer(response.status, response.headers, read, time.monotonic() - begun)
    finally:
        connection.close()


def _headers(named: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in named.items()}


class EventStream:
    """A streamed answer: `headers` once they came, then `next()`. Leaving the `with` block closes the connection."""

    def __init__(self, port: int, path: str, body: Mapping[str, Any], **headers: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._connection.request("POST", path, json.dumps({**body, "stream": True}), _headers(headers))
        self._response: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Go away, whatever may still come."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    @property
    def response(self) -> Any:
        """Status and headers; waits for them."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def next(self) -> tuple[str, Any]:
        """("delta", text), ("done" or "error", what it says), ("comment", its text); ("end", None) after the last."""
        first = self.response.readline().decode().rstrip("\n")
        if not first:
            return "end", None
        if first.startswith(": "):  # a comment has one line end, an event two
            return "comment", first[2:]
        lines = [first, *iter(lambda: self.response.readline().decode().rstrip("\n"), "")]
        fields = dict(line.split(": ", 1) for line in lines)
        data = json.loads(fields["data"])
        return (fields["event"], data) if "event" in fields else ("delta", data["delta"])

    def rest(self) -> list[tuple[str, Any]]:
        """All that comes, comments left out."""
        return [event for event in iter(self.next, ("end", None)) if event[0] != "comment"]


APP_PY, WAITRESS_SERVE = "python app.py", "waitress-serve"


class Process:
    """The service as the user starts it (`how`), answering at `port`; leaving the `with` block kills what still runs.

    `flags` are those of the command; waitress-serve has address and threads besides. It is there once it listens; no
    request has been sent by then.
    """

    def __init__(self, how: str, environ: Mapping[str, str], *, threads: int = 4, flags: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._command = _command(how, self.port, threads, flags)
        settings = {name.upper() for name in Settings.model_fields}
        plain = {name: value for name, value in os.environ.items() if name not in settings}
        self._environ = plain | {"PORT": str(self.port), "THREADS": str(threads)} | dict(environ)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=PROJECT, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + PATIENCE
        while not listens(self.port):
            assert self._process.poll() is None, self.errors()
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        process = self._running()
        if process.poll() is None:
            process.kill()
        process.communicate()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self._running().send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has gone; raises TimeoutExpired when it has not in `seconds`."""
        return self._running().wait(seconds)

    def errors(self) -> str:
        """What it wrote to standard error; waits for its end."""
        return self._running().communicate()[1].decode()

    def output(self) -> str:
        """All that it wrote, standard output and error; waits for its end."""
        return b"".join(self._running().communicate()).decode()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process


def _command(how: str, port: int, threads: int, flags: Sequence[str]) -> Sequence[str]:
    if how == APP_PY:
        return [sys.executable, "app.py", *flags]
    serve = shutil.which("waitress-serve", path=str(Path(sys.executable).parent))
    program = [serve] if serve else [sys.executable, "-m", "waitress"]
    return [*program, "--host=127.0.0.1", f"--port={port}", f"--threads={threads}", *flags, "app:app"]


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def eventually(holds: Any, seconds: float = PATIENCE) -> bool:
    """Whether `holds()` comes true: for what ends in another thread or process and rings no bell."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
