"""The dashboard: its files over HTTP, and the page as a person has it, in a real Chromium."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient

from app import Api
from mtllm.pages.dashboard import FILES, FOLDER, PATH, SIGN_IN
from tests.support.browser import Browser, serving
from tests.support.ledgers import until
from tests.support.scripted_gemini import ScriptedGemini, status

WIDTHS = (360, 768, 1280)
HIT_LIMIT = "9/minute"
READY = "document.body.dataset.state === 'ready'"


# The files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        (PATH, "text/html; charset=utf-8"),
        (f"{PATH}/dashboard.css", "text/css; charset=utf-8"),
        (f"{PATH}/dashboard.js", "text/javascript; charset=utf-8"),
        (f"{PATH}/icon.svg", "image/svg+xml; charset=utf-8"),
    ],
)
def test_files_come_with_their_type_and_policy(client: FlaskClient, path: str, media_type: str) -> None:
    """No script or style but ours, no frame around the page, nothing kept on disk."""
    response = client.get(path)
    assert (response.status_code, response.headers["Content-Type"]) == (200, media_type)
    assert "default-src 'none'; script-src 'self'" in response.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers.getlist("Cache-Control") == ["no-store"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_every_file_of_the_folder_is_served_and_no_other(client: FlaskClient) -> None:
    """What is not on the list is not there, however it is spelled."""
    assert {file.name for file in FOLDER.iterdir()} == FILES
    assert {client.get(f"{PATH}/{name}").status_code for name in FILES} == {200}
    for name in ("nothing.js", "..%2Fdashboard.py", "%2e%2e/dashboard.py", "dashboard.html%00"):
        assert client.get(f"{PATH}/{name}").status_code == 404


def test_files_name_no_other_server() -> None:
    """The one address in them is the name of SVG's elements."""
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9]", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)), name


@pytest.fixture
def guarded(make_app: Callable[..., Api]) -> Api:
    """A service with a key and an admin key."""
    return make_app(real_time=True, api_keys="app:one", admin_api_key="two")


def test_pages_ask_for_the_key_by_basic_and_the_api_by_bearer(guarded: Api) -> None:
    """A browser opens its dialog for the page, never for a request that a page makes."""
    client = guarded.test_client()
    for path, scheme in (
        (PATH, "Basic"),
        (f"{PATH}/dashboard.js", "Basic"),
        ("/stats", "Bearer"),
        ("/metrics", "Bearer"),
    ):
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith(f'{scheme} realm="')
    assert client.get(PATH, auth=("anyone", "one")).status_code == 200
    assert client.get(PATH, auth=("anyone", "wrong")).status_code == 401


def test_the_admin_may_sign_in_where_another_key_is_known(guarded: Api) -> None:
    """The browser is asked again until it is the admin key."""
    client = guarded.test_client()
    assert client.get(SIGN_IN, auth=("", "one")).headers["WWW-Authenticate"].startswith("Basic")
    signed_in = client.get(SIGN_IN, auth=("", "two"))
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, PATH)


def test_nobody_is_asked_for_an_admin_key_that_there_is_not(client: FlaskClient) -> None:
    """Asking would never end."""
    assert client.get(SIGN_IN).status_code == 403


# The page -------------------------------------------------------------------------------------------------------------


class Valve:
    """An application that can be told to hold or to fail what is asked of the API, and counts what comes."""

    def __init__(self, app: Api) -> None:
        self._app = app
        self.open = threading.Event()
        self.open.set()
        self.failing = False
        self.asked = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"].startswith("/api/"):
            self.asked += 1
            assert self.open.wait(timeout=10)
            if self.failing:
                start_response("500 Oops", [("Content-Type", "text/plain"), ("Content-Length", "0")])
                return [b""]
        return self._app(environ, start_response)


class Site:
    """A served application, and the ways a person comes to its dashboard."""

    def __init__(self, app: Api, origin: str, valve: Valve) -> None:
        self.app = app
        self.origin = origin
        self.valve = valve
        self.client = app.test_client()

    def dashboard(self, key: str | None = None) -> str:
        """The page's address, with the key as a person's browser would send it."""
        return self.origin.replace("://", f"://anyone:{key}@" if key else "://") + PATH

    def ask(self, prompt: str, task: str = "text", **headers: str) -> int:
        """One request; its status."""
        return self.client.post(f"/api/v1/generate/{task}", json={"prompt": prompt}, headers=headers).status_code

    def get(self, path: str, **headers: str) -> Any:
        """The JSON at `path`."""
        return self.client.get(path, headers=headers).json


@pytest.fixture
def site(make_app: Callable[..., Api]) -> Iterator[Callable[..., Site]]:
    """Serves applications with settings by name."""
    with ExitStack() as open_sites:

        def serve(**settings: str) -> Site:
            app = make_app(real_time=True, **settings)
            valve = Valve(app)
            return Site(app, open_sites.enter_context(serving(valve)), valve)

        yield serve


@pytest.fixture
def busy(site: Callable[..., Site], gemini: ScriptedGemini) -> Site:
    """A service with a key, an admin, a budget, and a little of everything behind it."""
    busy = site(
        api_keys="app:one", admin_api_key="two", daily_budget_usd="0.01", rate_limits=HIT_LIMIT, gemini_max_attempts="1"
    )
    key = {"X-API-Key": "one"}
    for prompt in ("one", "two", "two", "three " * 50):
        assert busy.ask(prompt, **key) == 200
    assert busy.ask("<script>alert(1)</script>", task="code", **key) == 200
    gemini.answers(status(503))
    assert busy.ask("fails", **key) == 503
    assert busy.ask("", **key) == 400
    assert [busy.ask("two", **key) for _ in range(3)] == [200, 200, 429]
    until(lambda: busy.get("/stats", **key)["token_estimate"]["samples"] == 4)  # counted beside the requests
    return busy


def figures_shown(browser: Browser) -> dict[str, list[tuple[float, str]]]:
    """Every figure on the page by its name: exact value and text of each place that shows it."""
    shown: dict[str, list[tuple[float, str]]] = {}
    for name, value, text in browser.run(
        "return [...document.querySelectorAll('data[data-figure]')]"
        ".map((e) => [e.dataset.figure, e.value, e.textContent])"
    ):
        if name != "breaker.state":
            shown.setdefault(name, []).append((float(value), text))
    return shown


def as_number(text: str) -> float:
    """What a person reads off a formatted figure."""
    number = float(re.sub(r"[^0-9.-]", "", text))
    for suffix, factor in (("%", 0.01), (" s", 1000), ("K", 1e3), ("M", 1e6), (" KiB", 1024), (" MiB", 1024**2)):
        if text.endswith(suffix):
            number *= factor
    return number


def found(body: Any, name: str) -> float:
    """The figure of `body` at a dotted path."""
    for part in name.split("."):
        body = body[part]
    return float(body)


PERIODS = ("hour", "day", "month", "dates")


@pytest.mark.parametrize("period", PERIODS)
def test_the_page_shows_the_figures_of_stats_and_usage(browser: Browser, busy: Site, period: str) -> None:
    """Each one exactly, and as text to three digits; those of the period as /usage has them."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    choose(browser, period)
    shown = figures_shown(browser)
    exact = figures_known(busy)
    for name, places in shown.items():
        for value, text in places:
            assert value == pytest.approx(exact[name], rel=1e-12), name
            meant = exact[name] - 1 if name.startswith("token_estimate") and name.endswith("_ratio") else exact[name]
            assert as_number(text) == pytest.approx(meant, rel=0.006, abs=1e-3 if "ratio" in name else 0), name
    assert {
        "period.total_cost",
        "period.hit_ratio",
        "answered.gemini-2.5-flash-lite",
        "asked.gemini-2.5-flash-lite",
        "latency.miss.p95_ms",
        "clients.app.total_cost",
        "budget.spent",
        "admission.places",
        "token_estimate.samples",
        "overall_stats.total_cost_all_time",
    } <= shown.keys()


class Known(dict[str, float]):
    """Figures by the name that the page gives them; those of /stats are looked up at their dotted path."""

    def __init__(self, stats: Any) -> None:
        super().__init__()
        self._stats = stats

    def __missing__(self, name: str) -> float:
        return found(self._stats, name)


def figures_known(site: Site) -> Known:
    """Every figure that the page can show, from the API."""
    admin = {"X-API-Key": "two"}

    def groups(group_by: str) -> list[dict[str, Any]]:
        return list(site.get(f"/api/v1/usage?group_by={group_by}", **admin)["groups"])

    known = Known(site.get("/stats", **admin))
    for group in groups("day"):
        for name, value in group.items():
            if name != "key":
                known[f"period.{name}"] = known.get(f"period.{name}", 0) + value
    known["period.hit_ratio"] = known["period.cached_requests"] / known["period.total_requests"]
    known.update({f"answered.{group['key']}": group["total_requests"] for group in groups("model")})
    known.update({f"asked.{group['key']}": group["total_requests"] for group in groups("requested_model")})
    for model in site.get("/stats", **admin)["models"]:
        known.setdefault(f"answered.{model['model']}", 0)
        known.setdefault(f"asked.{model['model']}", 0)
    for group in groups("client"):
        known.update({f"clients.{group['key']}.{name}": value for name, value in group.items() if name != "key"})
    return known


NAMES = {"hour": "last hour", "day": "last 24 hours", "month": "last 30 days", "dates": "20"}
"""How the heads of the cards begin to name each period; dates are those of this century."""


def choose(browser: Browser, period: str) -> None:
    """Click the period and wait for its figures."""
    choose_without_waiting(browser, period)
    browser.wait_for(f"document.querySelector('[data-period]').textContent.startsWith('{NAMES[period]}')")


def select(browser: Browser, name: str, value: str) -> None:
    """Choose `value` in the list `name`."""
    browser.run(
        f"const list = document.querySelector('select[name={name}]');"
        f"list.value = '{value}'; if (list.value !== '{value}') throw new Error('not on offer');"
        "list.dispatchEvent(new Event('change', { bubbles: true }))"
    )


def test_the_chart_adds_up_to_the_period(browser: Browser, busy: Site) -> None:
    """Bars of minutes, hours or days: together the period's requests."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    stats = busy.get("/stats", **{"X-API-Key": "two"})
    for period, columns in (("hour", 61), ("day", 25), ("month", 31), ("dates", 24)):
        choose(browser, period)
        answers = browser.run(
            "return [...document.querySelectorAll('#spend-table td:last-child')].map((e) => +e.textContent)"
        )
        assert sum(answers) == stats["usage_stats"]["last_hour"]["total_requests"]
        assert browser.run("return document.querySelectorAll('#spend .column').length") == columns
        assert browser.run("return document.querySelectorAll('#spend .column rect.spent').length") >= 1


def test_errors_stand_by_severity_and_open_their_request(browser: Browser, busy: Site) -> None:
    """What failed here stands open and first; a click on an id shows each call of that request and what it cost."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    kinds = browser.run(
        "return [...document.querySelectorAll('#errors details')]"
        ".map((e) => [e.querySelector('summary').textContent, e.open, e.querySelector('h3 code').textContent])"
    )
    assert kinds == [
        ["The service or Gemini failed: 1", True, "upstream_unavailable"],
        ["A limit or budget was reached: 1", False, "rate_limited"],
        ["The request was not accepted: 1", False, "invalid_request"],
    ]
    name = browser.run(
        "const e = document.querySelector('#errors .id'); e.click(); return e.getAttribute('aria-label')"
    )
    browser.wait_for("document.querySelector('#story table')")
    story = browser.run("return document.getElementById('request').textContent")
    assert name.removeprefix("Show request ") in story
    assert "upstream_unavailable" in browser.run("return document.getElementById('story').textContent")
    browser.run("document.getElementById('request-close').click()")
    assert browser.run("return document.getElementById('request').open") is False


def test_filters_narrow_every_figure_of_the_period(browser: Browser, busy: Site) -> None:
    """Task, model and key; what is on offer is what the period has, and `all` brings everything back."""
    assert busy.ask("tagged", **{"X-API-Key": "two", "X-Tag": "news"}) == 200
    answers = "document.querySelector('[data-figure=\"period.total_requests\"]').value === '%d'"
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    for name, value, expected in (("task", "code", 1), ("key", "app", 7), ("tag", "news", 1)):
        browser.wait_for(answers % 8)
        select(browser, name, value)
        browser.wait_for(answers % expected)
        assert browser.run("return +document.querySelector('#models [data-figure^=answered]').value") == expected
        select(browser, name, "")


def test_the_time_zone_moves_clocks_and_days(browser: Browser, busy: Site) -> None:
    """The heads name it, and the day asked for begins at its midnight."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    choose(browser, "dates")
    select(browser, "zone", "America/Los_Angeles")
    browser.wait_for("document.querySelector('[data-period]').textContent.endsWith('America/Los_Angeles')")
    begins = browser.run("return new URL(document.getElementById('csv').href).searchParams.get('from')")
    midnight = datetime.fromtimestamp(float(begins), ZoneInfo("America/Los_Angeles"))
    assert (midnight.hour, midnight.minute) == (0, 0)


def test_usage_of_the_period_is_a_click_away_as_csv(browser: Browser, busy: Site) -> None:
    """For the admin; nobody else is offered what they may not have."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    csv = browser.run(
        "const { pathname, search } = new URL(document.getElementById('csv').href);"
        "return (await fetch(new URL(pathname + search, location.origin))).text()"
    )
    assert csv.count("\n") >= 8
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    assert browser.run("return document.getElementById('csv').hidden") is True


def test_no_link_leads_to_json(browser: Browser, busy: Site) -> None:
    """What a person can click is a page or a file to keep."""
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    links = browser.run("return [...document.querySelectorAll('a:not([hidden])')].map((e) => e.getAttribute('href'))")
    assert links == ["#figures", "/dashboard-sign-in", "/", "/swagger/"]


def test_every_control_has_a_name(browser: Browser, busy: Site) -> None:
    """As a screen reader says it."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    unnamed = browser.run(
        "return [...document.querySelectorAll('input, select, button')].filter((e) =>"
        " !(e.labels?.length && e.labels[0].textContent.trim()) && !e.ariaLabel && !e.textContent.trim())"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []


def test_the_page_asks_nobody_else_and_has_no_complaint(browser: Browser, busy: Site) -> None:
    """Not one request off this server, nothing on the console, no key in the document."""
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    choose(browser, "month")
    assert browser.hosts() == {busy.origin.removeprefix("http://")}
    assert browser.complaints() == []
    assert "one" not in browser.run("return document.documentElement.outerHTML.match(/\\bone\\b/g) ?? []")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways(browser: Browser, busy: Site, width: int) -> None:
    """Neither the page nor any card of it, in both themes and with the table open."""
    browser.open(busy.dashboard("two"), width=width)
    browser.wait_for(READY)
    browser.run("document.querySelector('details').open = true")
    for dark in (False, True):
        browser.look(width=width, dark=dark)
        wider = browser.run(
            "return [document.documentElement, ...document.querySelectorAll('.card, .tile, .card > *')]"
            ".filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')"
            ".map((e) => e.id || e.className || e.tagName)"
        )
        assert wider == []


CONTRAST = """
const parse = (color) => {
  const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
  return { rgb: [r, g, b], a }; };
const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const light = ({ rgb }) => { const [r, g, b] = rgb.map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (element) => { for (let e = element; e; e = e.parentElement) {
  const color = parse(getComputedStyle(e).backgroundColor); if (color.a > 0) return color; }
  return parse(getComputedStyle(document.documentElement).backgroundColor); };
const poor = [];
for (const element of document.querySelectorAll('body *')) {
  const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const style = getComputedStyle(element);
  if (!texts || !element.getClientRects().length || element.closest('.unseen, title, noscript')) continue;
  const color = parse(element instanceof SVGElement ? style.fill : style.color);
  const [high, low] = [light(color), light(behind(element))].sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && +style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) poor.push([element.textContent.slice(0, 30), ratio]);
}
for (const part of document.querySelectorAll('rect.spent, rect.saved, rect.failed, .span, .dot')) {
  const style = getComputedStyle(part);
  const color = parse(style.stroke !== 'none' ? style.stroke : style.fill);
  const [high, low] = [light(color), light(behind(part))].sort((a, b) => b - a);
  if ((high + 0.05) / (low + 0.05) < 3) poor.push([part.getAttribute('class'), (high + 0.05) / (low + 0.05)]);
}
return poor;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(browser: Browser, busy: Site, dark: bool) -> None:
    """Text has at least 4.5:1 (large text 3:1) and graphics 3:1 (WCAG 2.2, 1.4.3 and 1.4.11), notices included."""
    browser.open(busy.dashboard("two"), dark=dark)
    browser.wait_for(READY)
    busy.valve.failing = True
    choose_without_waiting(browser, "day")
    browser.wait_for("document.body.dataset.state === 'error'")
    assert browser.run(CONTRAST) == []
    scheme = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert scheme is dark


def choose_without_waiting(browser: Browser, period: str) -> None:
    """Click the period."""
    browser.run(f"document.querySelector('input[value={period}]').click()")


def test_the_keyboard_reaches_everything(browser: Browser, busy: Site) -> None:
    """In the order of the page, with a focus that shows; arrows change the period, Enter opens the table."""
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    reached = []
    for _ in range(12):
        browser.press("Tab")
        name, outlined = browser.run(
            "const e = document.activeElement, style = getComputedStyle(e.type === 'radio' ? e.nextSibling : e);"
            "const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;"
            "return [e.value ?? e.textContent.trim(), outlined]"
        )
        reached.append(name)
        assert outlined, name
        if name == "hour":
            browser.press("ArrowRight")
            browser.wait_for("document.querySelector('[data-period]').textContent.startsWith('last 24')")
        if name == "Show as a table":
            browser.press("Enter")
            browser.wait_for("document.querySelector('details').open")
        if name == "API reference":
            break
    lists = ["", "", "UTC"]  # model and task: all of them; the zone
    errors = ["The service or Gemini failed: 1", "A limit or budget was reached: 1", "The request was not accepted: 1"]
    rest = ["Show as a table", *errors, "Sign in with it", "First call", "API reference"]
    assert reached == ["Skip to the figures", "hour", *lists, *rest]


def test_charts_have_words(browser: Browser, busy: Site) -> None:
    """The chart says what it shows, each bar has its figures, and what only repeats a table is hidden from readers."""
    browser.open(busy.dashboard("two"))
    browser.wait_for(READY)
    assert "Highest column: $" in browser.run("return document.querySelector('#spend svg').getAttribute('aria-label')")
    assert "paid" in browser.run("return document.querySelector('#spend .column title').textContent")
    named = browser.run(
        "return [...document.querySelectorAll('main svg')]"
        ".every((e) => e.getAttribute('aria-label') || e.getAttribute('aria-hidden') === 'true')"
    )
    assert named


# Its states -----------------------------------------------------------------------------------------------------------


def test_new_figures_come_by_themselves_while_somebody_looks(browser: Browser, site: Callable[..., Site]) -> None:
    """No reload; a hidden page asks nothing, and is up to date as soon as it is looked at."""
    live = site()
    browser.open(live.dashboard())
    browser.wait_for(READY)
    assert "No answers in this period" in browser.run("return document.getElementById('spend').textContent")
    faster = "const real = setTimeout; window.setTimeout = (what, ms) => real(what, ms / 50);"
    browser.run(faster + "document.dispatchEvent(new Event('visibilitychange'))")
    live.ask("one")
    one_answer = "document.querySelector('[data-figure=\"period.total_requests\"]').value === '%d'"
    browser.wait_for(one_answer % 1)
    hide = "Object.defineProperty(document, 'hidden', { value: %s, configurable: true });"
    look = "document.dispatchEvent(new Event('visibilitychange'));"
    browser.run(
        hide % "true" + look + "await new Promise((next) => setTimeout(next, 10000))"
    )  # 0.2 s: what is under way
    asked = live.valve.asked
    live.ask("two")
    browser.run("await new Promise((next) => setTimeout(next, 20000))")  # 0.4 s, four turns
    assert live.valve.asked == asked
    browser.run(hide % "false" + look)
    browser.wait_for(one_answer % 2)


def test_an_unused_service_says_so(browser: Browser, site: Callable[..., Site]) -> None:
    """Every section has words for nothing."""
    browser.open(site(admin_api_key="two").dashboard())
    browser.wait_for(READY)
    said = browser.run("return [...document.querySelectorAll('.placeholder')].map((e) => e.textContent)")
    assert [text.split(".")[0] for text in said] == [
        "No answers in this period",
        "No rows",
        "No budget is set: DAILY_BUDGET_USD and MONTHLY_BUDGET_USD limit what is spent",
        "No errors since the start",
        "No task requests since the start",
        "No completion measured since the start",
        "Figures by caller need the admin key",
    ]
    assert browser.complaints() == []


def test_the_page_waits_in_words(browser: Browser, site: Callable[..., Site]) -> None:
    """Until the first figures are there, and it is busy for those who hear it."""
    slow = site()
    slow.valve.open.clear()
    browser.open(slow.dashboard())
    assert browser.run("return [document.body.dataset.state, document.getElementById('figures').ariaBusy]") == [
        "loading",
        "true",
    ]
    assert browser.run("return getComputedStyle(document.getElementById('tiles'), '::before').content") == '"Loading"'
    slow.valve.open.set()
    browser.wait_for(READY)
    assert browser.run("return document.getElementById('figures').ariaBusy") == "false"


def test_trouble_is_told_and_gets_over(browser: Browser, site: Callable[..., Site]) -> None:
    """The last figures stay, with a notice that they are old, until there are new ones."""
    shaky = site()
    shaky.ask("one")
    browser.open(shaky.dashboard())
    browser.wait_for(READY)
    shaky.valve.failing = True
    refresh = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.run(refresh)
    browser.wait_for("document.body.dataset.state === 'error'")
    notice = "return document.getElementById('notice').textContent"
    assert browser.run(notice) == "The service answered 500. The figures are the last ones known; trying again."
    assert figures_shown(browser)["period.total_requests"] == [(1.0, "1")]
    shaky.valve.failing = False
    browser.run(refresh)
    browser.wait_for(READY)
    assert browser.run("return document.getElementById('notice').hidden")


def test_a_service_that_is_gone_is_told(browser: Browser, site: Callable[..., Site]) -> None:
    """From the first request on."""
    gone = site()
    gone.valve.failing = True
    browser.open(gone.dashboard())
    browser.wait_for("document.body.dataset.state === 'error'")
    assert "trying again" in browser.run("return document.getElementById('notice').textContent").lower()
    assert (
        browser.run("return getComputedStyle(document.getElementById('tiles'), '::before').content") == '"No figures"'
    )


def test_figures_by_client_are_the_admins(browser: Browser, busy: Site) -> None:
    """Another key sees the rest, and causes no refused request; the way in leads to the admin's view."""
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    assert "need the admin key" in browser.run("return document.getElementById('clients').textContent")
    assert "seen as app" in browser.run("return document.getElementById('service').textContent")
    assert browser.complaints() == []
    browser.open(busy.dashboard("two").replace(PATH, SIGN_IN))
    browser.wait_for(READY)
    assert browser.run("return [location.pathname, document.querySelector('#clients th[scope=row]').textContent]") == [
        PATH,
        "app",
    ]


def test_a_key_that_is_taken_back_is_told(browser: Browser, busy: Site) -> None:
    """No dialog in the middle of the page: a sentence on what to do."""
    browser.open(busy.dashboard("one"))
    browser.wait_for(READY)
    busy.app.service.keys._index = {}
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait_for("document.body.dataset.state === 'denied'")
    assert browser.run("return document.getElementById('notice').textContent").endswith(
        "Reload the page to enter another one."
    )
