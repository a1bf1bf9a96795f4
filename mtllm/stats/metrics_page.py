"""Serves the page at /metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from flask import Flask, Response, request

from mtllm.stats.sources import MetricsSources


def register(app: Flask, sources: MetricsSources) -> None:
    """Add the page to `app`."""

    @lru_cache(maxsize=1)
    def exposition() -> Callable[[str], tuple[bytes, str]]:
        from mtllm.stats.metric_families import Exposition  # loads prometheus-client, 40 ms: at the first scrape

        return Exposition(sources)

    def metrics() -> Response:
        body, content_type = exposition()(request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)

    app.add_url_rule("/metrics", "metrics", metrics)
