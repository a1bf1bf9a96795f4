"""The headers of every response, rendered in one place from what the request collected on its way."""

from __future__ import annotations

import os
import re
from math import ceil
from random import Random

from mtllm.domain.completion import NO_CACHE_CONTROL, CacheControl, Completion, Origin
from mtllm.domain.limits import Verdict
from mtllm.domain.money import format_usd
from mtllm.ratelimit.limiter import limit_header, policy_header

Headers = list[tuple[str, str]]

CACHE_NAME = "mtllm"
"""How this cache calls itself in Cache-Status (RFC 9211)."""

EXPOSED = (
    "X-Request-ID",
    "X-Cost-Input",
    "X-Cost-Output",
    "X-Cost-Total",
    "X-Cost-Overall",
    "X-Cost-Nanodollars",
    "X-Cost-Saved",
    "X-Cost-Pending",
    "X-Tokens-Input",
    "X-Tokens-Output",
    "X-Cached",
    "Age",
    "Cache-Status",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Allow",
    "WWW-Authenticate",
    "Server-Timing",
)
"""Every header of ours that a browser page may read; Access-Control-Expose-Headers is made from it."""

PENDING = (("X-Cost-Pending", "true"), ("Cache-Status", f"{CACHE_NAME}; fwd=miss"))
"""What a streamed miss can say before it is over."""

STATIC = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_DELTA_SECONDS = re.compile(r"[0-9]{1,10}")


class _Randomness:
    """A generator seeded by the system, anew in each process: ids need to be unique, not secret, and asking the
    system for every one costs as much as the rest of a hit's headers."""

    def __init__(self) -> None:
        self.seed()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.seed)

    def seed(self) -> None:
        self.bits = Random(os.urandom(32)).getrandbits  # noqa: S311  # not for secrets


_random = _Randomness()
_UUID4_CLEAR = ~((0xF << 76) | (0x3 << 62))
_UUID4_SET = (0x4 << 76) | (0x2 << 62)


def request_id(offered: str | None) -> str:
    """The caller's id where it is harmless, else a new UUID4 (RFC 9562, section 5.4)."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    digits = f"{_random.bits(128) & _UUID4_CLEAR | _UUID4_SET:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def trace_id(traceparent: str | None) -> str | None:
    """The trace id of a valid `traceparent` (W3C Trace Context, section 3.2); a bad one is ignored."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    version, trace, parent, _flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or set(trace) == {"0"} or set(parent) == {"0"}:
        return None
    return trace


def cache_control(cache_control: str | None) -> CacheControl:
    """What a request's Cache-Control asks (RFC 9111, section 5.2.1); unknown or unreadable directives are ignored."""
    if not cache_control:
        return NO_CACHE_CONTROL
    directives = {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in cache_control[:1024].split(","))
    }
    max_age = directives.get("max-age", "")
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=float(max_age) if _DELTA_SECONDS.fullmatch(max_age) else None,
    )


def money(completion: Completion | None, overall: int) -> Headers:
    """Costs and tokens; zeros where there was no completion. `overall` is nano-dollars since the start."""
    if completion is None:
        return [*_NOTHING, ("X-Cost-Overall", format_usd(overall))]
    usage, cost = completion.receipt.amount.usage, completion.receipt.amount.cost
    total = cost.total
    return [
        ("X-Cost-Input", format_usd(cost.input)),
        ("X-Cost-Output", format_usd(cost.output)),
        ("X-Cost-Total", format_usd(total)),
        ("X-Cost-Nanodollars", str(total)),
        ("X-Tokens-Input", str(usage.input)),
        ("X-Tokens-Output", str(usage.output)),
        ("X-Cached", "true" if completion.cached else "false"),
        ("X-Cost-Overall", format_usd(overall)),
    ]


_NOTHING = (
    ("X-Cost-Input", "0.000000"),
    ("X-Cost-Output", "0.000000"),
    ("X-Cost-Total", "0.000000"),
    ("X-Cost-Nanodollars", "0"),
    ("X-Tokens-Input", "0"),
    ("X-Tokens-Output", "0"),
    ("X-Cached", "false"),
)


def cache_headers(completion: Completion) -> Headers:
    """Where the answer came from (RFC 9211) and, for one that was paid for before, its age and what it saved."""
    story = ("Cache-Status", _cache_status(completion))
    if not completion.cached:
        return [story]
    return [story, ("Age", str(int(completion.age))), ("X-Cost-Saved", format_usd(completion.saved))]


def _cache_status(completion: Completion) -> str:
    if completion.origin in (Origin.HIT, Origin.STALE):
        return f"{CACHE_NAME}; hit; ttl={int(completion.ttl) if completion.ttl >= 0 else min(-1, int(completion.ttl))}"
    if completion.origin is Origin.SHARED:
        return f"{CACHE_NAME}; fwd=miss; collapsed"
    return f"{CACHE_NAME}; fwd=miss; stored" if completion.stored else f"{CACHE_NAME}; fwd=miss"


def limits(verdict: Verdict) -> Headers:
    """The client's rate limit: the common X- names and the fields of draft-ietf-httpapi-ratelimit-headers-11."""
    return [
        ("X-RateLimit-Limit", str(verdict.limit.amount)),
        ("X-RateLimit-Remaining", str(verdict.remaining)),
        ("X-RateLimit-Reset", str(ceil(verdict.reset))),
        ("RateLimit", limit_header(verdict)),
        ("RateLimit-Policy", policy_header(verdict.policy)),
    ]


def server_timing(completion: Completion | None, elapsed: float) -> str:
    """Where the time went, in milliseconds (W3C Server Timing): cache, queue, upstream, and our own share as `app`."""
    if completion is None:
        return f"app;dur={elapsed * 1000:.1f}"
    queue, upstream = completion.queue_seconds, completion.receipt.upstream_seconds
    own = max(0.0, elapsed - queue - upstream)
    origin = completion.origin if completion.cached or completion.receipt.attempts else Origin.NONE  # nothing was paid
    return (
        f"cache;desc={origin.value}, queue;dur={queue * 1000:.1f}, "
        f"upstream;dur={upstream * 1000:.1f}, app;dur={own * 1000:.1f}"
    )
