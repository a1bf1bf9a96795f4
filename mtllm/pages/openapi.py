"""The OpenAPI 3.1 document, made from what the service runs on.

Requests come from the models that validate, errors from the error tree, access from the table that decides it, headers
from the list that browsers are given, examples from the code that renders. Only what cannot be derived is written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from http import HTTPStatus
from typing import Any, get_args
from zoneinfo import available_timezones

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema

import mtllm
from mtllm import tasks as task_rules
from mtllm.billing.export import COLUMNS
from mtllm.billing.prices import Price
from mtllm.chat.shape import UnknownModel, render_error
from mtllm.domain import errors
from mtllm.domain.completion import Answer, render_body
from mtllm.domain.errors import ApiError, FieldError
from mtllm.domain.money import Amount, Charge, TokenUsage
from mtllm.http.batch import PATH, BatchRequest
from mtllm.http.error_body import error_body
from mtllm.ledger.ledger import GroupBy
from mtllm.pages import samples
from mtllm.pages.openai_bodies import ChatCompletion, ModelList, OpenAIError
from mtllm.pages.paths import DOCUMENT_PATH
from mtllm.security.access import Access, access_of
from mtllm.settings import Settings
from mtllm.stats import schemas
from mtllm.stats.body import ResponseBody
from mtllm.stats.formats import FORMATS
from mtllm.stats.health import CacheDeletion, Health, Readiness
from mtllm.tasks import Shape, Task

ERRORS: tuple[type[ApiError], ...] = tuple(
    found for found in vars(errors).values() if isinstance(found, type) and "code" in vars(found)
)
"""Every error that has a code, in the order of the tree."""

Json = dict[str, Any]

_EVERYWHERE = (errors.Forbidden, errors.InternalError)
_OF_NO_ENDPOINT = (errors.NotFound, errors.MethodNotAllowed, errors.Abandoned)
_OF_TASKS = tuple(error for error in ERRORS if error not in _OF_NO_ENDPOINT)
_OF_FIGURES = (errors.LedgerUnavailable,)
_OF_QUERIES = (errors.InvalidRequest, errors.LedgerUnavailable)
_WAITS = (errors.BudgetExceeded, errors.RateLimited, errors.UpstreamUnavailable)
"""Errors whose Retry-After is told where they are raised."""


def render_document(settings: Settings, tasks: Sequence[Task], *, open_to_all: bool) -> bytes:
    """Return the whole document as JSON. `open_to_all`: no API keys are configured, so what needs one is open."""
    return json.dumps(_document(settings, tasks, open_to_all), ensure_ascii=False).encode()


def _document(settings: Settings, tasks: Sequence[Task], open_to_all: bool) -> Json:
    endpoints = [*map(_endpoint_of, tasks), *_OTHER_ENDPOINTS]
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Multi-Task LLM API",
            "version": mtllm.__version__,
            "summary": mtllm.SUMMARY,
            "description": _description(),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": name, "description": says} for name, says in _TAGS.items()],
        "paths": _paths(endpoints, open_to_all),
        "components": {
            "schemas": _schemas(tasks, settings),
            "headers": {name: _header(header) for name, header in schemas.HEADERS.items()},
            "parameters": _PARAMETERS,
            "examples": {error.code: _error_example(error) for error in ERRORS},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


_TAGS = {
    "Tasks": "What the service is for. Each call may cost money; headers tell how much.",
    "Figures": "What was spent, saved and done.",
    "Operation": "For those who run the service.",
}

_SECURITY_SCHEMES = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or the admin key."},
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in another header."},
}


def _description() -> str:
    rows = "\n".join(f"| {error.status} | `{error.code}` | {_markdown(error.sentence)} |" for error in ERRORS)
    return (
        "Text generation, code generation and text classification by Google Gemini, with a cache, rate limits, and the "
        "exact cost of every request in its headers.\n\n"
        f"<details><summary>Errors: one shape, {len(ERRORS)} codes</summary>\n\n"
        f"| Status | Code | Meaning |\n|---|---|---|\n{rows}\n\n</details>\n\n"
        "A path that does not exist gets 404, a method that a path does not take 405 with `Allow`. Nobody receives "
        "499: it is what log and ledger call a request whose client went away."
    )


# Operations -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Endpoint:
    """One method of one path.

    `bodies`: what successes hold by status; `errors`: what it may answer besides those that every endpoint may.
    """

    method: str = "GET"
    path: str
    id: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[str, ...] = ()
    request: Json | None = None
    bodies: Mapping[int, Json]
    headers: tuple[str, ...] = ()
    errors: tuple[type[ApiError], ...] = ()
    headers_of_all: tuple[str, ...] = ()
    """On errors too."""
    also_at: str | None = field(default=None)
    """A second path with the same answer."""
    shape: Shape = "own"
    """In whose shape errors are."""

    def operation(self, open_to_all: bool, path: str) -> Json:
        """Return the operation object of this method at `path`."""
        access = access_of(self.method, path)
        written: Json = {
            "operationId": self.id if path == self.path else f"{self.id}_short",
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description if path == self.path else f"The same as {self.path}.",
            "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in (*self.parameters, "RequestId")],
            "responses": dict(sorted(self._responses(access))),
            "security": _security(access, open_to_all),
        }
        return written if self.request is None else written | {"requestBody": self.request}

    def _responses(self, access: Access) -> Iterator[tuple[str, Json]]:
        for status, content in self.bodies.items():
            yield str(status), _response(HTTPStatus(status).phrase, content, (*self.headers, *self.headers_of_all))
        keyed = () if access is Access.OPEN else (errors.Unauthorized,)
        by_status: dict[int, list[type[ApiError]]] = {}
        for error in dict.fromkeys((*_EVERYWHERE, *keyed, *self.errors)):
            by_status.setdefault(error.status, []).append(error)
        for status, group in by_status.items():
            yield str(status), _error_response(group, self.headers_of_all, self.shape)


def _paths(endpoints: Iterable[_Endpoint], open_to_all: bool) -> Json:
    paths: Json = {}
    for endpoint in endpoints:
        for path in filter(None, (endpoint.path, endpoint.also_at)):
            paths.setdefault(path, {})[endpoint.method.lower()] = endpoint.operation(open_to_all, path)
    return paths


def _security(access: Access, open_to_all: bool) -> list[Json]:
    if access is Access.OPEN:
        return []
    anyone: list[Json] = [{}] if open_to_all and access is Access.KEY else []
    return [*anyone, *({name: []} for name in _SECURITY_SCHEMES)]


def _response(description: str, content: Json, headers: Iterable[str]) -> Json:
    always = (name for name, header in schemas.HEADERS.items() if header.always or name == "X-Cost-Overall")
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in (*always, *headers)},
        "content": content,
    }


def _error_response(group: list[type[ApiError]], headers: tuple[str, ...], shape: Shape) -> Json:
    own = dict.fromkeys(name for error in group for name in _example_of(error).headers())
    if errors.Unauthorized in group:
        own["WWW-Authenticate"] = None
    codes = [error.code for error in group]
    schema = {"allOf": [_ref("Error"), {"properties": {"code": {"enum": codes}}}]}
    content: Json = {"schema": schema, "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes}}
    if shape == "openai":
        content = {"schema": _ref("OpenAIError"), "example": json.loads(render_error(_example_of(group[0])))}
    description = " Or: ".join(_markdown(error.sentence) for error in group)
    return _response(description, {"application/json": content}, (*headers, *own))


def _markdown(sentence: str) -> str:
    """Return a sentence as Markdown, in which `<key>` would be a tag."""
    return sentence.replace("<", "&lt;")


def _example_of(error: type[ApiError]) -> ApiError:
    if error is errors.InvalidRequest:
        return error(details=(FieldError("max_output_tokens", "Input should be greater than or equal to 1"),))
    if error is errors.MethodNotAllowed:
        return errors.MethodNotAllowed(("GET", "HEAD", "OPTIONS"))
    return error(retry_after=12.0) if error in _WAITS else error()


def _error_example(error: type[ApiError]) -> Json:
    return {"summary": error.sentence, "value": json.loads(error_body(_example_of(error), samples.REQUEST_ID))}


def _header(header: schemas.Header) -> Json:
    return {
        "description": header.meaning,
        "required": header.always,
        "schema": header.schema,
        "example": header.example,
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_body(example: ResponseBody) -> Json:
    """Return the content of a body like `example`, which is the model that renders it."""
    return {"application/json": {"schema": _ref(type(example).__name__), "example": json.loads(example.render())}}


# Tasks ----------------------------------------------------------------------------------------------------------------


def _endpoint_of(task: Task) -> _Endpoint:
    return _chat_endpoint(task) if task.shape == "openai" else _task_endpoint(task)


def _chat_endpoint(task: Task) -> _Endpoint:
    chunks = {"type": "string", "description": "chat.completion.chunk objects as data, then `[DONE]`."}
    return _Endpoint(
        method="POST",
        path=task.path,
        id="chat_completions",
        tag="Tasks",
        summary=task.summary,
        description="For clients that speak OpenAI's API. What is not served is refused by name.",
        parameters=("CacheControl", "Tag", "Traceparent"),
        request={
            "required": True,
            "content": {
                "application/json": {"schema": _ref(task.request_model.__name__), "example": samples.CHAT_REQUEST}
            },
        },
        bodies={
            200: {
                "application/json": {
                    "schema": {"anyOf": [_ref(ChatCompletion.__name__), _ref(schemas.DryRunAnswer.__name__)]},
                    "example": samples.CHAT_ANSWER,
                },
                "text/event-stream": {"schema": chunks, "example": samples.CHAT_EVENTS},
            }
        },
        headers=(*schemas.ANSWER_HEADERS, "X-Cost-Pending"),
        errors=(*_OF_TASKS, UnknownModel),
        headers_of_all=schemas.TASK_HEADERS,
        shape="openai",
    )


def _task_endpoint(task: Task) -> _Endpoint:
    asked, answered = _examples_of(task)
    either = {"anyOf": [_ref(schemas.task_answer(task).__name__), _ref(schemas.DryRunAnswer.__name__)]}
    answer = {"application/json": {"schema": either, "example": answered}}
    return _Endpoint(
        method="POST",
        path=task.path,
        id=task.path.removeprefix("/api/v1/").replace("/", "_"),
        tag="Tasks",
        summary=task.summary,
        description="With `stream` the answer comes as server-sent events." if task.streams else "",
        parameters=("CacheControl", "Tag", "Traceparent"),
        request={
            "required": True,
            "content": {"application/json": {"schema": _ref(task.request_model.__name__), "example": asked}},
        },
        bodies={200: answer | _stream_body(task, answered) if task.streams else answer},
        headers=(*schemas.ANSWER_HEADERS, *(("X-Cost-Pending",) if task.streams else ())),
        errors=_OF_TASKS,
        headers_of_all=schemas.TASK_HEADERS,
    )


_PRICE = Price("", date.min, 100_000_000, 10_000_000, 400_000_000)


def _examples_of(task: Task) -> tuple[Json, Json]:
    """Return a request, by the examples of its fields, and its answer as it would be rendered."""
    asked = {name: about.examples[0] for name, about in task.request_model.model_fields.items() if about.examples}
    instruction = task.instruct(task.request_model.model_validate(asked))
    text = instruction.labels[0] if instruction.labels else samples.ANSWERS.get(task.name, samples.ANSWERS["text"])
    usage = TokenUsage(input=12, output=18)
    answer = Answer(text, "gemini-2.5-flash-lite", usage)
    said = json.loads(text) if task.answers_json else text
    return asked, json.loads(render_body(task.answer_field, said, answer, Charge(Amount(usage), _PRICE)))


def _stream_body(task: Task, answered: Json) -> Json:
    delta, end = {"delta": answered[task.answer_field]}, {**answered, "cost": samples.COST}
    data = [_ref(model.__name__) for model in (schemas.StreamDelta, schemas.stream_end(task), schemas.Error)]
    schema = {
        "description": "Each event. Those with a delta have no name; comments come while Gemini is silent; the last "
        "one is `done`, or `error` where the answer broke off.",
        "type": "object",
        "properties": {
            "event": {"enum": ["message", "done", "error"], "default": "message"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"oneOf": data}},
        },
        "required": ["data"],
    }
    example = f"data: {json.dumps(delta)}\n\nevent: done\ndata: {json.dumps(end)}\n\n"
    return {"text/event-stream": {"schema": schema, "example": example}}


# The other operations -------------------------------------------------------------------------------------------------


def _text_body(media_type: str, description: str, example: str) -> Json:
    return {media_type: {"schema": {"type": "string", "description": description}, "example": example}}


def _export_bodies() -> Json:
    columns = "\n".join(f"- `{column.name}`: {column.meaning}" for column in COLUMNS)
    described = f"One attempt or hit a line:\n{columns}"
    bodies = (
        _text_body(media_type, described, "".join(write([samples.EXPORTED]))) for media_type, write in FORMATS.values()
    )
    return {media_type: body for each in bodies for media_type, body in each.items()}


_OTHER_ENDPOINTS = (
    _Endpoint(
        method="POST",
        path=PATH,
        id="batch",
        tag="Tasks",
        summary="Many requests at once, answered line by line",
        description="Each item is counted, bought and booked as if it had come alone; its errors do not end the batch.",
        parameters=("CacheControl", "Tag", "Traceparent"),
        request={
            "required": True,
            "content": {"application/json": {"schema": _ref(BatchRequest.__name__), "example": samples.BATCH}},
        },
        bodies={200: _text_body("application/x-ndjson", "A line an item, then a summary.", samples.BATCH_LINES)},
        errors=(*_OF_QUERIES, errors.InvalidJson, errors.PayloadTooLarge, errors.UnsupportedMediaType, errors.Draining),
    ),
    _Endpoint(
        path="/v1/models",
        id="models",
        tag="Tasks",
        summary="The models that a request may name, in OpenAI's shape",
        bodies={
            200: {"application/json": {"schema": _ref(ModelList.__name__), "example": samples.MODELS}},
        },
        shape="openai",
    ),
    _Endpoint(
        path="/api/v1/health",
        also_at="/health",
        id="health",
        tag="Operation",
        summary="Is the process alive",
        description="Never asks Gemini, needs no key.",
        bodies={200: _json_body(samples.HEALTH)},
    ),
    _Endpoint(
        path="/api/v1/health/ready",
        also_at="/health/ready",
        id="ready",
        tag="Operation",
        summary="Should it get requests",
        description="Named checks; 503 when one of them fails. An open circuit breaker is only `degraded`: stored "
        "answers are still served.",
        bodies={
            200: _json_body(samples.READY),
            503: _json_body(samples.NOT_READY),
        },
    ),
    _Endpoint(
        path="/api/v1/stats",
        also_at="/stats",
        id="stats",
        tag="Figures",
        summary="Cache, usage, limits and all-time sums",
        bodies={200: _json_body(samples.STATISTICS)},
        errors=_OF_FIGURES,
    ),
    _Endpoint(
        path="/api/v1/me",
        id="me",
        tag="Figures",
        summary="The caller's own limits, budgets and usage",
        bodies={200: _json_body(samples.OWN_VIEW)},
        errors=_OF_FIGURES,
    ),
    _Endpoint(
        path="/api/v1/usage",
        also_at="/usage",
        id="usage",
        tag="Figures",
        summary="Usage by month, day, hour, minute, task, client, key, model, requested model or tag",
        description="A key sees its own usage, the admin all. `group_by=client` and `key` are the admin's.",
        parameters=("From", "To", "GroupBy", "Tz", "OfKey", "OfModel", "OfTask", "OfTag"),
        bodies={200: _json_body(samples.USAGE)},
        errors=_OF_QUERIES,
    ),
    _Endpoint(
        path="/api/v1/usage/export",
        id="export_usage",
        tag="Figures",
        summary="Every attempt and hit, row by row",
        description="Needs the admin key.",
        parameters=("From", "To", "Format"),
        bodies={200: _export_bodies()},
        headers=("Content-Disposition",),
        errors=_OF_QUERIES,
    ),
    _Endpoint(
        path="/api/v1/usage/requests/{request_id}",
        id="attempts_of_request",
        tag="Figures",
        summary="Every attempt of one request",
        description="Needs the admin key. Callers may repeat an id of theirs; then all their requests are shown.",
        parameters=("OfRequest",),
        bodies={200: _json_body(samples.ATTEMPTS)},
        errors=_OF_QUERIES,
    ),
    _Endpoint(
        method="DELETE",
        path="/api/v1/cache",
        id="clear_cache",
        tag="Operation",
        summary="Forget all stored answers",
        description="Needs the admin key.",
        bodies={200: _json_body(samples.CACHE_DELETION)},
    ),
    _Endpoint(
        path="/metrics",
        id="metrics",
        tag="Operation",
        summary="Figures for Prometheus",
        description="Prometheus text, or OpenMetrics where `Accept` asks for it.",
        bodies={
            200: _text_body("text/plain", "Prometheus text.", samples.METRICS)
            | _text_body("application/openmetrics-text", "OpenMetrics.", f"{samples.METRICS}# EOF\n")
        },
    ),
    _Endpoint(
        path=DOCUMENT_PATH,
        id="openapi",
        tag="Operation",
        summary="This document",
        bodies={200: {"application/json": {"schema": {"type": "object"}, "example": {"openapi": "3.1.1"}}}},
    ),
)


# Parameters -----------------------------------------------------------------------------------------------------------


def _parameter(place: str, name: str, description: str, schema: Json, example: str) -> Json:
    """Return a parameter; the example is its schema's, since Swagger UI would fill in the parameter's own, unasked."""
    return {"name": name, "in": place, "description": description, "schema": schema | {"examples": [example]}}


_STRING: Json = {"type": "string"}
_MOMENT: Json = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"format": "date"}, {"pattern": r"^[0-9]{1,11}(\.[0-9]{1,9})?$"}],
}
_MOMENTS = "RFC 3339, a date (its first moment, UTC), or epoch seconds."

_PARAMETERS: Json = {
    "RequestId": _parameter(
        "header",
        "X-Request-ID",
        "An id of your own for this request; one that is not harmless is replaced.",
        _STRING,
        samples.REQUEST_ID,
    ),
    "CacheControl": _parameter(
        "header",
        "Cache-Control",
        "`no-cache` asks Gemini and stores, `no-store` leaves no trace, `max-age=N` takes an answer at most N seconds "
        "old, `only-if-cached` never asks Gemini (504 `not_cached`). Anything else is ignored.",
        _STRING,
        "max-age=600",
    ),
    "Tag": _parameter(
        "header",
        "X-Tag",
        "A word of the caller's for what the request belongs to; in the ledger, the export and `group_by=tag`.",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{0,64}$"},
        "newsletter",
    ),
    "OfRequest": _parameter(
        "path",
        "request_id",
        "The request's X-Request-ID.",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        samples.REQUEST_ID,
    )
    | {"required": True},
    "Tz": _parameter(
        "query",
        "tz",
        "Where days and months begin: the IANA name of a time zone.",
        {"type": "string", "enum": sorted(available_timezones()), "default": "UTC"},
        "Europe/Berlin",
    ),
    "OfKey": _parameter("query", "key", "Only what this API key used; a key may name itself.", _STRING, "alice"),
    "OfModel": _parameter("query", "model", "Only what this model answered.", _STRING, "gemini-2.5-flash-lite"),
    "OfTask": _parameter("query", "task", "Only this task.", _STRING, "text"),
    "OfTag": _parameter("query", "tag", "Only requests with this X-Tag.", _STRING, "news"),
    "Traceparent": _parameter(
        "header",
        "traceparent",
        "W3C Trace Context; the trace id is in every log line of the request. A bad one is ignored.",
        _STRING,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
    "From": _parameter("query", "from", f"First moment that counts: {_MOMENTS}", _MOMENT, "2026-11-01"),
    "To": _parameter("query", "to", f"First moment that counts no more: {_MOMENTS}", _MOMENT, "2026-12-01T00:00:00Z"),
    "GroupBy": _parameter(
        "query",
        "group_by",
        "What is summed up.",
        {"enum": list(get_args(GroupBy)), "type": "string", "default": "day"},
        "task",
    ),
    "Format": _parameter("query", "format", "CSV or JSON lines.", {"enum": list(FORMATS), "default": "csv"}, "jsonl"),
}


# Schemas --------------------------------------------------------------------------------------------------------------

NOT_BLANK = r"^[^\x00]*[^\x00\s\x1c-\x1f\x85][^\x00]*$"
"""Some character that is no white space, and no NUL."""

_SAYS: dict[Any, Json] = {
    task_rules.require_words: {"pattern": NOT_BLANK},
    task_rules.require_distinct: {"uniqueItems": True},
}
"""What our own validators check, as far as JSON Schema can say it."""


class _Schemas(GenerateJsonSchema):
    """Pydantic's schemas with our validators' rules in them, and without titles that repeat the fields' names."""

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        says: Json = _SAYS.get(schema["function"]["function"], {})
        return super().function_after_schema(schema) | says

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # pydantic's signature
        return False


def _schemas(tasks: Sequence[Task], settings: Settings) -> Json:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _models(tasks)]
    _, definitions = models_json_schema(models, ref_template=_ref("{model}")["$ref"], schema_generator=_Schemas)
    described: Json = definitions["$defs"]
    for task in tasks:
        properties = described[task.request_model.__name__]["properties"]
        if task.shape == "own":
            properties[task.prompt_field]["maxLength"] = settings.max_prompt_chars
        [named, _no_model] = properties["model"]["anyOf"]
        named["enum"] = list(settings.models_allowed)
    described["Error"]["properties"]["code"]["enum"] = [error.code for error in ERRORS]
    return described


def _models(tasks: Sequence[Task]) -> Iterator[type[BaseModel]]:
    for task in tasks:
        yield task.request_model
        if task.shape == "openai":
            yield from (ChatCompletion, OpenAIError)
            continue
        yield schemas.task_answer(task)
        if task.streams:
            yield schemas.stream_end(task)
    yield from (schemas.StreamDelta, schemas.Error, Health, Readiness)
    yield BatchRequest
    yield from (ModelList, OpenAIError, schemas.DryRunAnswer)
    yield from (schemas.Statistics, schemas.OwnView, schemas.UsageReport, schemas.AttemptsOfRequest, CacheDeletion)
