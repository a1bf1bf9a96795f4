"""A local server that speaks Gemini's REST protocol, on a thread for each connection.

Emulator     the server: start, url, close
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Event, Lock, Thread, current_thread
from types import TracebackType
from typing import BinaryIO, Self

from mtllm.emulator.calls import GeminiCall, parse_call
from mtllm.emulator.models import PlayedModel, invalid_argument
from mtllm.emulator.offline import OfflineGemini
from mtllm.emulator.replies import JSON_TYPE, EmulatedReply, Pause, Piece, Reset, json_bytes
from mtllm.emulator.wire import (
    LARGEST_BODY_BYTES,
    BodyTooLargeError,
    HttpRequest,
    MalformedRequestError,
    http_response,
    read_request,
    refuse_http,
)

_BACKLOG = 512


class Emulator:
    """A server that answers every call by `answer`, on one thread per connection.

    Without `answer` it is the offline model's, which plays `models`.

    `port` 0 takes a free one. `start` raises OSError when the port is taken. `close` ends open connections and returns
    when the server's threads have ended. A closed emulator does not start again.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Iterable[PlayedModel] = (),
        answer: Callable[[GeminiCall], EmulatedReply] | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._answer = answer or OfflineGemini(models)
        self._listener: socket.socket | None = None
        self._acceptor: Thread | None = None
        self._open: dict[Thread, socket.socket] = {}
        self._lock = Lock()
        self.closing = Event()
        """Set when the server is to end; an `answer` that waits must not wait past it."""

    @property
    def url(self) -> str:
        """Return where it serves, such as http://127.0.0.1:9100; known once started."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> Self:
        """Listen, and serve from a thread."""
        self._listener = socket.create_server((self._host, self._port), backlog=_BACKLOG)
        self._port = self._listener.getsockname()[1]
        self._acceptor = Thread(target=self._accept, args=(self._listener,), name="gemini-emulator", daemon=True)
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Stop serving; harmless when it is not."""
        self.closing.set()
        if self._listener is None or self._acceptor is None:
            return
        with suppress(OSError):  # accept() is woken by a connection: closing its socket would not do it
            socket.create_connection((self._host, self._port), timeout=1).close()
        self._acceptor.join()
        self._listener.close()
        self._listener = None
        self._end_conversations()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # a client that left early, or no descriptor free: both pass
                self.closing.wait(0.05)
                continue
            if self.closing.is_set():
                connection.close()
                return
            self._converse_apart(connection)

    def _converse_apart(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = Thread(target=self._converse, args=(connection,), name="gemini-emulator-connection", daemon=True)
        with self._lock:
            self._open[thread] = connection
        thread.start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream, suppress(OSError):
                self._serve(connection, stream)
        finally:
            with self._lock:
                del self._open[current_thread()]

    def _serve(self, connection: socket.socket, stream: BinaryIO) -> None:
        goes_on = True
        while goes_on:
            try:
                request = read_request(stream, connection.sendall)
            except MalformedRequestError:
                connection.sendall(refuse_http())
                return
            except BodyTooLargeError:
                connection.sendall(_refuse_size())
                return
            if request is None:
                return
            goes_on = self._reply(connection, request)

    def _reply(self, connection: socket.socket, request: HttpRequest) -> bool:
        """Answer one request; say whether the connection goes on."""
        reply = self._answer(parse_call(request))
        pieces = _keep_head(reply) if request.verb == "HEAD" else reply.pieces
        for piece in pieces if request.keeps_alive else _say_close(pieces):
            if not self._send(connection, piece):
                return False
        return request.keeps_alive and not reply.closes

    def _send(self, connection: socket.socket, piece: Piece) -> bool:
        """Send one piece, or wait; say whether the connection goes on."""
        if isinstance(piece, bytes):
            connection.sendall(piece)
            return True
        if isinstance(piece, Pause):
            return not self.closing.wait(piece.seconds)
        if isinstance(piece, Reset):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _end_conversations(self) -> None:
        with self._lock:
            conversations = list(self._open.items())
        for _, connection in conversations:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in conversations:
            thread.join()


def _keep_head(reply: EmulatedReply) -> Iterator[Piece]:
    """The reply up to its body: what HEAD is answered."""
    for piece in reply.pieces:
        if isinstance(piece, bytes):
            head, end, _ = piece.partition(b"\r\n\r\n")
            yield head + end
            return
        yield piece


def _say_close(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Tell in the head of a reply that its connection ends with it (RFC 9112, section 9.6)."""
    said = False
    for piece in pieces:
        if not said and isinstance(piece, bytes):
            said = True
            if piece.startswith(b"HTTP/") and b"Connection: close" not in piece:
                piece = piece.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        yield piece


def _refuse_size() -> bytes:
    error = invalid_argument(f"Request payload size exceeds the limit: {LARGEST_BODY_BYTES} bytes.")
    return http_response(400, JSON_TYPE, json_bytes(error), Connection="close")
