"""Times as people and programs write them: RFC 3339, dates, epoch seconds."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

EARLIEST, LATEST = -62_135_596_800.0, 253_402_300_799.0
"""The first second of the year 1 and the last of 9999 in epoch seconds; LATEST ends a range that has no end."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)
_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII | re.IGNORECASE
)


def parse_time(text: str) -> float:
    """Return the epoch seconds of an RFC 3339 time, of a date (its first moment) or of epoch seconds.

    Without a zone it is UTC. Raises ValueError, in words for the person who wrote it, for anything else.
    """
    seconds = _seconds(text.strip())
    if seconds is None or not EARLIEST <= seconds <= LATEST:
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31, or epoch seconds")
    return seconds


def _seconds(text: str) -> float | None:
    if _EPOCH_SECONDS.fullmatch(text):
        return float(text)
    if not _RFC_3339.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None  # the shape of a time, but no such day or hour
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


def find_zone(name: str) -> tzinfo | None:
    """Return the time zone of an IANA name (`Europe/Berlin`), None where there is none of that name."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a name that no file can have
        return None


def rfc3339(timestamp: float) -> str:
    """Return the time in UTC, with microseconds."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def rfc3339_milliseconds(timestamp: float) -> str:
    """Return the time in UTC, with milliseconds: `2026-01-31T12:00:00.250Z`. Much quicker within one second."""
    seconds, milliseconds = divmod(int(timestamp * 1000), 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
