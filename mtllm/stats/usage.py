"""Usage and export over HTTP: what the ledger knows, by group or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import floor
from typing import Any, get_args

from flask import Flask, Response, jsonify, request

from mtllm.billing.export import EXPORTERS
from mtllm.domain.errors import MAX_FIELD_NAME_CHARS, MAX_REPORTED_FIELDS, FieldError, InvalidRequest
from mtllm.domain.money import dollars
from mtllm.domain.times import LATEST, parse_time, rfc3339
from mtllm.ledger.ledger import ExportRow, GroupBy, UsageGroup
from mtllm.wiring import Service

DEFAULT_PERIOD = 30 * 86_400.0
"""Seconds before `to` at which a request without `from` begins."""

FORMATS: dict[str, tuple[str, Callable[[Iterable[ExportRow]], Iterator[str]]]] = {
    "csv": ("text/csv", EXPORTERS["csv"]),
    "jsonl": ("application/x-ndjson", EXPORTERS["jsonl"]),
}


def register(app: Flask, service: Service) -> None:
    """Add the routes to `app`."""

    def usage() -> Response:
        query = Query(request.args, "group_by")
        group_by: Any = query.choice("group_by", get_args(GroupBy), "day")
        to = query.moment("to", floor(service.clock()) + 1.0)
        from_ = query.moment("from", max(0.0, to - DEFAULT_PERIOD))
        query.check()
        service.ledger.flush()
        groups = service.ledger.usage(from_, to, group_by)
        return jsonify(
            {"from": rfc3339(from_), "to": rfc3339(to), "group_by": group_by, "groups": list(map(_group, groups))}
        )

    def export() -> Response:
        query = Query(request.args, "format")
        name = query.choice("format", tuple(FORMATS), "csv")
        from_, to = query.moment("from", 0.0), query.moment("to", LATEST)
        query.check()
        media_type, written = FORMATS[name]
        service.ledger.flush()
        response = Response(written(service.ledger.export(from_, to)), mimetype=media_type)
        response.headers["Content-Disposition"] = f"attachment; filename=usage.{name}"
        return response

    app.add_url_rule("/api/v1/usage", "usage", usage)
    app.add_url_rule("/api/v1/usage/export", "export", export)


class Query:
    """The parameters of a request: `from`, `to` and `other`. Problems are collected, and told at once.

    An unknown name is one, since a misspelt `from` would bring figures of another period.
    """

    def __init__(self, arguments: Mapping[str, str], other: str) -> None:
        self._arguments = arguments
        names = ("from", "to", other)
        self._problems = [
            FieldError(name[:MAX_FIELD_NAME_CHARS], f"is not known here; there are {', '.join(names)}")
            for name in arguments
            if name not in names
        ]

    def moment(self, name: str, default: float) -> float:
        """Epoch seconds."""
        text = self._arguments.get(name)
        if text is None:
            return default
        try:
            return parse_time(text)
        except ValueError as problem:
            self._problems.append(FieldError(name, str(problem)))
            return default

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of `choices`."""
        choice = self._arguments.get(name, default)
        if choice not in choices:
            self._problems.append(FieldError(name, f"must be one of {', '.join(choices)}"))
        return choice

    def check(self) -> None:
        """Raises InvalidRequest with all that was found."""
        if self._problems:
            raise InvalidRequest(details=tuple(self._problems[:MAX_REPORTED_FIELDS]))


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
