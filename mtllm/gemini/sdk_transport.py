"""The SDK's REST transport over a session of ours. Importing it imports the SDK."""

from __future__ import annotations

from typing import Any

from google.ai.generativelanguage_v1beta.services.generative_service.transports.base import DEFAULT_CLIENT_INFO
from google.ai.generativelanguage_v1beta.services.generative_service.transports.rest import (
    GenerativeServiceRestTransport,
)
from google.auth.credentials import AnonymousCredentials


class Transport(GenerativeServiceRestTransport):
    """Sends over `session`, which has the key."""

    def __init__(self, session: Any, endpoint: str) -> None:
        super().__init__(host=endpoint, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
        self._session: Any = session
        # Again: the wrapped methods hold the session of their making.
        self._prep_wrapped_messages(DEFAULT_CLIENT_INFO)  # type: ignore[no-untyped-call]
