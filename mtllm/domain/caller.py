"""On whose account a request runs, and what that account may spend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtllm.domain.periods import Period

SERVICE_SCOPE = "service"


KEY_SCOPE_PREFIX = "key:"


def key_scope(key: str) -> str:
    """Return the budget scope of the API key named `key`."""
    return f"{KEY_SCOPE_PREFIX}{key}"


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` nano-dollars a day or a month in `scope` ("service", or `key_scope(name)`)."""

    scope: str
    limit: int
    period: Period = "day"

    @property
    def kind(self) -> Literal["service", "key"]:
        """Return whose budget it is, as callers are told: the service's or their key's."""
        return "service" if self.scope == SERVICE_SCOPE else "key"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose account a request runs. `client` is the name in ledger and logs; `key` the API key's name, if any."""

    request_id: str
    client: str
    key: str | None = None
    budgets: tuple[Budget, ...] = ()
    models: tuple[str, ...] | None = None
    """The only models that the API key may use; None: those of the service."""
    tag: str = ""
    """The caller's own word for what the request belongs to (X-Tag)."""
