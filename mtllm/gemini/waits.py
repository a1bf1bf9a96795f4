"""How long Gemini, or a proxy before it, asks to wait: every form in which it was seen, and whether waiting helps.

Seconds and dates in Retry-After (RFC 9110, section 10.2.3), durations of protocol buffers ("45.8s") and of Go
("2h57m16.9s") in RetryInfo and ErrorInfo of Google's error JSON.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from mtllm.gemini.documents import as_object, as_objects

MAX_WAIT_SECONDS = 3600.0
"""A longer wait asked for by Gemini counts as this: callers have been locked out for hours by absurd ones."""

LEAST_WAIT_SECONDS = 0.5
"""What a wait of nothing counts as: it is no leave to send all attempts at once."""

_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_ABSURD_SECONDS = 1e12
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,18})?)(h|ms|m|s|us|µs|ns)")
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,9})?")
_HOPELESS = re.compile(r"limit: ?0\b|prepa(?:y|id)|credits? (?:are|is|have been) (?:depleted|exhausted)", re.IGNORECASE)
"""Words of a 429 that no waiting ends: a quota of nothing, a balance that is used up. Read here, shown nowhere."""


def requested_wait(
    error: Mapping[str, Any], headers: Mapping[str, str], clock: Callable[[], float] = time.time
) -> float | None:
    """Return the seconds that Gemini asks to wait, at most MAX_WAIT_SECONDS; None where it does not say."""
    details = as_objects(error.get("details"))
    asked: list[object] = [detail.get("retryDelay") for detail in details]
    asked += [as_object(detail.get("metadata")).get("quotaResetDelay") for detail in details]
    waits = [parse_duration(text) for text in asked]
    waits.append(parse_retry_after(headers.get("Retry-After"), clock))
    known = [wait for wait in waits if wait is not None]
    return min(known[0] or LEAST_WAIT_SECONDS, MAX_WAIT_SECONDS) if known else None


def parse_duration(text: object) -> float | None:
    """Return the seconds of a duration such as "45.8s", "373.8ms" or "2h57m16.9s"; None for anything else."""
    if not isinstance(text, str) or not 0 < len(text.strip()) <= 60:
        return None
    seconds, position, text = 0.0, 0, text.strip()
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            return None
        seconds += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    return seconds if seconds < _ABSURD_SECONDS else None


def parse_retry_after(text: str | None, clock: Callable[[], float] = time.time) -> float | None:
    """Return the seconds until the time that a Retry-After names, never below 0; None for one that names none."""
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not 0 < len(text) <= 60:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    try:
        return max(0.0, moment.timestamp() - clock())
    except (OverflowError, OSError, ValueError):
        return None


def is_daily(error: Mapping[str, Any]) -> bool:
    """Return whether a day's quota is used up: Google says PerDay, in one field or another."""
    return "PerDay" in json.dumps(error.get("details") or ())


def is_hopeless(error: Mapping[str, Any]) -> bool:
    """Return whether no waiting helps: a quota of 0, or an empty balance."""
    violations = (item for detail in _details(error) for item in as_objects(detail.get("violations")))
    if any(str(violation.get("quotaValue")) == "0" for violation in violations):
        return True
    return bool(_HOPELESS.search(str(error.get("message"))[:2000]))


def _details(error: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return as_objects(error.get("details"))
