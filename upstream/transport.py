"""A requests session whose connections work for one `Call` at a time, so that the call can be ended from outside."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection

from upstream.calls import Call, running


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
            left = running.call.remaining
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
        running.call.claim(self, self.sock)

    def request(self: Any, *args: Any, **options: Any) -> None:
        call = running.call
        if call.cut_by or call.remaining <= 0:
            raise ConnectTimeoutError(self, "the call was over before it was sent")
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
        running.call.claim(self, self._handshake)
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
        running.call.answered = True
        judge(response)

    session.hooks["response"].append(on_response)


def is_loopback(endpoint: str) -> bool:
    """Does the URL name this machine itself?"""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
