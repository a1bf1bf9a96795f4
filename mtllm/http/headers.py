"""The headers of every response, rendered in one place from what the request collected on its way."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from mtllm.completions.live_stream import LiveStream
from mtllm.domain.completion import CacheControl, Completion, FallbackReason, Origin
from mtllm.domain.limits import Limit, Verdict
from mtllm.domain.money import format_usd

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
    "X-Model",
    "X-Model-Fallback",
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

PENDING = (("X-Cost-Pending", "true"),)
"""What a streamed miss can say of its cost before it is over."""

_NOTHING = (
    ("X-Cost-Input", "0.000000"),
    ("X-Cost-Output", "0.000000"),
    ("X-Cost-Total", "0.000000"),
    ("X-Cost-Nanodollars", "0"),
    ("X-Tokens-Input", "0"),
    ("X-Tokens-Output", "0"),
    ("X-Cached", "false"),
)
"""The money headers of a response without a completion."""

STATIC = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))


def money(completion: Completion | None, overall: int | None) -> Headers:
    """Return costs and tokens, zeros without a completion.

    `overall` is the nano-dollars since the start, None for a caller who may not know what everybody spends.
    """
    spent = [] if overall is None else [("X-Cost-Overall", format_usd(overall))]
    if completion is None:
        return [*_NOTHING, *spent]
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
        *spent,
    ]


def cache_status_of_stream(asked: CacheControl) -> Headers:
    """Return the Cache-Status of a streamed miss that is not over, which cannot say yet whether it is stored."""
    return [("Cache-Status", _forwarded(asked))]


def cache_headers(completion: Completion, asked: CacheControl) -> Headers:
    """Return Cache-Status (RFC 9211) and, for an answer that was paid for before, its age and savings."""
    status = ("Cache-Status", _cache_status(completion, asked))
    if not completion.cached:
        return [status]
    return [status, ("Age", str(int(completion.age))), ("X-Cost-Saved", format_usd(completion.saved))]


def _forwarded(asked: CacheControl) -> str:
    """Return why Gemini was asked: the request wanted no stored answer, or there was none."""
    return f"{CACHE_NAME}; fwd={'request' if asked.no_cache or asked.no_store else 'miss'}"


def _cache_status(completion: Completion, asked: CacheControl) -> str:
    if completion.origin in (Origin.HIT, Origin.STALE):
        return f"{CACHE_NAME}; hit; ttl={int(completion.ttl) if completion.ttl >= 0 else min(-1, int(completion.ttl))}"
    if completion.origin is Origin.SHARED:
        return f"{_forwarded(asked)}; collapsed"
    return f"{_forwarded(asked)}; stored" if completion.stored else _forwarded(asked)


def models(completion: Completion) -> Headers:
    """Return who answered and, where that is not the model that was asked for, which one was and why it did not."""
    answer, route = completion.answer, completion.route
    return [] if answer is None or route is None else _models(answer.model, route.asked, completion.fallback)


def models_of_stream(live: LiveStream) -> Headers:
    """Return who answers a stream that goes on, as far as that is known."""
    route = live.route
    return [] if route is None or not live.begun else _models(live.model, route.asked, route.fallback_of(live.model))


def _models(answered: str, asked: str, reason: FallbackReason | None) -> Headers:
    said = [("X-Model", answered)]
    return said if reason is None else [*said, ("X-Model-Fallback", f"{asked}; reason={reason.value}")]


def limits(verdict: Verdict) -> Headers:
    """Return the client's rate limit: the X- names and the fields of draft-ietf-httpapi-ratelimit-headers-11."""
    return [
        ("X-RateLimit-Limit", str(verdict.limit.amount)),
        ("X-RateLimit-Remaining", str(verdict.remaining)),
        ("X-RateLimit-Reset", str(ceil(verdict.reset))),
        ("RateLimit", limit_header(verdict)),
        ("RateLimit-Policy", policy_header(verdict.policy)),
    ]


@lru_cache(maxsize=256)
def policy_header(limits: tuple[Limit, ...]) -> str:
    """Return the value of RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11): quotas and windows in seconds."""
    return ", ".join(f'"{limit.name}";q={limit.amount};w={limit.window_seconds}' for limit in limits)


def limit_header(verdict: Verdict) -> str:
    """Return the value of RateLimit (same draft): remaining calls, and seconds until there are more, rounded up."""
    return f'"{verdict.limit.name}";r={verdict.remaining};t={ceil(verdict.reset)}'


def server_timing(completion: Completion | None, elapsed: float) -> str:
    """Return where the time went, in milliseconds (W3C Server Timing); `app` is our own share."""
    if completion is None:
        return f"app;dur={elapsed * 1000:.1f}"
    queue, upstream = completion.queue_seconds, completion.receipt.upstream_seconds
    own = max(0.0, elapsed - queue - upstream)
    origin = completion.origin if completion.cached or completion.receipt.attempts else Origin.NONE  # nothing was paid
    return (
        f"cache;desc={origin.value}, queue;dur={queue * 1000:.1f}, "
        f"upstream;dur={upstream * 1000:.1f}, app;dur={own * 1000:.1f}"
    )
