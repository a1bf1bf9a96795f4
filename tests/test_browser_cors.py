"""CORS where it counts: pages of two origins in a real Chromium, one allowed, one not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from app import Api
from mtllm.emulator.models import parse_model
from mtllm.http.headers import EXPOSED
from tests.support.browser import Browser, serving
from tests.support.scripted_gemini import ScriptedGemini

ASK = """
const [address, method, headers, body] = arguments;
const response = await fetch(address, { method, headers, body: body && JSON.stringify(body) });
await response.text();
return { status: response.status, headers: Object.fromEntries(response.headers) };
"""


def blank_page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A page of somebody else's."""
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", "15")])
    return [b"<!doctype html>"]


@dataclass(frozen=True)
class Origins:
    """Where the API is, and two pages that may and may not call it."""

    api: str
    allowed: str
    forbidden: str


@pytest.fixture
def origins(make_app: Callable[..., Api], gemini: ScriptedGemini) -> Iterator[Origins]:
    """Three servers, each with a port and hence an origin of its own, and a Gemini that lets another model answer."""
    gemini.plays(parse_model("gemini-2.5-flash-lite=swapped:gemini-3.1-flash-lite"))
    with ExitStack() as servers:
        allowed, forbidden = (servers.enter_context(serving(blank_page, threads=1)) for _ in range(2))
        app = make_app(real_time=True, cors_origins=allowed, api_keys="page:key", rate_limits="6/minute")
        yield Origins(servers.enter_context(serving(app)), allowed, forbidden)


def ask(browser: Browser, api: str, body: Any = None, *, path: str = "generate/text", **headers: str) -> dict[str, Any]:
    """What a page may read of one answer, header names in lower case."""
    sent = {"Content-Type": "application/json", "X-API-Key": "key"} if body is not None else {}
    answer: dict[str, Any] = browser.run(
        ASK, f"{api}/api/v1/{path}", "GET" if body is None else "POST", sent | headers, body
    )
    return answer


def test_an_allowed_page_reads_every_exposed_header(browser: Browser, origins: Origins) -> None:
    """Of a miss, a hit, a stream, a refusal for the rate, a wrong method and a missing key: together all there are."""
    browser.open(origins.allowed)
    api = origins.api
    miss = ask(browser, api, {"prompt": "hello"})
    hit = ask(browser, api, {"prompt": "hello"})
    stream = ask(browser, api, {"prompt": "another", "stream": True})
    while (limited := ask(browser, api, {"prompt": "hello"}))["status"] == 200:
        pass
    wrong_method = ask(browser, api, None, **{"X-API-Key": "key"})
    no_key = ask(browser, api, None, path="usage")
    assert [answer["status"] for answer in (miss, hit, stream, limited, wrong_method, no_key)] == [
        200,
        200,
        200,
        429,
        405,
        401,
    ]
    assert miss["headers"]["x-cached"] == "false"
    assert float(miss["headers"]["x-cost-total"]) > 0
    assert {"age", "x-cost-saved"} <= hit["headers"].keys()
    assert stream["headers"]["x-cost-pending"] == "true"
    read = set().union(*(answer["headers"] for answer in (miss, hit, stream, limited, wrong_method, no_key)))
    assert read >= {name.lower() for name in EXPOSED}


def test_an_allowed_page_may_send_the_headers_that_the_api_knows(browser: Browser, origins: Origins) -> None:
    """The preflight lets them through: a key, an id, a cache wish, a trace."""
    browser.open(origins.allowed)
    answer = ask(
        browser,
        origins.api,
        {"prompt": "hello"},
        **{
            "Authorization": "Bearer key",
            "X-Request-ID": "from-a-page",
            "Cache-Control": "no-store",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        },
    )
    assert (answer["status"], answer["headers"]["x-request-id"]) == (200, "from-a-page")


@pytest.mark.parametrize("body", [None, {"prompt": "hello"}], ids=["simple", "preflighted"])
def test_a_forbidden_page_learns_nothing(browser: Browser, origins: Origins, body: Any) -> None:
    """Not even the status: the browser keeps the answer from it, or does not send the request at all."""
    browser.open(origins.forbidden)
    with pytest.raises(AssertionError, match="Failed to fetch"):
        ask(browser, origins.api, body, path="health" if body is None else "generate/text")
    assert any("blocked by CORS policy" in complaint for complaint in browser.complaints())
