"""Usage and export over HTTP: what the ledger knows, by group or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import floor
from typing import Any, get_args

from flask import Flask, Response, jsonify, request

from accounting.export import EXPORTERS, LATEST, parse_time, rfc3339
from accounting.prices import dollars
from errors import FieldError, InvalidRequest
from ledger import ExportRow, GroupBy, UsageGroup
from web.backend import Backend

DEFAULT_PERIOD = 30 * 86_400.0
"""Seconds before `to` at which a request without `from` begins."""

FORMATS: dict[str, tuple[str, Callable[[Iterable[ExportRow]], Iterator[str]]]] = {
    "csv": ("text/csv", EXPORTERS["csv"]),
    "jsonl": ("application/x-ndjson", EXPORTERS["jsonl"]),
}


def register(app: Flask, backend: Backend) -> None:
    """Add the routes to `app`."""

    def usage() -> Response:
        group_by: Any = _choice("group_by", get_args(GroupBy), "day")
        to = _moment("to", floor(backend.clock()) + 1.0)
        from_ = _moment("from", max(0.0, to - DEFAULT_PERIOD))
        backend.ledger.flush()
        groups = backend.ledger.usage(from_, to, group_by)
        return jsonify(
            {"from": rfc3339(from_), "to": rfc3339(to), "group_by": group_by, "groups": list(map(_group, groups))}
        )

    def export() -> Response:
        name = _choice("format", tuple(FORMATS), "csv")
        from_, to = _moment("from", 0.0), _moment("to", LATEST)
        media_type, written = FORMATS[name]
        backend.ledger.flush()
        response = Response(written(backend.ledger.export(from_, to)), mimetype=media_type)
        response.headers["Content-Disposition"] = f"attachment; filename=usage.{name}"
        return response

    app.add_url_rule("/api/v1/usage", "usage", usage)
    app.add_url_rule("/api/v1/usage/export", "export", export)


def _moment(name: str, default: float) -> float:
    text = request.args.get(name)
    if text is None:
        return default
    try:
        return parse_time(text)
    except ValueError as problem:
        raise InvalidRequest(details=(FieldError(name, str(problem)),)) from None


def _choice(name: str, choices: tuple[str, ...], default: str) -> str:
    choice = request.args.get(name, default)
    if choice not in choices:
        raise InvalidRequest(details=(FieldError(name, f"must be one of {', '.join(choices)}"),))
    return choice


def _group(group: UsageGroup) -> dict[str, Any]:
    return {
        "key": group.key,
        "total_requests": group.requests,
        "cached_requests": group.cached_requests,
        "input_tokens": group.input_tokens,
        "output_tokens": group.output_tokens,
        "total_cost": dollars(group.cost),
        "cost_savings_from_cache": dollars(group.saved),
    }
