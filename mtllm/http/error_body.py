"""The body of every error."""

from __future__ import annotations

import json
from typing import Any

from mtllm.domain.errors import ApiError


def error_body(error: ApiError, request_id: str) -> bytes:
    """Return JSON: a sentence, a code, the request's id, and for a bad request the bad fields."""
    body: dict[str, Any] = {"error": error.message, "code": error.code, "request_id": request_id}
    if error.details:
        body["details"] = [{"field": detail.field, "message": detail.message} for detail in error.details]
    return json.dumps(body).encode()
