"""Admits requests before they are answered: detection first, then access."""

from __future__ import annotations

from mtllm.domain.errors import Forbidden
from mtllm.http.exchange import Exchange
from mtllm.security.access import Access, KeyRing, authorize, presented_key
from mtllm.security.detection import hostile, inspect
from mtllm.settings import Settings


class Guard:
    """Inspects every request and admits those that may be made."""

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self._blocks = settings.security_mode == "block"
        self._keys = keys

    def admit(self, exchange: Exchange, access: Access) -> None:
        """Inspect and authorize a request before it is answered. Raises Unauthorized or Forbidden."""
        self.inspect(exchange)
        environ = exchange.environ
        secret = presented_key(environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"))
        exchange.key = authorize(self._keys, access, secret)

    def inspect(self, exchange: Exchange) -> None:
        """Note what looks hostile. Raises Forbidden for a hostile path or query where SECURITY_MODE says so."""
        environ = exchange.environ
        exchange.findings = findings = inspect(
            environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""), environ.get("HTTP_USER_AGENT", "")
        )
        if findings and self._blocks and hostile(findings):
            raise Forbidden
