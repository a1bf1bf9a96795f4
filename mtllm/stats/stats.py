"""/stats: the figures of the running service, as `schemas.Statistics` describes and renders them."""

from __future__ import annotations

from flask import Flask, Response

from mtllm.http.exchange import current_exchange
from mtllm.stats.body import respond
from mtllm.stats.sources import StatsSources


def register(app: Flask, sources: StatsSources) -> None:
    """Add the routes to `app`."""

    def stats() -> Response:
        from mtllm.stats.statistics import collect_statistics  # loads the models: at the first request

        return respond(collect_statistics(sources, current_exchange().key))

    for path in ("/stats", "/api/v1/stats"):
        app.add_url_rule(path, f"stats:{path}", stats)
