"""The headers of a request: its id, its trace, its Cache-Control."""

from __future__ import annotations

import os
import re
from random import Random

from mtllm.domain.completion import NO_CACHE_CONTROL, CacheControl
from mtllm.domain.errors import FieldError, InvalidRequest

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DELTA_SECONDS = re.compile(r"[0-9]{1,10}")


class _Randomness:
    """A generator that the system seeds in each process.

    Ids need to be unique, not secret, and asking the system for each costs as much as all headers of a hit.
    """

    def __init__(self) -> None:
        self.seed()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.seed)

    def seed(self) -> None:
        self.bits = Random(os.urandom(32)).getrandbits  # noqa: S311  # not for secrets


_random = _Randomness()
_UUID4_CLEAR = ~((0xF << 76) | (0x3 << 62))
_UUID4_SET = (0x4 << 76) | (0x2 << 62)


def choose_request_id(offered: str | None) -> str:
    """Return the caller's id where it is harmless, else a new UUID4 (RFC 9562, section 5.4)."""
    if offered is not None and REQUEST_ID.fullmatch(offered):
        return offered
    digits = f"{_random.bits(128) & _UUID4_CLEAR | _UUID4_SET:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def read_trace_id(traceparent: str | None) -> str | None:
    """Return the trace id of a valid `traceparent` (W3C Trace Context, section 3.2); a bad one is ignored."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    version, trace, parent, _flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or set(trace) == {"0"} or set(parent) == {"0"}:
        return None
    return trace


def read_tag(text: str) -> str:
    """Return the caller's X-Tag. Raises InvalidRequest for one that could not be a column of a bill."""
    tag = text.strip()
    if not _TAG.fullmatch(tag):
        raise InvalidRequest(details=(FieldError("X-Tag", "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"),))
    return tag


def read_cache_control(text: str | None) -> CacheControl:
    """Return what Cache-Control asks (RFC 9111, section 5.2.1); unknown or unreadable directives are ignored."""
    if not text:
        return NO_CACHE_CONTROL
    directives = {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in text[:1024].split(","))
    }
    max_age = directives.get("max-age", "")
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=float(max_age) if _DELTA_SECONDS.fullmatch(max_age) else None,
    )
