"""Health, readiness, statistics and cache deletion: the side doors that answer from what the process knows."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request

from mtllm.domain.money import dollars
from mtllm.http.exchange import ENVIRON_KEY
from mtllm.http.lifecycle import Lifecycle
from mtllm.ledger.ledger import WindowUsage
from mtllm.stats import stats as figures
from mtllm.stats.metrics import Metrics
from mtllm.stats.recent import Recent
from mtllm.wiring import Service

WINDOWS = {"last_hour": 1, "last_24_hours": 24, "last_30_days": 720}
LEAST_FREE_BYTES = 32 * 1024 * 1024
"""Less than this on the ledger's or the logs' disk, and they may soon fail to be written."""


def register(app: Flask, service: Service, lifecycle: Lifecycle, metrics: Metrics, recent: Recent) -> None:
    """Add the routes to `app`."""

    def health() -> Response:
        return jsonify(status="healthy", timestamp=service.clock())

    def ready() -> tuple[Response, int]:
        checks = readiness(service, lifecycle)
        failing = any(check["status"] == "fail" for check in checks.values())
        degraded = any(check["status"] == "degraded" for check in checks.values())
        status = "unavailable" if failing else "degraded" if degraded else "ready"
        return jsonify(status=status, checks=checks), 503 if failing else 200

    def stats() -> Response:
        caller = request.environ[ENVIRON_KEY].key
        return jsonify({**statistics(service, recent), **figures.live(service, lifecycle, metrics, recent, caller)})

    def clear_cache() -> Response:
        return jsonify(deleted=service.cache.clear())

    for path in ("/health", "/api/v1/health"):
        app.add_url_rule(path, f"health:{path}", health)
    app.add_url_rule("/api/v1/health/ready", "ready", ready)
    for path in ("/stats", "/api/v1/stats"):
        app.add_url_rule(path, f"stats:{path}", stats)
    app.add_url_rule("/api/v1/cache", "clear_cache", clear_cache, methods=["DELETE"])


def readiness(service: Service, lifecycle: Lifecycle) -> dict[str, dict[str, Any]]:
    """The named checks: each `ok`, `degraded` (still of use) or `fail`, with its reason where there is one."""
    ledger, logs, breaker = service.ledger.health(), service.logger.health(), service.breaker.snapshot()
    redis = service.redis.health() if service.redis is not None else None
    checks = {
        "backend": _check(service.model is not None, "no Gemini key: set GOOGLE_API_KEY or start with --offline"),
        "ledger": _check(ledger.writable, f"cannot be written: {ledger.error}"),
        "logs": _check(logs.writable, f"cannot be written: {logs.last_error}"),
        "disk": _disk(service.settings.data_dir, service.settings.log_dir),
        "draining": _check(not lifecycle.draining, "shutting down"),
        "breaker": _check(breaker.state == "closed", f"{breaker.state}: Gemini is failing", otherwise="degraded"),
    }
    if redis is not None:
        alone = "does not answer in time: cache, limits and total are this process's own"
        checks["redis"] = _check(redis.up, alone, otherwise="degraded")
    return checks


def _disk(*folders: Path) -> dict[str, Any]:
    try:
        free = min(shutil.disk_usage(_existing(folder)).free for folder in folders)
    except OSError as problem:
        return _check(False, f"cannot be looked at: {problem.strerror}")
    return _check(free >= LEAST_FREE_BYTES, f"only {free} bytes are free")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it while it has not been made."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _check(holds: bool, reason: str, otherwise: str = "fail") -> dict[str, Any]:
    return {"status": "ok"} if holds else {"status": otherwise, "reason": reason}


def statistics(service: Service, recent: Recent) -> dict[str, Any]:
    """The documented keys of /stats; `web.figures` tells what stands beside them."""
    service.ledger.flush()
    now = service.clock()
    totals, cache = service.ledger.totals(), service.cache.get_stats()
    shared = {} if service.redis is None else {"redis_stats": asdict(service.redis.health())}
    return {
        **shared,
        "cache_stats": {**cache, "cache_hit_ratio": cache["hit_ratio"]},
        "usage_stats": {name: _window(service.ledger.window(hours, now)) for name, hours in WINDOWS.items()},
        "rate_limit_stats": {
            "cache_size": service.rate_limit_cache.size(),
            "max_size": service.settings.rate_limit_cache_size,
            **figures.limiter(service, recent),
        },
        "overall_stats": {
            "total_requests_all_time": totals.requests,
            "cached_requests_all_time": totals.cached_requests,
            "total_cost_all_time": dollars(totals.cost),
            "total_tokens_all_time": {"input": totals.input_tokens, "output": totals.output_tokens},
            "cache_savings_all_time": dollars(totals.saved),
            "unpriced_requests_all_time": totals.unpriced_requests,
            "total_cost_since_start": dollars(service.spend.total()),
        },
    }


def _window(usage: WindowUsage) -> dict[str, Any]:
    return {
        "period_hours": usage.hours,
        "total_requests": usage.requests,
        "cached_requests": usage.cached_requests,
        "total_cost": dollars(usage.cost),
        "cost_savings_from_cache": dollars(usage.saved),
        "total_tokens": {"input": usage.input_tokens, "output": usage.output_tokens},
    }
