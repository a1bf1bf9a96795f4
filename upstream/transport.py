"""The HTTP under the SDK: connections whose calls end on time, whatever the other side does.

requests' time-out is per read, so a peer that drips bytes outlives it. Here every call has a `Call`, and one thread
shuts the socket down when the call is due; whoever reads it is woken by that. `Call` also knows how far the call got,
which decides what a failure means. Nothing here knows Gemini's SDK or its messages.
"""

from __future__ import annotations

import enum
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from math import inf
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection


class Cut(enum.Enum):
    """Why a call was ended from outside."""

    DEADLINE = "deadline"
    CANCEL = "cancel"


_owners = threading.Lock()  # guards who owns a connection, so that a late cut never hits the connection's next call
_running = threading.local()


class Call:
    """One call while it runs: when it is `due` (monotonic seconds), how far it got, and the means to end it."""

    def __init__(self, due: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.due = due
        self._monotonic = monotonic
        self.cut_by: Cut | None = None
        self.sent = False
        """The request began to leave, so it may be processed."""
        self.reused = False
        """It left on a kept-alive connection, which the other side may have closed meanwhile."""
        self.answered = False
        """Status and headers came."""
        self._connection: Any = None

    def remaining(self) -> float:
        """Seconds until the call is due; negative when it is overdue."""
        return self.due - self._monotonic()

    def cut(self, reason: Cut) -> None:
        """End the call from any thread: its reader sees the connection end. The first reason stays."""
        with _owners:
            self.cut_by = self.cut_by or reason
            self._shut_down()

    def claim(self, connection: Any, wire: socket.socket) -> None:
        """From now on `wire`, the socket of `connection`, works for this call."""
        with _owners:
            connection.owner, connection.wire = self, wire
            self._connection = connection
            if self.cut_by:
                self._shut_down()

    def _shut_down(self) -> None:
        connection = self._connection
        if connection is not None and connection.owner is self:
            with suppress(OSError):  # it is closed already
                # Not SSLSocket.shutdown: that takes the TLS state away under the thread that reads. Not close():
                # that wakes nobody.
                socket.socket.shutdown(connection.wire, socket.SHUT_RDWR)

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        """Connections that this thread uses inside the block work for this call."""
        _running.call = self
        try:
            yield
        finally:
            _running.call = None


class Watchdog:
    """One thread that cuts calls when they are due. It starts with the first call and ends with `close`."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._calls: set[Call] = set()
        self._wakes_at = inf
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, call: Call, due: float) -> None:
        """Cut `call` when it is `due`; called again, it moves that time."""
        with self._changed:
            call.due = due
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # not alive: this process was forked
                self._thread = threading.Thread(target=self._run, name="gemini-deadlines", daemon=True)
                self._thread.start()
            elif due < self._wakes_at:
                self._changed.notify()

    def forget(self, call: Call) -> None:
        """The call ended by itself."""
        with self._changed:
            self._calls.discard(call)

    def close(self) -> None:
        """End the thread; calls that still run keep only the time-out of each read."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while due := self._next_due():
            for call in due:
                call.cut(Cut.DEADLINE)

    def _next_due(self) -> list[Call]:
        with self._changed:
            while not self._closed:
                now = self._monotonic()
                due = [call for call in self._calls if call.due <= now]
                if due:
                    self._calls.difference_update(due)
                    return due
                self._wakes_at = min((call.due for call in self._calls), default=inf)
                self._changed.wait(None if self._wakes_at == inf else self._wakes_at - now)
        return []


class _Owned:
    """What both kinds of connection add: each socket works for the call of the thread that uses it."""

    owner: Call | None = None
    wire: socket.socket | None = None
    _requests = 0

    def _new_conn(self: Any) -> socket.socket:
        """Connect; all addresses of the host together have until the call is due (urllib3: each of them)."""
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NewConnectionError(self, "the name of the host was not resolved") from error
        problem: OSError | None = None
        for *_, address in found:
            left = _running.call.remaining()
            if left <= 0:
                raise ConnectTimeoutError(self, "no time was left to connect") from problem
            try:
                return create_connection((str(address[0]), self.port), left, socket_options=self.socket_options)
            except OSError as error:
                problem = error
        raise NewConnectionError(self, "no address of the host accepted the connection") from problem

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]  # urllib3's, behind this in the classes below
        self._requests = 0
        _running.call.claim(self, self.sock)

    def request(self: Any, *args: Any, **options: Any) -> None:
        call = _running.call
        if self.sock is None:
            self.connect()
        call.claim(self, self.sock)
        call.reused = self._requests > 0
        call.sent = True
        self._requests += 1
        super().request(*args, **options)  # type: ignore[misc]


class _Connection(_Owned, HTTPConnection):
    pass


class _TlsConnection(_Owned, HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        wire = super()._new_conn()
        # The handshake follows; until it ends, the socket that it works on cannot be reached but through a duplicate.
        self._handshake = wire.dup()
        _running.call.claim(self, self._handshake)
        return wire

    def connect(self) -> None:
        try:
            super().connect()
        finally:
            if handshake := getattr(self, "_handshake", None):
                handshake.close()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Connections as above, straight or through a proxy."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


def prepare(
    session: requests.Session,
    *,
    endpoint: str,
    connections: int,
    judge: Callable[[Any], None],
) -> None:
    """Make `session` send through connections as above, at most `connections` kept.

    `judge` gets each response before its body is read and raises what a bad status means, so no redirect is followed
    (it would carry the key to another host) and no status makes the session repeat a request by itself. Proxies and
    certificates that the environment names are looked up here once; for a loopback endpoint they are ignored.
    """
    adapter = _Adapter(pool_connections=4, pool_maxsize=connections, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    if not is_loopback(endpoint):
        found = session.merge_environment_settings(endpoint, {}, None, None, None)
        session.proxies, session.verify = found["proxies"], found["verify"]
    session.trust_env = False

    def on_response(response: Any, *_args: Any, **_options: Any) -> None:
        _running.call.answered = True
        judge(response)

    session.hooks["response"].append(on_response)


def is_loopback(endpoint: str) -> bool:
    """Does the URL name this machine itself?"""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
