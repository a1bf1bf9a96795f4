"""The headers of every response, rendered in one place from what the request collected on its way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil
from uuid import uuid4

from accounting.prices import format_usd
from rate_limiter import Verdict, limit_header, policy_header
from service import CacheWishes, Completion, Origin

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
    "Server-Timing",
)
"""Every header of ours that a browser page may read; Access-Control-Expose-Headers is made from it."""

STATIC = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_DELTA_SECONDS = re.compile(r"[0-9]{1,10}")


def request_id(offered: str | None) -> str:
    """The caller's id where it is harmless, else a new UUID4."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return str(uuid4())


def trace_id(traceparent: str | None) -> str | None:
    """The trace id of a valid `traceparent` (W3C Trace Context, section 3.2); a bad one is ignored."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    version, trace, parent, _flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or set(trace) == {"0"} or set(parent) == {"0"}:
        return None
    return trace


def cache_wishes(cache_control: str | None) -> CacheWishes:
    """What a request's Cache-Control asks (RFC 9111, section 5.2.1); unknown or unreadable directives are ignored."""
    if not cache_control:
        return NO_WISHES
    directives = {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in cache_control[:1024].split(","))
    }
    max_age = directives.get("max-age", "")
    return CacheWishes(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age=float(max_age) if _DELTA_SECONDS.fullmatch(max_age) else None,
    )


NO_WISHES = CacheWishes()


def money(completion: Completion | None, overall: int, *, pending: bool = False) -> Iterator[tuple[str, str]]:
    """Costs and tokens; zeros where there was no completion. `overall` is nano-dollars since the start."""
    if completion is None:
        yield from _NOTHING
    else:
        receipt = completion.receipt
        yield "X-Cost-Input", format_usd(receipt.input_cost)
        yield "X-Cost-Output", format_usd(receipt.output_cost)
        yield "X-Cost-Total", format_usd(receipt.total_cost)
        yield "X-Cost-Nanodollars", str(receipt.total_cost)
        yield "X-Tokens-Input", str(receipt.input_tokens)
        yield "X-Tokens-Output", str(receipt.output_tokens)
        yield "X-Cached", "true" if completion.cached else "false"
    yield "X-Cost-Overall", format_usd(overall)
    if pending:
        yield "X-Cost-Pending", "true"


_NOTHING = (
    ("X-Cost-Input", "0.000000"),
    ("X-Cost-Output", "0.000000"),
    ("X-Cost-Total", "0.000000"),
    ("X-Cost-Nanodollars", "0"),
    ("X-Tokens-Input", "0"),
    ("X-Tokens-Output", "0"),
    ("X-Cached", "false"),
)


def cache_story(completion: Completion) -> Iterator[tuple[str, str]]:
    """Where the answer came from (RFC 9211) and, for one that was paid for before, its age and what it saved."""
    if completion.cached:
        yield "Age", str(int(completion.age))
        yield "X-Cost-Saved", format_usd(completion.saved)
    yield "Cache-Status", _cache_status(completion)


def _cache_status(completion: Completion) -> str:
    if completion.origin in (Origin.HIT, Origin.STALE):
        return f"{CACHE_NAME}; hit; ttl={int(completion.ttl) if completion.ttl >= 0 else min(-1, int(completion.ttl))}"
    if completion.origin is Origin.SHARED:
        return f"{CACHE_NAME}; fwd=miss; collapsed"
    return f"{CACHE_NAME}; fwd=miss; stored" if completion.kept else f"{CACHE_NAME}; fwd=miss"


def limits(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """The client's rate limit: the common X- names and the fields of draft-ietf-httpapi-ratelimit-headers-11."""
    yield "X-RateLimit-Limit", str(verdict.limit.amount)
    yield "X-RateLimit-Remaining", str(verdict.remaining)
    yield "X-RateLimit-Reset", str(ceil(verdict.reset))
    yield "RateLimit", limit_header(verdict)
    yield "RateLimit-Policy", policy_header(verdict.policy)


def server_timing(completion: Completion | None, elapsed: float) -> str:
    """Where the time went, in milliseconds (W3C Server Timing): cache, queue, upstream, and our own share as `app`."""
    if completion is None:
        return f"app;dur={elapsed * 1000:.1f}"
    queue, upstream = completion.queue_seconds, completion.receipt.upstream_seconds
    own = max(0.0, elapsed - queue - upstream)
    return (
        f"cache;desc={completion.origin.value}, queue;dur={queue * 1000:.1f}, "
        f"upstream;dur={upstream * 1000:.1f}, app;dur={own * 1000:.1f}"
    )
