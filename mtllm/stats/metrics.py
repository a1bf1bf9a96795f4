"""Adds up finished requests since the start, for /metrics and /stats.

A request costs one `observe`: a few additions to plain numbers under one lock. Everything else (prometheus-client, the
figures of the other parts, the text) belongs to the scrape; see `metric_families`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from werkzeug.routing import Map

from mtllm.domain.completion import FallbackReason, Origin
from mtllm.domain.events import RequestEvent
from mtllm.domain.money import NO_AMOUNT, Amount
from mtllm.stats.recent import is_noise

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds: a hit takes less than a millisecond, a stream may take STREAM_MAX_SECONDS."""

OTHER = "other"
"""The route of every path that no route has, and the model of all that come after the first MODELS_NAMED."""

UNKNOWN_MODEL = "unknown"
"""No model answered: the calls failed."""

MODELS_NAMED = 20


@dataclass(slots=True)
class Histogram:
    """Counts the values of each bucket (the last one has no upper bound), and adds them up."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """Return the same at this moment."""
        return Histogram(self.counts.copy(), self.total)


@dataclass(slots=True)
class RouteFigures:
    """Requests of one route whose answers came from one origin.

    Times in seconds; `own` and `upstream` of completions only. `noise`: those of `codes` that /stats leaves out.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    noise: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    duration: Histogram = field(default_factory=Histogram)
    own: Histogram = field(default_factory=Histogram)
    upstream: Histogram = field(default_factory=Histogram)

    def copy(self) -> RouteFigures:
        """Return the same at this moment."""
        return RouteFigures(
            self.statuses.copy(),
            self.codes.copy(),
            self.noise.copy(),
            self.attempts,
            self.duration.copy(),
            self.own.copy(),
            self.upstream.copy(),
        )


@dataclass(slots=True)
class PaidAndSaved:
    """What one task spent and saved with one model: tokens and costs of paid calls, nano-dollars saved."""

    paid: Amount = NO_AMOUNT
    saved: int = 0

    def copy(self) -> PaidAndSaved:
        """Return the same at this moment."""
        return PaidAndSaved(self.paid, self.saved)


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed so far, by route and origin, by task and model, and by model asked for."""

    routes: dict[tuple[str, Origin], RouteFigures]
    money: dict[tuple[str, str], PaidAndSaved]
    fallbacks: dict[tuple[str, str, FallbackReason], int]
    """Answers by model asked for, model that answered, and reason."""

    def errors(self, code: str) -> int:
        """Return how many requests ended in `code`, noise left out."""
        return sum(figures.codes[code] - figures.noise[code] for figures in self.routes.values())


class Metrics:
    """Sums over finished requests since the start. Safe to share between threads."""

    def __init__(self, url_map: Map) -> None:
        self._url_map = url_map
        self._lock = threading.Lock()
        self._figures: defaultdict[tuple[str, str], RouteFigures] = defaultdict(RouteFigures)
        self._money: defaultdict[tuple[str, str], PaidAndSaved] = defaultdict(PaidAndSaved)
        self._models: set[str] = set()
        self._fallbacks: Counter[tuple[str, str, FallbackReason]] = Counter()

    @cached_property
    def _routes(self) -> frozenset[str]:
        """Return the paths that may be labels; made at the first request, when every route is there."""
        return frozenset(rule.rule for rule in self._url_map.iter_rules() if not rule.arguments)

    def observe(self, event: RequestEvent) -> None:
        """Add one finished request."""
        origin = event.origin
        route = event.path if event.path in self._routes else OTHER
        duration = event.duration
        elsewhere = event.queue_seconds + event.upstream_seconds
        with self._lock:
            figures = self._figures[route, origin._value_]  # a member's own hash takes as long as all the rest
            figures.statuses[event.status] += 1
            figures.duration.add(duration)
            if event.code is not None:
                figures.codes[event.code] += 1
                if is_noise(event):
                    figures.noise[event.code] += 1
            if origin is not Origin.NONE:
                figures.own.add(duration - elsewhere if duration > elsewhere else 0.0)
                if event.attempts:
                    figures.attempts += event.attempts
                    figures.upstream.add(event.upstream_seconds)
                self._book(event)

    def _book(self, event: RequestEvent) -> None:
        model = event.model
        if model is None or model not in self._models:
            model = self._new_model(model)
        if event.fallback is not None:
            self._fallbacks[event.requested_model or OTHER, model, event.fallback] += 1
        sums = self._money[event.task or OTHER, model]
        if event.origin is Origin.PAID:
            sums.paid += event.amount
        else:
            sums.saved += event.saved
            if event.attempts:  # a stale answer comes with what the failed attempts cost
                sums.paid += Amount(cost=event.amount.cost)

    def _new_model(self, model: str | None) -> str:
        if model is None:
            return UNKNOWN_MODEL
        if len(self._models) >= MODELS_NAMED:
            return OTHER
        self._models.add(model)
        return model

    def snapshot(self) -> Observed:
        """Return the sums of one moment."""
        with self._lock:
            return Observed(
                {(route, Origin(came)): figures.copy() for (route, came), figures in self._figures.items()},
                {key: money.copy() for key, money in self._money.items()},
                dict(self._fallbacks),
            )
