"""The OpenAPI document is valid, complete, and what the service really does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import Api
from mtllm.http import headers
from mtllm.pages import openapi, swagger
from mtllm.pages.paths import DOCUMENT_PATH
from mtllm.security.access import Access, access_of
from mtllm.stats import schemas
from mtllm.tasks import TASKS
from tests.support.scripted_gemini import ScriptedGemini, no_usage, status, text

jsonschema = pytest.importorskip("jsonschema")
openapi_spec_validator = pytest.importorskip("openapi_spec_validator")

PAGES = (swagger.PREFIX, "/dashboard")
ADMIN = {"X-API-Key": "the-admin"}
Json = dict[str, Any]


@pytest.fixture
def app(make_app: Callable[..., Api]) -> Api:
    """A service with every guard that a key opens."""
    return make_app(admin_api_key=ADMIN["X-API-Key"], daily_budget_usd="5")


@pytest.fixture
def document(client: FlaskClient) -> Json:
    """The document as it is served."""
    answer = client.get(DOCUMENT_PATH)
    assert answer.mimetype == "application/json"
    found: Json = json.loads(answer.data)
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and description of every operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def contents(document: Json) -> Iterator[tuple[str, Json]]:
    """Where every media type stands, and what it says."""
    for path, method, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} {media_type}", content
        for code, response in operation["responses"].items():
            for media_type, content in response["content"].items():
                yield f"{method} {path} {code} {media_type}", content


def problems(document: Json, schema: Json, value: Any, *, closed: bool = False) -> list[str]:
    """What `value` has against `schema`. `closed`: keys that are not described count too."""
    components = {
        "components": {"schemas": {name: dict(each) for name, each in document["components"]["schemas"].items()}}
    }
    if closed:
        for each in components["components"]["schemas"].values():
            if "properties" in each:
                each["additionalProperties"] = False
    validator = jsonschema.Draft202012Validator(schema | components)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def schema_of(document: Json, answer: TestResponse, method: str, path: str) -> Json:
    """What the document says of the body of `answer`."""
    response = document["paths"][path][method]["responses"][str(answer.status_code)]
    found: Json = response["content"][answer.mimetype]["schema"]
    return found


def agrees(document: Json, answer: TestResponse, path: str, method: str = "get") -> TestResponse:
    """`answer`, once every key of its body and every header of it is found described."""
    schema = schema_of(document, answer, method, path)
    if answer.mimetype == "application/json":
        assert problems(document, schema, answer.json, closed="allOf" not in schema) == []
    described = document["paths"][path][method]["responses"][str(answer.status_code)]["headers"]
    sent = {name.lower() for name, _ in answer.headers}
    ours = {name.lower() for name in schemas.HEADERS}
    assert sent & ours <= {name.lower() for name in described}
    assert {name.lower() for name, header in schemas.HEADERS.items() if header.always} <= sent
    return answer


# The document


def test_the_document_is_valid(document: Json) -> None:
    """By openapi-spec-validator, as OpenAPI 3.1."""
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


def test_the_document_is_made_once(app: Api) -> None:
    """Later requests get the same bytes."""
    assert app.test_client().get(DOCUMENT_PATH).data == app.test_client().get(DOCUMENT_PATH).data


def test_the_document_has_every_route_and_no_other(app: Api, document: Json) -> None:
    """Pages for people aside, what the service answers and what the document says are the same."""
    routes = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.rule != "/" and not rule.rule.startswith(PAGES)
        for method in rule.methods or ()
        if method not in {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes


def test_operation_ids_are_distinct(document: Json) -> None:
    """Client generators name functions after them."""
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_the_document_has_every_error_code_with_an_example(document: Json) -> None:
    """Each with its status and sentence in the table, and an example that is valid."""
    for error in openapi.ERRORS:
        example = document["components"]["examples"][error.code]["value"]
        assert problems(document, document["components"]["schemas"]["Error"], example, closed=True) == []
        assert f"| {error.status} | `{error.code}` |" in document["info"]["description"]
    assert set(document["components"]["examples"]) == {error.code for error in openapi.ERRORS}


def test_tasks_show_every_error_that_they_may_end_with(document: Json) -> None:
    """All but those of paths and methods that do not exist, and of a client who is gone."""
    for task in TASKS:
        responses = document["paths"][task.path]["post"]["responses"]
        shown = {
            code
            for response in responses.values()
            for code in response["content"]["application/json"].get("examples", {})
        }
        assert {error.code for error in openapi.ERRORS} - shown == {"not_found", "method_not_allowed", "abandoned"}


def test_every_header_is_described(document: Json) -> None:
    """The list that browsers are given has no name without a meaning."""
    assert set(headers.EXPOSED) <= set(document["components"]["headers"])
    assert {name for name, _ in headers.STATIC} <= set(document["components"]["headers"])
    for name, header in document["components"]["headers"].items():
        assert header["description"], name
        assert problems(document, header["schema"], header["example"]) == [], name


def test_examples_are_valid(document: Json) -> None:
    """Each by the schema beside it, and requests by the service too."""
    for where, content in contents(document):
        examples = [content["example"]] if "example" in content else []
        examples += [document["components"]["examples"][code]["value"] for code in content.get("examples", {})]
        assert examples, where
        for example in examples:
            if not where.endswith("text/event-stream"):  # its schema is that of one event
                assert problems(document, content["schema"], example) == [], where


def test_every_figure_is_explained(document: Json) -> None:
    """The keys of /stats have a description or a name that is one."""
    obvious = {"input", "output", "in_use", "places", "state", "status", "method", "path", "request_id", "timestamp"}
    obvious |= {"code", "draining", "consecutive_failures", "samples", "spent", "seconds"}
    for name in ("CacheFigures", "WindowFigures", "AllTimeFigures", "LimiterFigures", "EstimateFigures"):
        for key, schema in document["components"]["schemas"][name]["properties"].items():
            assert key in obvious or "description" in schema or "$ref" in schema or key == "period_hours", key


def test_limits_of_the_settings_are_in_it(make_app: Callable[..., Api]) -> None:
    """MAX_PROMPT_CHARS is the length of what goes to the model."""
    document = make_app(max_prompt_chars="77").test_client().get(DOCUMENT_PATH).json
    assert document is not None
    models = document["components"]["schemas"]
    assert models["GenerateTextRequest"]["properties"]["prompt"]["maxLength"] == 77
    assert models["ClassifyTextRequest"]["properties"]["text"]["maxLength"] == 77


@pytest.mark.parametrize("keys", ["", "alice:secret"])
def test_the_document_says_what_needs_a_key(make_app: Callable[..., Api], keys: str) -> None:
    """As the table of access does; where no keys are configured, tasks and figures may go without."""
    document = make_app(api_keys=keys).test_client().get(DOCUMENT_PATH).json
    assert document is not None
    for path, method, operation in operations(document):
        access = access_of(method.upper(), path)
        assert bool(operation["security"]) is (access is not Access.OPEN)
        assert ({} in operation["security"]) is (access is Access.KEY and not keys)


@pytest.mark.parametrize(
    ("prompt", "valid"),
    [("x", True), (" x\n", True), ("", False), (" \t\n", False), ("\x1c\x85", False), ("a\0b", False)],
)
def test_what_our_own_validators_refuse_the_schema_refuses_too(client: FlaskClient, prompt: str, valid: bool) -> None:
    """White space alone, and NUL."""
    document = client.get(DOCUMENT_PATH).json
    assert document is not None
    schema = {"$ref": "#/components/schemas/GenerateTextRequest"}
    assert (problems(document, schema, {"prompt": prompt}) == []) is valid
    assert (client.post("/api/v1/generate/text", json={"prompt": prompt}).status_code == 200) is valid


# What the service sends


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/api/v1/health",
        "/api/v1/health/ready",
        "/stats",
        "/api/v1/stats",
        "/api/v1/usage",
        "/api/v1/usage/export",
        "/metrics",
        DOCUMENT_PATH,
    ],
)
def test_answers_have_the_keys_that_are_described(client: FlaskClient, document: Json, path: str) -> None:
    """All of them, and none besides; after requests of several ends."""
    client.post("/api/v1/generate/text", json={"prompt": "x"})
    client.post("/api/v1/generate/text", json={"prompt": "x"})
    client.post("/api/v1/generate/text", json={})
    assert agrees(document, client.get(path, headers=ADMIN), path).status_code == 200


def test_deletion_answers_as_described(client: FlaskClient, document: Json) -> None:
    """With the number that was deleted."""
    assert agrees(document, client.delete("/api/v1/cache", headers=ADMIN), "/api/v1/cache", "delete").status_code == 200


@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.name))
def test_the_examples_of_the_tasks_work(client: FlaskClient, document: Json, task: Any) -> None:
    """Each is answered as described, paid for or from the cache."""
    example = document["paths"][task.path]["post"]["requestBody"]["content"]["application/json"]["example"]
    for cached in ("false", "true"):
        answer = agrees(document, client.post(task.path, json=example), task.path, "post")
        assert (answer.status_code, answer.headers["X-Cached"]) == (200, cached)


def test_estimated_and_unpriced_answers_are_described(make_app: Callable[..., Api], gemini: ScriptedGemini) -> None:
    """They have marks of their own."""
    client = make_app(gemini_model="nobody-knows").test_client()
    gemini.answers(no_usage())
    answer = client.post("/api/v1/generate/text", json={"prompt": "x"})
    document = client.get(DOCUMENT_PATH).json
    assert document is not None
    body = agrees(document, answer, "/api/v1/generate/text", "post").json
    assert body is not None
    assert body["estimated"] is True
    assert body["unpriced"] is True


def test_streams_send_the_events_that_are_described(
    client: FlaskClient, document: Json, gemini: ScriptedGemini
) -> None:
    """Deltas, then the whole answer with its cost."""
    gemini.answers(text("hello there"))
    answer = client.post("/api/v1/generate/text", json={"prompt": "x", "stream": True})
    assert schema_of(document, answer, "post", "/api/v1/generate/text")["type"] == "object"
    *deltas, end = [part for part in answer.get_data(as_text=True).split("\n\n") if part.startswith(("data", "event"))]
    for delta in deltas:
        data = json.loads(delta.removeprefix("data: "))
        assert problems(document, {"$ref": "#/components/schemas/StreamDelta"}, data, closed=True) == []
    name, _, data = end.partition("\ndata: ")
    assert name == "event: done"
    assert (
        problems(document, {"$ref": "#/components/schemas/GenerateTextStreamEnd"}, json.loads(data), closed=True) == []
    )


@pytest.mark.parametrize(
    ("script", "body", "expected"),
    [
        ((), {"json": {"prompt": ""}}, 400),
        ((), {"data": "x", "content_type": "text/plain"}, 415),
        ((status(400),), {"json": {"prompt": "x"}}, 502),
    ],
)
def test_errors_are_described(
    client: FlaskClient, document: Json, gemini: ScriptedGemini, script: Any, body: Any, expected: int
) -> None:
    """Status, code, body and headers."""
    gemini.answers(*script)
    answer = agrees(document, client.post("/api/v1/generate/text", **body), "/api/v1/generate/text", "post")
    assert answer.status_code == expected


# Swagger UI


def test_swagger_asks_no_other_server(client: FlaskClient) -> None:
    """The page names files of this server only, its policy allows no other, and no badge is fetched."""
    page = client.get("/swagger/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in page.headers["Content-Security-Policy"]
    assert "//" not in page.get_data(as_text=True).replace("<!doctype html>", "")
    assert '"validatorUrl": null' in client.get("/swagger/start.js").get_data(as_text=True)


def test_swagger_has_its_files(client: FlaskClient) -> None:
    """All that the page names are there, with the types that nosniff asks for; /swagger leads to the page."""
    page = client.get("/swagger", follow_redirects=True).get_data(as_text=True)
    named = [part.split('"')[0] for part in page.split(f'="{swagger.PREFIX}/')[1:]]
    assert len(named) == 6
    for name in named:
        with client.get(f"{swagger.PREFIX}/{name}") as answer:
            assert answer.status_code == 200, name
            assert answer.headers.getlist("Cache-Control") == ["no-store"]
            expected = {"js": "text/javascript", "css": "text/css", "png": "image/png"}[name.rpartition(".")[2]]
            assert answer.mimetype == expected


@pytest.mark.parametrize("name", ["nothing.js", "../__init__.py", "%2e%2e/__init__.py"])
def test_swagger_gives_nothing_else(client: FlaskClient, name: str) -> None:
    """What is not one of the packaged files is not there."""
    assert client.get(f"{swagger.PREFIX}/{name}").status_code == 404
