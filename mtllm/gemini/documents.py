"""JSON from outside, of which nothing is known: each look at it is total."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_COUNT = 2**31 - 1


def as_object(value: object) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_objects(value: object) -> Sequence[Mapping[str, Any]]:
    """Return the objects in `value` if it is a JSON array, else none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()


def as_count(value: object) -> int:
    """Return `value` if it is a count of something, else 0. Raises ValueError past what the API's int32 holds."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return 0
    if value > MAX_COUNT:
        raise ValueError("a count is out of range")
    return value


def error_in(body: bytes) -> Mapping[str, Any]:
    """Return the `error` of Google's error JSON, which comes in an array on streams; empty where there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(document, list):
        document = next(iter(document), None)
    return as_object(as_object(document).get("error"))
