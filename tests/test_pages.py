"""Small doors: the page at `/`, paths with and without their slash, times and keys that could be read in two ways."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from app import Api
from mtllm.security.access import presented_key

MakeApp = Callable[..., Api]


def test_the_first_page_says_what_this_is_to_everybody(make_app: MakeApp) -> None:
    """Also where keys are configured; it holds nothing of the service's own."""
    page = make_app(api_keys="alice:secret").test_client().get("/")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "Multi-Task LLM API" in page.get_data(as_text=True)


def test_every_link_of_the_first_page_leads_somewhere(client: FlaskClient) -> None:
    """Relative ones, so that they hold below a proxy's path."""
    links = re.findall(r'href="([^"]+)"', client.get("/").get_data(as_text=True))
    assert len(links) == 5
    assert {link: client.get(f"/{link}").status_code for link in links} == dict.fromkeys(links, 200)


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/", "/swagger", "/swagger/"])
def test_a_page_is_reached_with_and_without_its_slash(client: FlaskClient, path: str) -> None:
    """People type both."""
    assert client.get(path, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/usage", "/api/v1/usage/export"])
def test_a_period_that_ends_before_it_begins_is_400(make_app: MakeApp, path: str) -> None:
    """Nothing at all would look like no cost at all."""
    client = make_app(admin_api_key="very-secret").test_client()
    asked = {"from": "2026-02-01", "to": "2026-01-01"}
    answer = client.get(path, query_string=asked, headers={"X-API-Key": "very-secret"})
    assert (answer.status_code, "must not be after to" in answer.get_data(as_text=True)) == (400, True)


def test_a_zone_with_a_bare_plus_is_read(client: FlaskClient) -> None:
    """In a query a plus is a blank; no time has a blank there, so the plus is meant."""
    bare = client.get("/api/v1/usage?from=2026-01-01T00:00:00+01:00&to=2026-02-01")
    coded = client.get("/api/v1/usage?from=2026-01-01T00:00:00%2B01:00&to=2026-02-01")
    assert (bare.status_code, bare.json) == (200, coded.json)


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "key"),
    [
        ("Bearer one", "one", "one"),
        ("Bearer one", "two", None),
        ("Bearer one", None, "one"),
        ("Basic eDp0d28=", "one", "one"),
    ],
)
def test_two_keys_that_differ_are_none(authorization: str, x_api_key: str | None, key: str | None) -> None:
    """Which of the two is to pay cannot be told: 401 where a key is needed."""
    assert presented_key(authorization, x_api_key) == key
