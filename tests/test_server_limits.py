"""What the server itself bears: long bodies and heads, half-open and idle connections, bytes that are not HTTP.

`python app.py`, and `waitress-serve` with the flags that docs/security.md names, over real sockets.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import Api
from mtllm.http import serving
from mtllm.project import PROJECT
from tests.support.raw_http import connect, head, posted, send
from tests.support.serving import APP_PY, PATIENCE, WAITRESS_SERVE, Process, get

TEXT = "/api/v1/generate/text"
MIB = 1024 * 1024
HALF_OPEN = 200


def documented_flags() -> list[str]:
    """The flags of the waitress-serve command in docs/security.md, without address, port and threads."""
    page = (PROJECT / "docs" / "security.md").read_text()
    (command,) = re.findall(r"^waitress-serve ((?:.|\\\n)*?) app:app$", page, re.MULTILINE)
    flags = [flag for flag in command.replace("\\\n", " ").split() if flag.startswith("--")]
    return [flag for flag in flags if not flag.startswith(("--host", "--port", "--threads"))]


@pytest.fixture(scope="module", params=[APP_PY, WAITRESS_SERVE])
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The service, with nobody behind it, so that tasks answer 503 at once."""
    folder = tmp_path_factory.mktemp("limits")
    environ = {f"{name}_DIR": str(folder / name.lower()) for name in ("LOG", "CACHE", "DATA")} | {"RATE_LIMITS": ""}
    with Process(request.param, environ, flags=() if request.param == APP_PY else documented_flags()) as running:
        yield running


def is_well(process: Process) -> bool:
    return get(process.port, "/health").status == 200


# Bodies


def test_an_overlong_body_gets_our_json(process: Process) -> None:
    """413 in our shape, since the server's limit lies above ours."""
    answer = send(process.port, posted(TEXT, b'{"prompt": "' + b"x" * MIB + b'"}'))
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    assert answer.headers["X-Request-ID"] == answer.json["request_id"]


def chunked(size: int) -> bytes:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    fields = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close")
    return head(f"POST {TEXT}", *fields) + chunk * (size // 0x10000) + b"0\r\n\r\n"


def test_a_long_body_in_chunks_gets_our_413(process: Process) -> None:
    """Its length is nowhere declared."""
    answer = send(process.port, chunked(2 * MIB))
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")


def test_a_body_in_chunks_is_read_like_any_other(process: Process) -> None:
    """What is in it is judged: here, that it is no JSON."""
    answer = send(process.port, chunked(0x10000))
    assert (answer.status, answer.json["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("declared", [5 * MIB, 1 << 40])
def test_beyond_the_servers_own_limit_nothing_is_read(process: Process, declared: int) -> None:
    """A body of any declared length is refused at its head, and the service goes on."""
    answer = send(process.port, head(f"POST {TEXT}", "Content-Type: application/json", f"Content-Length: {declared}"))
    assert answer.status == 413
    assert is_well(process)


def test_chunks_without_end_are_not_read_to_their_end(process: Process) -> None:
    """The server counts them."""
    assert send(process.port, chunked(6 * MIB)).status == 413
    assert is_well(process)


# Heads


def test_a_long_header_is_read(process: Process) -> None:
    """16 KiB of cookies are nobody's fault."""
    assert send(process.port, head("GET /health", "Cookie: " + "x" * 16_384, "Connection: close")).status == 200


@pytest.mark.parametrize(
    "request_head",
    [
        head("GET /health", "Cookie: " + "x" * 40_000),
        head("GET /health", *(f"X-{number}: {'x' * 100}" for number in range(400))),
        head("GET /" + "x" * 40_000),
        b"GET / HTTP/1.1\r\n" + b"X" * 40_000,
    ],
)
def test_an_endless_head_is_refused(process: Process, request_head: bytes) -> None:
    """431 (RFC 6585), whether it is one field, many, the path, or never ends."""
    assert send(process.port, request_head).status == 431
    assert is_well(process)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        head("GET /health", "X-Request-ID: a\x00b"),
        head("GET /health", "Broken field"),
        head(f"POST {TEXT}", "Content-Length: -1"),
        head(f"POST {TEXT}", "Content-Length: 1e3"),
        head(f"POST {TEXT}", "Content-Length: 5", "Content-Length: 6"),
        head(f"POST {TEXT}", "Transfer-Encoding: chunked, chunked") + b"zz\r\n",
        head(f"POST {TEXT}", "Transfer-Encoding: chunked") + b"zz\r\n\r\n",
        head(f"POST {TEXT}", "Transfer-Encoding: gzip"),
    ],
)
def test_what_is_not_http_is_refused_and_forgotten(process: Process, garbage: bytes) -> None:
    """TLS, binary, bad fields and lengths: an answer of 4xx or 5xx, or a closed connection, and the service goes on."""
    with contextlib.suppress(OSError, ValueError), connect(process.port) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        data = connection.recv(64)
        assert not data or int(data.split()[1]) >= 400 or b"GET" in garbage
    assert is_well(process)


def test_of_two_lengths_the_chunks_count(process: Process) -> None:
    """As RFC 9112, section 6.3 has it; a proxy in front that went by Content-Length instead could be smuggled past."""
    behind = head("GET /behind", "Connection: close")
    lengths = (f"Content-Length: {len(behind) + 5}", "Transfer-Encoding: chunked", "Content-Type: application/json")
    with connect(process.port) as connection:
        connection.sendall(head(f"POST {TEXT}", *lengths) + b"0\r\n\r\n" + behind)
        answered = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert b"invalid_json" in answered
    assert b"not_found" in answered


# Connections


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /api/v1/generate/text HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        head(f"POST {TEXT}", "Content-Type: application/json", "Content-Length: 100000") + b'{"prompt": "',
        head(f"POST {TEXT}", "Content-Type: application/json", "Transfer-Encoding: chunked") + b"10\r\n",
    ],
    ids=["idle", "half a head", "half a body", "half a chunk"],
)
def test_half_open_connections_do_not_stop_the_service(process: Process, begun: bytes) -> None:
    """200 clients that never finish (slowloris) take no thread: health and tasks answer as before."""
    with contextlib.ExitStack() as held:
        for _ in range(HALF_OPEN):
            connection = held.enter_context(connect(process.port))
            connection.sendall(begun)
        answer = get(process.port, "/health")
        assert (answer.status, answer.seconds < PATIENCE / 4) == (200, True)
        refused = send(process.port, posted(TEXT, b'{"prompt": "x"}'))
        assert (refused.status, refused.json["code"]) == (503, "not_configured")
    assert is_well(process)


def test_clients_that_do_not_read_do_not_stop_the_service(process: Process) -> None:
    """50 callers ask for pages on and on, and take nothing."""
    with contextlib.ExitStack() as held:
        for _ in range(50):
            connection = held.enter_context(connect(process.port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head("GET /api/v1/openapi.json") * 3)
        assert is_well(process)


def test_limits_of_python_app_py(make_app: Callable[..., Api], tmp_path: Path) -> None:
    """1000 connections, idle ones end after 30 s, heads of 32 KiB, bodies of four times what we take."""
    app = make_app(port="0", max_request_bytes="1000")
    server = serving._listening(app, app.settings)
    try:
        limits = server.adj
        assert (limits.connection_limit, limits.channel_timeout, limits.asyncore_use_poll) == (1000, 30, True)
        assert (limits.max_request_header_size, limits.max_request_body_size) == (32 * 1024, 4000)
        assert limits.clear_untrusted_proxy_headers
    finally:
        server.close()


def test_the_documented_flags_are_the_limits_of_python_app_py() -> None:
    """Whoever starts waitress-serve that way gets the same."""
    assert set(documented_flags()) == {
        "--connection-limit=1000",
        "--channel-timeout=30",
        "--channel-request-lookahead=1",
        "--asyncore-use-poll",
        "--max-request-header-size=32768",
        "--max-request-body-size=4194304",
        "--ident=mtllm",
    }
