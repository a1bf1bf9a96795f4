"""Serves the usage in the ledger: sums by group, and the export row by row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo
from math import floor
from typing import Any, get_args

from flask import Flask, Response, request

from mtllm.domain.errors import MAX_FIELD_NAME_CHARS, MAX_REPORTED_FIELDS, FieldError, Forbidden, InvalidRequest
from mtllm.domain.times import LATEST, find_zone, parse_time
from mtllm.http.exchange import current_exchange
from mtllm.http.request import REQUEST_ID
from mtllm.ledger.ledger import GroupBy, Ledger, Selection
from mtllm.security.access import ApiKey
from mtllm.stats.body import respond

DEFAULT_PERIOD = 30 * 86_400.0
"""Seconds before `to` at which a request without `from` begins."""


def register(app: Flask, ledger: Ledger, clock: Callable[[], float]) -> None:
    """Add the routes to `app`."""

    def usage() -> Response:
        from mtllm.stats.usage_report import collect_usage  # loads the models: at the first request

        query = Query(request.args, "group_by", "tz", *Selection._fields)
        group_by: Any = query.choice("group_by", get_args(GroupBy), "day")
        to = query.moment("to", floor(clock()) + 1.0)
        from_ = query.moment("from", min(to, max(0.0, to - DEFAULT_PERIOD)))
        zone = query.zone("tz")
        query.check_period(from_, to)
        only = _visible(Selection(*map(request.args.get, Selection._fields)), current_exchange().key)
        ledger.flush()
        return respond(collect_usage(ledger, from_, to, group_by, only=only, zone=zone))

    def attempts(request_id: str) -> Response:
        from mtllm.stats.usage_report import collect_attempts

        if not REQUEST_ID.fullmatch(request_id):
            raise InvalidRequest(details=(FieldError("request_id", "must be one that a request can have"),))
        ledger.flush()
        return respond(collect_attempts(ledger, request_id))

    def export() -> Response:
        from mtllm.stats.formats import FORMATS  # loads the writers: at the first export

        query = Query(request.args, "format")
        name = query.choice("format", tuple(FORMATS), "csv")
        from_, to = query.moment("from", 0.0), query.moment("to", LATEST)
        query.check_period(from_, to)
        media_type, written = FORMATS[name]
        ledger.flush()
        response = Response(written(ledger.export(from_, to)), mimetype=media_type)
        response.headers["Content-Disposition"] = f"attachment; filename=usage.{name}"
        return response

    for path in ("/usage", "/api/v1/usage"):
        app.add_url_rule(path, f"usage:{path}", usage)
    app.add_url_rule("/api/v1/usage/export", "export", export)
    app.add_url_rule("/api/v1/usage/requests/<request_id>", "attempts", attempts)


def _visible(asked: Selection, key: ApiKey | None) -> Selection:
    """Return what of `asked` a caller may see: a key its own, the admin and a service without keys all.

    Raises Forbidden where a key asks for another one.
    """
    if key is None or key.admin:
        return asked
    if asked.key not in (None, key.name):
        raise Forbidden()
    return asked._replace(key=key.name)


_BARE_PLUS = re.compile(r"(T\S+) (\d\d:\d\d)$")
"""A zone's plus that was not written %2B: in a query it is a blank, which no time has behind its T."""


class Query:
    """Reads the parameters of a request, `from`, `to` and `others`, and collects what is wrong with them.

    An unknown name is a problem too, since a misspelt `from` would bring figures of another period.
    """

    def __init__(self, arguments: Mapping[str, str], *others: str) -> None:
        self._arguments = arguments
        names = ("from", "to", *others)
        self._problems = [
            FieldError(name[:MAX_FIELD_NAME_CHARS], f"is not known here; there are {', '.join(names)}", foreign=True)
            for name in arguments
            if name not in names
        ]

    def moment(self, name: str, default: float) -> float:
        """Return a time as epoch seconds."""
        text = self._arguments.get(name)
        if text is None:
            return default
        try:
            return parse_time(_BARE_PLUS.sub(r"\1+\2", text))
        except ValueError as problem:
            self._problems.append(FieldError(name, str(problem)))
            return default

    def zone(self, name: str) -> tzinfo:
        """Return the time zone of an IANA name; UTC by default."""
        zone = find_zone(self._arguments.get(name, "UTC"))
        if zone is None:
            self._problems.append(FieldError(name, "must be the name of a time zone, such as Europe/Berlin"))
        return zone or UTC

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Return one of `choices`."""
        choice = self._arguments.get(name, default)
        if choice not in choices:
            self._problems.append(FieldError(name, f"must be one of {', '.join(choices)}"))
        return choice

    def check_period(self, from_: float, to: float) -> None:
        """Raise InvalidRequest with all problems, if there are any; a period that ends before it begins is one."""
        if from_ > to and not self._problems:
            self._problems.append(FieldError("from", "must not be after to"))
        if self._problems:
            raise InvalidRequest(details=tuple(self._problems[:MAX_REPORTED_FIELDS]))
