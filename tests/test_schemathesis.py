"""The running service does what its OpenAPI document says, whatever schemathesis thinks up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app import Api
from mtllm.pages import openapi
from mtllm.pages.paths import DOCUMENT_PATH
from mtllm.settings import load_settings
from mtllm.tasks import TASKS

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

ADMIN_KEY = "admin-key-of-the-tests"
EXAMPLES = 12
"""Requests of each kind to each operation; all of them together take about 20 seconds."""

DOCUMENT = json.loads(openapi.render_document(load_settings({}, env_file=None), TASKS, open_to_all=True))
GOOD, BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CALLS = [
    pytest.param(path, method, kind, id=f"{kind.value} {method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    for kind in (GOOD, BAD)
    if not (kind is GOOD and path == "/api/v1/extract/json")  # what is a JSON schema, no such document can say
    if kind is GOOD or "requestBody" in operation or len(operation["parameters"]) > 1  # there is something to get wrong
]


BOUNDED = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture
def described(make_app: Callable[..., Api]) -> Any:
    """The document as the service gives it, with the service behind it. Its Gemini is the canned one."""
    app = make_app(
        real_time=True,
        rate_limits="",
        admin_api_key=ADMIN_KEY,
        api_keys="tester:key-of-the-tests",
        max_prompt_chars="300",  # so that a prompt that is too long is not also too large
    )
    found = schemathesis.openapi.from_wsgi(DOCUMENT_PATH, app)
    found.config.generation.update(with_security_parameters=False)  # every request has the key below
    return found


@pytest.mark.parametrize(("path", "method", "kind"), CALLS)
def test_the_service_agrees_with_its_document(described: Any, path: str, method: str, kind: Any) -> None:
    """Statuses, headers, media types, bodies and refusals are those that the document promises, for requests that it
    allows and for those that it does not."""

    def agrees(case: Any) -> None:
        hypothesis.assume(not _is_from_after_to(case.query or {}))
        hypothesis.assume("only-if-cached" not in str(case.headers))  # 504 is then as it should be
        case.call_and_validate(headers={"X-API-Key": ADMIN_KEY})

    cases = described[path][method].as_strategy(generation_mode=kind)
    BOUNDED(hypothesis.given(case=cases)(agrees))()


def _is_from_after_to(query: Any) -> bool:
    """OpenAPI cannot say that one parameter bounds another; /usage refuses such a period. Half a period may be one."""
    return "from" in query or "to" in query
