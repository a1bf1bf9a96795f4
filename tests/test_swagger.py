"""Swagger UI as a person has it, in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app import Api
from tests.support.browser import Browser, serving

LOADED = "document.querySelectorAll('.opblock').length > 5"
CLASSIFY = "/api/v1/classify/text"
STATUS = ".live-responses-table .response .response-col_status"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1920])
def test_swagger_fits_its_window_and_has_no_complaint(
    browser: Browser, make_app: Callable[..., Api], width: int, dark: bool
) -> None:
    """No sideways scroll on a phone either; all from this server."""
    with serving(make_app(real_time=True)) as origin:
        browser.open(f"{origin}/swagger/", width=width, dark=dark)
        browser.wait_for(LOADED)
        page = "document.documentElement"
        assert browser.run(f"return {page}.scrollWidth - {page}.clientWidth") <= 0
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(14, 18, 22)" if dark else "rgb(250, 250, 250)"
        )
        assert browser.complaints() == []
        assert browser.hosts() == {origin.removeprefix("http://")}


def test_endpoints_stand_before_the_table_of_errors_is_read(browser: Browser, make_app: Callable[..., Api]) -> None:
    """It is folded, and opens with its rows in it."""
    with serving(make_app(real_time=True)) as origin:
        browser.open(f"{origin}/swagger/")
        browser.wait_for(LOADED)
        assert browser.run("return document.querySelector('.opblock').getBoundingClientRect().top") < 900
        closed, rows = browser.run(
            "const e = document.querySelector('.info details');return [!e.open, e.querySelectorAll('tbody tr').length]"
        )
        assert closed
        assert rows > 20


@pytest.mark.parametrize("key", [None, "one"], ids=["open", "with a key"])
def test_an_example_runs_as_it_stands(browser: Browser, make_app: Callable[..., Api], key: str | None) -> None:
    """Open the operation, press Execute: 200. Where keys are set, 401 until one is given."""
    with serving(make_app(real_time=True, **({"api_keys": f"app:{key}"} if key else {}))) as origin:
        browser.open(f"{origin}/swagger/")
        browser.wait_for(LOADED)
        browser.run(
            "[...document.querySelectorAll('.opblock-summary-control')]"
            f".find((e) => e.textContent.replaceAll('\\u200b', '').includes('{CLASSIFY}')).click()"
        )
        execute = "document.querySelector('.opblock.is-open .execute')"
        browser.wait_for(execute)
        browser.run(f"{execute}.click()")
        shown = f"document.querySelector('{STATUS}')?.textContent.startsWith('%d')"
        browser.wait_for(shown % (401 if key else 200))
        if key:
            browser.run(f"window.ui.preauthorizeApiKey('ApiKey', '{key}'); {execute}.click()")
            browser.wait_for(shown % 200)
