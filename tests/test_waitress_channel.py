"""Our channel beside waitress's own: the same answers to the same bytes, and what ours does better."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from waitress.server import create_server

from mtllm.http.waitress_server import quicken
from tests.support.serving import eventually

PATIENCE = 20.0
StartResponse = Callable[..., Any]
LONG = b"x" * 3_000_000


class Body:
    """A body in parts, which tells when it is closed."""

    def __init__(self, *parts: bytes, fail: bool = False) -> None:
        self._parts = parts
        self._fail = fail
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        if self._fail:
            raise RuntimeError("broken on the way")

    def close(self) -> None:
        self.closed.set()


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer each path in another way."""
    path, read = environ["PATH_INFO"], environ["wsgi.input"].read()
    answers: dict[str, tuple[str, list[tuple[str, str]], Iterable[bytes]]] = {
        "/one": ("200 OK", [("Content-Length", "5")], (b"hello",)),
        "/echo": ("200 OK", [("Content-Length", str(len(read)))], (read,)),
        "/parts": ("200 OK", [], Body(b"one ", b"", b"two")),
        "/nothing": ("204 No Content", [], ()),
        "/empty": ("200 OK", [("Content-Length", "0")], (b"",)),
        "/long": ("200 OK", [("Content-Length", str(len(LONG)))], (LONG,)),
        "/short": ("200 OK", [("Content-Length", "9")], (b"hello",)),
        "/excess": ("200 OK", [("Content-Length", "2")], (b"hello",)),
        "/same": ("404 Not Found", [("X-Two", "a"), ("X-Two", "b"), ("Content-Length", "1")], (b"x",)),
        "/latin": ("200 OK", [("X-Name", "caf\xe9"), ("Content-Length", "1")], (b"x",)),
        "/dated": ("200 OK", [("Date", "now"), ("Server", "other"), ("Content-Length", "1")], (b"x",)),
    }
    if path == "/fails":
        raise RuntimeError("broken before the answer")
    status, headers, body = answers[path]
    start_response(status, [("Content-Type", "text/plain"), *headers])
    return body


@contextmanager
def serving(app: Any, *, quick: bool, **settings: Any) -> Iterator[tuple[int, Any]]:
    """A waitress server on a free port, with our channel or its own."""
    server: Any = create_server(app, host="127.0.0.1", port=0, threads=4, **settings)
    if quick:
        quicken(server, 8)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port, server
    finally:
        server.trigger.pull_trigger(server.close)  # in the thread that watches its sockets
        thread.join(1)  # longer only where a connection is still open


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """The ports of waitress's own server and of ours, with the same application."""
    with serving(application, quick=False) as (theirs, _), serving(application, quick=True) as (ours, _):
        yield theirs, ours


def exchange(port: int, *sent: bytes) -> bytes:
    """What comes back for these bytes, until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
        for part in sent:
            wire.sendall(part)
        wire.settimeout(0.4)
        came = b""
        try:
            while part := wire.recv(1 << 20):
                came += part
        except ConnectionResetError:  # closed with bytes unread: the end all the same
            pass
        except TimeoutError:
            came += b"<open>"
        return came


def normal(came: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
    """The answers in `came`: status line, headers without their order, case and dates, and body."""
    answers = []
    while came.startswith(b"HTTP/"):
        head, _, came = came.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = sorted(line.split(b":", 1)[0].lower() + b":" + line.split(b":", 1)[1] for line in lines)
        after = came.find(b"HTTP/1.")
        body, came = (came, b"") if after < 0 else (came[:after], came[after:])
        answers.append((status, [line for line in headers if not line.startswith(b"date:") or b"now" in line], body))
    return answers


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/{version}", "Host: x", *headers, "", "")).encode()


@pytest.mark.parametrize(
    "sent",
    [
        (get("/one"),),
        (get("/one") * 3,),
        (get("/one", "Connection: close"),),
        (get("/one", version="1.0"),),
        (get("/one", "Connection: keep-alive", version="1.0"),),
        (get("/one", method="HEAD"),),
        (get("/parts"),),
        (get("/parts", version="1.0"),),
        (get("/nothing"), get("/one")),
        (get("/empty"), get("/one")),
        (get("/long"),),
        (get("/short"),),
        (get("/excess"), get("/one")),
        (get("/same"),),
        (get("/latin"),),
        (get("/dated"),),
        (get("/fails"), get("/one")),
        (get("/echo", "Content-Length: 5", method="POST") + b"hello" + get("/one"),),
        (get("/echo", "Content-Length: 5", method="POST"), b"he", b"llo"),
        (get("/echo", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n0\r\n\r\n",),
        (get("/echo", "Content-Length: 5", "Expect: 100-continue", method="POST"), b"hello"),
        (b"NONSENSE\r\n\r\n",),
        (get("/one", "Content-Length: many", method="POST"),),
    ],
    ids=lambda sent: sent[0].split(b"\r\n")[0].decode() + f" +{len(sent)}",
)
def test_the_same_answer_as_waitress(ports: tuple[int, int], sent: tuple[bytes, ...]) -> None:
    """Status, headers, body, and whether the connection stays open, for one request and for several."""
    theirs, ours = (exchange(port, *sent) for port in ports)
    assert normal(ours) == normal(theirs)


def test_a_line_break_in_a_header_is_refused(ports: tuple[int, int]) -> None:
    """An application's header never becomes two."""

    def app(_environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "1"), ("X-Name", "a\r\nX-Other: b")])
        return (b"x",)

    with serving(app, quick=True) as (port, _):
        came = exchange(port, get("/"))
    assert b"X-Other" not in came
    assert b" 200 " not in came


def test_the_body_is_closed_when_it_breaks() -> None:
    """And what had been sent before stays the last of the connection."""
    body = Body(b"begun", fail=True)

    def app(_environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return body

    with serving(app, quick=True) as (port, _):
        came = exchange(port, get("/"))
    assert body.closed.is_set()
    assert b"begun" in came
    assert not came.endswith((b"0\r\n\r\n", b"<open>"))


def test_a_client_that_leaves_is_noticed_at_once() -> None:
    """While its answer is still being made, on a server that looks ahead for no further request."""
    asked, left = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        gone = environ["waitress.client_disconnected"]
        asked.set()
        for _ in range(2000):
            if gone():
                left.set()
                break
            threading.Event().wait(0.005)
        start_response("200 OK", [("Content-Length", "1")])
        return (b"x",)

    with serving(app, quick=True, channel_request_lookahead=0) as (port, _):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
            wire.sendall(get("/"))
            assert asked.wait(PATIENCE)
        assert left.wait(PATIENCE)


def test_a_connection_serves_many_requests_without_a_pause(ports: tuple[int, int]) -> None:
    """Each request is read as soon as it comes, though nobody wakes the main thread for it."""
    with socket.create_connection(("127.0.0.1", ports[1]), PATIENCE) as wire:
        for _ in range(500):
            wire.sendall(get("/one"))
            came = b""
            while not came.endswith(b"hello"):
                part = wire.recv(1 << 16)
                assert part
                came += part


def test_more_requests_than_are_looked_ahead_are_all_answered(ports: tuple[int, int]) -> None:
    """Fifty at once on one connection, in their order."""
    bodies = [b"%02d" % number for number in range(50)]
    sent = b"".join(get("/echo", "Content-Length: 2", method="POST") + body for body in bodies)
    assert [body for _, _, body in normal(exchange(ports[1], sent).removesuffix(b"<open>"))] == bodies


@pytest.mark.parametrize(("threads", "allowed"), [(64, 64), (2, 4)])
def test_an_operators_larger_number_of_threads_stays(threads: int, allowed: int) -> None:
    """Fewer are raised."""
    with serving(application, quick=False) as (_, server):
        assert quicken(server, threads) == allowed


class Waiting:
    """A request in a dispatcher's queue."""

    def __init__(self) -> None:
        self.served = threading.Event()

    def service(self) -> None:
        """Note that a thread has come."""
        self.served.set()

    def cancel(self) -> None:
        """Never asked for."""


def test_what_waits_for_waitresss_threads_is_answered_by_ours() -> None:
    """All four are taken while the first request has our dispatcher put in; the fifth is not left behind."""
    with serving(application, quick=False) as (_, server):
        server.task_dispatcher.set_thread_count(0)
        assert eventually(lambda: not server.task_dispatcher.threads)
        fifth = Waiting()
        server.task_dispatcher.add_task(fifth)
        quicken(server, 64)
        assert fifth.served.wait(10)
