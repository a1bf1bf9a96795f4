"""The connections between the SDK and Gemini, each of which works for one `BoundedCall` at a time.

So a call can be ended from outside. The session the SDK would make is one of requests, which looks for proxies,
certificates, cookies, hooks and the pool anew for each request and takes as long for it as the SDK for all the rest;
here they are found once. A bad status raises what it means before the SDK sees it, and no redirect is followed: it
would carry the key to another host.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
from google.ai.generativelanguage_v1beta.services.generative_service.transports.base import DEFAULT_CLIENT_INFO
from google.ai.generativelanguage_v1beta.services.generative_service.transports.rest import (
    GenerativeServiceRestTransport,
)
from google.auth.credentials import AnonymousCredentials
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection

from mtllm.domain.errors import UpstreamError
from mtllm.gemini.bodies import read_body, read_elements, read_pieces
from mtllm.gemini.deadlines import BoundedCall, running
from mtllm.gemini.failures import failure_of_status

MAX_ERROR_BYTES = 65_536


class Transport(GenerativeServiceRestTransport):
    """The SDK's REST transport over a `Session`, which has the key."""

    def __init__(self, session: Session, endpoint: str) -> None:
        super().__init__(host=endpoint, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
        self._session: Any = session
        # Again: the wrapped methods hold the session of their making.
        self._prep_wrapped_messages(DEFAULT_CLIENT_INFO)  # type: ignore[no-untyped-call]


class Session:
    """Sends requests to one endpoint.

    Proxies and certificates of the environment apply to it, no proxy to a loopback. At most `connections`
    are kept alive; more requests than that at once work but connect anew. Raises UpstreamError when proxy or
    certificates cannot be used.
    """

    def __init__(self, *, endpoint: str, api_key: str, connections: int) -> None:
        self._headers = {"x-goog-api-key": api_key, "Accept-Encoding": "gzip, deflate", "Accept": "*/*"}
        self._origin = "{0.scheme}://{0.netloc}".format(urlsplit(endpoint))
        self._adapter = _Adapter(pool_connections=4, pool_maxsize=connections)
        asked = requests.Request("POST", endpoint).prepare()
        found = requests.Session().merge_environment_settings(endpoint, {}, None, None, None)
        proxies = {} if is_loopback(endpoint) else found["proxies"]
        try:
            self.pool = self._adapter.get_connection_with_tls_context(asked, found["verify"], proxies)
            self._adapter.cert_verify(self.pool, endpoint, found["verify"], None)
        except (OSError, ValueError) as problem:  # requests' own are OSErrors
            raise UpstreamError("The proxy or the certificates that the environment names cannot be used.") from problem
        self._absolute = self._adapter.request_url(asked, proxies).startswith("http")

    def post(
        self,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, str],
        params: Sequence[tuple[str, str]],
        data: str,
        stream: bool = False,  # noqa: ARG002  # the SDK says it; here every body is read as it comes
    ) -> Response:
        """Send one request, with the arguments of `requests`. Raises UpstreamFailure for a bad status."""
        raw = self.pool.urlopen(
            "POST",
            f"{url if self._absolute else url.removeprefix(self._origin)}?{urlencode(params)}",
            data.encode(),
            {**headers, **self._headers},
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
        )
        running.call.answered = True
        if raw.status != 200:
            raise failure_of_status(raw.status, _error_body(raw), raw.headers)
        return Response(raw)

    def close(self) -> None:
        """Let go of the connections."""
        self._adapter.close()


class Response:
    """An answer with a good status, with the attributes of a `requests.Response` that the SDK uses."""

    status_code = 200

    def __init__(self, raw: BaseHTTPResponse) -> None:
        self._raw = raw

    @property
    def headers(self) -> Mapping[str, str]:
        return self._raw.headers

    @property
    def content(self) -> bytes:
        """Read the body of a plain answer, which works once."""
        return read_body(read_pieces(self._raw))

    def iter_content(self, *, decode_unicode: bool) -> Iterator[str]:  # noqa: ARG002  # the SDK wants text, always
        """Yield the body of a stream, one element of its array at a time; requests would do it byte by byte."""
        return read_elements(read_pieces(self._raw))

    def close(self) -> None:
        self._raw.close()


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
        call.reused = self._requests > 0
        call.sent = True
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
