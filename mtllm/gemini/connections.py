"""Connections to Gemini, each of which works for one `BoundedCall` at a time, so that a call can be ended from outside.

Proxies and certificates are found once and not for each request. A bad status raises what it means, and no redirect is
followed: it would carry the key to another host.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection

from mtllm.domain.errors import UpstreamError
from mtllm.gemini.deadlines import BoundedCall, running
from mtllm.gemini.failures import failure_of_status

MAX_ERROR_BYTES = 65_536


class Session:
    """Sends requests to one endpoint.

    Proxies and certificates of the environment apply to it, no proxy to a loopback. At most `connections`
    are kept alive; more requests than that at once work but connect anew. Raises UpstreamError when proxy or
    certificates cannot be used.
    """

    def __init__(self, *, endpoint: str, api_key: str, connections: int) -> None:
        self._headers = {
            "x-goog-api-key": api_key,
            "Content-Type": "application/json",
            "Accept-Encoding": "gzip, deflate",
            "Accept": "*/*",
        }
        self._adapter = _Adapter(pool_connections=4, pool_maxsize=connections)
        asked = requests.Request("POST", endpoint).prepare()
        found = requests.Session().merge_environment_settings(endpoint, {}, None, None, None)
        proxies = {} if is_loopback(endpoint) else found["proxies"]
        try:
            self.pool = self._adapter.get_connection_with_tls_context(asked, found["verify"], proxies)
            self._adapter.cert_verify(self.pool, endpoint, found["verify"], None)
        except (OSError, ValueError) as problem:  # requests' own are OSErrors
            raise UpstreamError("The proxy or the certificates that the environment names cannot be used.") from problem
        is_absolute = self._adapter.request_url(asked, proxies).startswith("http")
        self._prefix = endpoint.rstrip("/") if is_absolute else urlsplit(endpoint).path.rstrip("/")

    def send(self, path: str, body: bytes, *, timeout: float, query: str = "", keep: bool = True) -> BaseHTTPResponse:
        """POST one JSON request to a path of the endpoint and return its good response, whose body is still to come.

        Without `keep` the connection ends with the response. Raises UpstreamFailure for a bad status.
        """
        target = f"{self._prefix}{path}{query and '?'}{query}"
        raw = self.pool.urlopen(
            "POST",
            target,
            body,
            self._headers if keep else {**self._headers, "Connection": "close"},
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
        )
        running.call.answered = True
        if raw.status != 200:
            raise failure_of_status(raw.status, _error_body(raw), raw.headers)
        return raw

    def close(self) -> None:
        """Let go of the connections."""
        self._adapter.close()


def _error_body(raw: BaseHTTPResponse) -> bytes:
    with raw:
        try:
            return raw.read(MAX_ERROR_BYTES, decode_content=True)
        except Exception:  # the status says enough
            return b""


class _Owned:
    """Adds to both kinds of connection that each socket works for the call of the thread that uses it."""

    owner: BoundedCall | None = None
    wire: socket.socket | None = None
    _requests = 0
    _held: list[bytes] | None = None

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
        call.mark_sent(reused=self._requests > 0)
        self._requests += 1
        held: list[bytes] = []
        self._held = held
        try:
            super().request(*args, **options)  # type: ignore[misc]
        finally:
            self._held = None
        self.send(b"".join(held))

    def send(self: Any, data: Any) -> None:
        """Send head and body of a request as one, which wakes the other side once."""
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held.append(data)


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
    """Makes connections as above, straight or through a proxy."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        if not isinstance(manager, ProxyManager):
            raise InvalidSchema("only HTTP proxies are understood")  # SOCKS has connections of its own
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


def is_loopback(endpoint: str) -> bool:
    """Return whether the URL names this machine itself."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
