"""What every request passes before it is answered: detection, then access."""

from __future__ import annotations

from mtllm.domain.errors import Forbidden
from mtllm.http.exchange import Exchange
from mtllm.security.access import Access, KeyRing, authorize, presented_key
from mtllm.security.detection import hostile, inspect
from mtllm.settings import Settings


class Guard:
    """Looks at requests and lets in who may come in."""

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self._blocks = settings.security_mode == "block"
        self._keys = keys

    def inspect(self, exchange: Exchange) -> None:
        """Note what looks hostile; raises Forbidden for a hostile path or query where SECURITY_MODE says so."""
        environ = exchange.environ
        exchange.findings = findings = inspect(
            environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""), environ.get("HTTP_USER_AGENT", "")
        )
        if findings and self._blocks and hostile(findings):
            raise Forbidden

    def authorize(self, exchange: Exchange, access: Access) -> None:
        """Learn whose request it is; raises Unauthorized or Forbidden where it may not be made."""
        environ = exchange.environ
        secret = presented_key(environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_API_KEY"))
        exchange.key = authorize(self._keys, access, secret)
