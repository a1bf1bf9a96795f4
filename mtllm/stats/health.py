"""Health, readiness and cache deletion: what a load balancer asks and an operator does.

The bodies are described here and not in `schemas`, which takes 65 ms to load: no health check must wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from flask import Flask, Response
from pydantic import Field

from mtllm.parts import CheckResult, CheckStatus
from mtllm.stats.body import ResponseBody, respond
from mtllm.wiring import AnyCache


class Health(ResponseBody):
    """The process answers. Never asks Gemini."""

    status: Literal["healthy"]
    timestamp: float = Field(description="Epoch seconds.")


class Check(ResponseBody):
    """One thing that readiness looks at."""

    status: CheckStatus
    reason: str = Field(default="", description="Why it is not ok; left out where it is.")


class Readiness(ResponseBody):
    """Whether this instance should get requests."""

    status: Literal["ready", "degraded", "unavailable"] = Field(
        description="The worst of the checks: `degraded` still serves, `unavailable` comes with 503."
    )
    checks: dict[str, Check] = Field(
        description="By name: backend, ledger, logs, disk, draining, breaker, and more where more is configured."
    )


class CacheDeletion(ResponseBody):
    """What was deleted."""

    deleted: int = Field(ge=0, description="Answers that the cache held.")


def register(
    app: Flask, checks: Mapping[str, Callable[[], CheckResult]], cache: AnyCache, clock: Callable[[], float]
) -> None:
    """Add the routes to `app`."""

    def health() -> Response:
        return respond(Health(status="healthy", timestamp=clock()))

    def ready() -> Response:
        readiness = judge_readiness({name: check() for name, check in checks.items()})
        return respond(readiness, 503 if readiness.status == "unavailable" else 200)

    def clear_cache() -> Response:
        return respond(CacheDeletion(deleted=cache.clear()))

    for path in ("/health", "/api/v1/health"):
        app.add_url_rule(path, f"health:{path}", health)
    for path in ("/health/ready", "/api/v1/health/ready"):
        app.add_url_rule(path, f"ready:{path}", ready)
    app.add_url_rule("/api/v1/cache", "clear_cache", clear_cache, methods=["DELETE"])


def judge_readiness(results: Mapping[str, CheckResult]) -> Readiness:
    """Return the readiness of an instance whose checks had these results: as bad as the worst of them."""
    found = {result.status for result in results.values()}
    return Readiness(
        status="unavailable" if "fail" in found else "degraded" if "degraded" in found else "ready",
        checks={name: _as_body(result) for name, result in results.items()},
    )


def _as_body(result: CheckResult) -> Check:
    return Check(status=result.status, reason=result.reason) if result.reason else Check(status=result.status)
