"""waitress's channel and task with less work for each answer; the bytes on the wire differ in the headers' order only.

waitress names both as classes of its server and channel, so that they can be others (`BaseWSGIServer.channel_class`,
`HTTPChannel.task_class`). Ours differ so:

- Headers go out as the application names them, unsorted; line breaks in them are looked for once, in all of them
  together; the date is made once a second. waitress splits, capitalises and joins each name anew for each answer.
- An answer of one piece leaves with its head in one `send` of the working thread. waitress copies both through a
  buffer and sends them apart.
- A connection stays watched while its request is answered, so that nobody has to wake the main thread by a pipe after
  each answer. A client that leaves is noticed at once, too.

benchmarks: hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.task import WSGITask, hop_by_hop
from waitress.utilities import InternalServerError, build_http_date

# Without the types of its stubs, which lack half of what these classes have.
_Task: Any = WSGITask
_Channel: Any = HTTPChannel

LOOKAHEAD = 1
"""Requests that may wait behind the one being answered on a connection."""


class _Date:
    """The Date header's value, made once a second."""

    def __init__(self) -> None:
        self._made = (0, "")

    def at(self, now: float) -> str:
        second = int(now)
        made = self._made
        if made[0] != second:
            made = self._made = (second, build_http_date(second))
        return made[1]


_date = _Date()


class QuickTask(_Task):  # type: ignore[misc]
    """One request and its answer."""

    complete: bool = False
    wrote_header: bool = False
    _names_itself = False
    """The application has set Date or Server; waitress knows what follows from that."""

    def execute(self) -> None:
        """Call the application and send what it returns; close what it returns at the end (PEP 3333)."""
        body = self.channel.server.application(self.get_environment(), self.start_response)
        try:
            for part in body:
                if part:
                    self.write(part)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        if not self.wrote_header:
            self.write(b"")
        if self.content_length not in (None, self.content_bytes_written) and self.request.command != "HEAD":
            self.set_close_on_finish()  # the client must not wait for the rest

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take the status and the headers of the answer (PEP 3333)."""
        if exc_info is not None:
            if self.wrote_header:
                raise exc_info[1]
        elif self.complete:
            raise AssertionError("start_response was called a second time without exc_info")
        self.complete = True
        self.status = status
        self.response_headers = list(headers)
        for name, value in headers:
            lowered = _LOWERED.get(name) or _lowered(name)
            if lowered == "content-length":
                self.content_length = int(value)
            elif lowered in ("date", "server"):
                self._names_itself = True
            elif lowered in hop_by_hop:
                raise AssertionError(f"{name} is a hop-by-hop header, which an application must not set (PEP 3333)")
        return self.write

    def write(self, data: bytes) -> None:
        """Send a part of the answer, the first one together with the head."""
        if self.wrote_header or self.content_length != len(data) or not self._stays_open():
            super().write(data)
            return
        self.channel.send_now(self.build_response_header() + data)
        self.wrote_header = True
        self.content_bytes_written = len(data)

    def _stays_open(self) -> bool:
        """Return whether this is HTTP/1.1 with a body, on a connection that is not to be closed."""
        return (
            self.version == "1.1"
            and self.complete
            and self.has_body
            and not self.close_on_finish
            and "CONNECTION" not in self.request.headers
        )

    def build_response_header(self) -> bytes:
        """Return the head of the answer. Raises ValueError for a line break in a header."""
        if not self._stays_open() or self.content_length is None or self._names_itself:
            return bytes(super().build_response_header())
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.response_headers)]
        lines.append(f"Date: {_date.at(self.start_time)}")
        ident = self.channel.server.adj.ident
        if ident:
            lines.append(f"Server: {ident}")
        head = "\r\n".join(lines) + "\r\n\r\n"
        if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
            raise ValueError("carriage return or line feed in a header")
        return head.encode("latin-1")


_LOWERED: dict[str, str] = {}
_NAMES_KEPT = 256


def _lowered(name: str) -> str:
    lowered = name.lower()
    if len(_LOWERED) < _NAMES_KEPT:
        _LOWERED[name] = lowered
    return lowered


class QuickChannel(_Channel):  # type: ignore[misc]
    """One connection of a client."""

    task_class = QuickTask
    requests: list[Any]

    def readable(self) -> bool:
        """Return whether more of the client's requests may be read."""
        return not (
            self.will_close or self.close_when_flushed or self.total_outbufs_len or len(self.requests) > LOOKAHEAD
        )

    def send_now(self, data: bytes) -> None:
        """Send `data` from this thread; what the kernel does not take at once goes the ordinary way."""
        with self.outbuf_lock:
            if not self.connected:
                raise ClientDisconnected
            sent = 0 if self.total_outbufs_len else self.send(data, do_close=False)
        if sent < len(data):
            self.write_soon(data[sent:])
            self.server.pull_trigger()

    def service(self) -> None:
        """Answer one request; wake the server's main thread only where it has something to do."""
        request = self.requests[0]
        if request.error or not self.connected or len(self.requests) > LOOKAHEAD:
            super().service()
            return
        task = self.task_class(self, request)
        try:
            task.service()
        except ClientDisconnected:
            task.close_on_finish = True
        except Exception:
            self.logger.exception("Exception while serving %s", request.path)
            task.close_on_finish = True
            if not task.wrote_header:
                self._send_error(request)
        self._finish(request, close=task.close_on_finish)

    def _send_error(self, request: Any) -> None:
        failed = self.parser_class(self.adj)
        failed.error = InternalServerError("The server encountered an unexpected internal server error")
        failed.version = request.version
        with suppress(ClientDisconnected):
            self.error_task_class(self, failed).service()

    def _finish(self, request: Any, *, close: bool) -> None:
        request.close()
        with self.requests_lock:
            unwatched = len(self.requests) > LOOKAHEAD
            if close:
                self.close_when_flushed = True
                self.requests = []
            else:
                self.requests.pop(0)
                if self.requests and self.connected:
                    self.server.add_task(self)
                elif self.connected and self._waits_to_continue():
                    self.send_continue()
        if self.connected and (close or unwatched or self.total_outbufs_len):
            self.server.pull_trigger()
        self.last_activity = time.time()

    def _waits_to_continue(self) -> bool:
        """Return whether the client sent the head of its next request and waits for a 100 (RFC 9110, 10.1.1)."""
        request = self.request
        return request is not None and request.expect_continue and request.headers_finished and not self.sent_continue
