"""What /metrics shows is what happened, in Prometheus' words, and the alert rules ask for what is there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app import Api
from mtllm.domain.completion import Origin
from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.money import Amount, TokenUsage
from mtllm.logs.writer import RequestEvent
from mtllm.project import PROJECT
from mtllm.stats.metrics import MODELS_NAMED, OTHER, UNKNOWN_MODEL, Histogram, Metrics
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini, status, text

TEXT = "/api/v1/generate/text"
MONITORING = (PROJECT / "docs") / "monitoring"
LABELS = {"route", "task", "status", "origin", "model", "kind", "code", "state", "le"}
MakeApp = Callable[..., Api]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(client: FlaskClient, **headers: str) -> Samples:
    """Every sample of the page by name and labels."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.get_data(as_text=True))
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample."""
    return samples[name, frozenset(labels.items())]


def summed(samples: Samples, name: str) -> float:
    """The sum over all labels."""
    return sum(amount for (found, _), amount in samples.items() if found == name)


@pytest.fixture
def observed(app: Api) -> Metrics:
    """Nothing observed yet."""
    return Metrics(app.url_map)


def event(**facts: Any) -> RequestEvent:
    """A finished request."""
    return RequestEvent(request_id="r", timestamp=0.0, **({"path": TEXT, "task": "text"} | facts))


# The page


def test_a_known_sequence_shows_up_in_requests_tokens_and_dollars(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """Two paid answers, one hit, one bad request, one unknown path; dollars and tokens equal those of /stats."""
    for prompt in ("one", "two", "one"):
        client.post(TEXT, json={"prompt": prompt})
    client.post(TEXT, json={})
    client.get("/nowhere")
    stats = client.get("/stats").json
    samples = scraped(client)
    requests = "mtllm_requests_total"
    assert value(samples, requests, route=TEXT, status="200", origin="paid") == 2
    assert value(samples, requests, route=TEXT, status="200", origin="hit") == 1
    assert value(samples, requests, route=TEXT, status="400", origin="none") == 1
    assert value(samples, requests, route=OTHER, status="404", origin="none") == 1
    assert value(samples, "mtllm_errors_total", route=TEXT, code="invalid_request") == 1
    assert value(samples, "mtllm_upstream_attempts_total", route=TEXT) == 2
    assert value(samples, "mtllm_request_duration_seconds_count", route=TEXT, origin="hit") == 1
    assert value(samples, "mtllm_upstream_duration_seconds_count", route=TEXT, origin="paid") == 2
    assert value(samples, "mtllm_own_duration_seconds_count", route=TEXT, origin="paid") == 2
    assert stats is not None
    overall, cache = stats["overall_stats"], stats["cache_stats"]
    assert overall["total_cost_all_time"] > 0
    assert value(samples, "mtllm_ledger_cost_usd") == overall["total_cost_all_time"]
    assert value(samples, "mtllm_spend_usd_total") == overall["total_cost_since_start"]
    assert summed(samples, "mtllm_cost_usd_total") == pytest.approx(overall["total_cost_all_time"], abs=1e-12)
    assert summed(samples, "mtllm_saved_usd_total") == pytest.approx(overall["cache_savings_all_time"], abs=1e-12)
    assert value(samples, "mtllm_ledger_saved_usd") == overall["cache_savings_all_time"]
    assert value(samples, "mtllm_ledger_requests") == overall["total_requests_all_time"] == 3
    assert value(samples, "mtllm_ledger_cached_requests") == overall["cached_requests_all_time"] == 1
    model = "gemini-2.5-flash-lite"
    for kind in ("input", "output"):
        tokens = overall["total_tokens_all_time"][kind]
        assert value(samples, "mtllm_tokens_total", task="text", model=model, kind=kind) == tokens
        assert value(samples, "mtllm_ledger_tokens", kind=kind) == tokens
    assert value(samples, "mtllm_cache_hits_total") == cache["hits"] == 1
    assert value(samples, "mtllm_cache_misses_total") == cache["misses"] == 2
    assert value(samples, "mtllm_cache_bytes") == cache["bytes"]
    assert value(samples, "mtllm_requests_in_flight") == 1  # the scrape itself


def test_names_and_labels_keep_the_conventions(client: FlaskClient) -> None:
    """Our prefix or the process's, counters end in _total, times are seconds; labels from a list, and no address."""
    client.post(TEXT, json={"prompt": "x"}, headers={"X-Request-ID": "id-of-mine"})
    page = client.get("/metrics").get_data(as_text=True)
    for family in text_string_to_metric_families(page):
        assert family.name.startswith(("mtllm_", "process_"))
        assert family.documentation
        assert not re.search(r"_(ms|millis\w*|minutes|total)$", family.name), family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert set(sample.labels) <= LABELS
    assert "127.0.0.1" not in page
    assert "id-of-mine" not in page


def test_the_page_needs_a_key_where_keys_are_configured(make_app: MakeApp) -> None:
    """Like /stats."""
    client = make_app(api_keys="prometheus:secret").test_client()
    assert client.get("/metrics").status_code == 401
    samples = scraped(client, Authorization="Bearer secret")
    assert value(samples, "mtllm_errors_total", route="/metrics", code="unauthorized") == 1
    assert not any("prometheus" in str(labels) or "secret" in str(labels) for _, labels in samples)


def test_open_metrics_is_given_to_those_who_ask(client: FlaskClient) -> None:
    """By Accept, as Prometheus does."""
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.mimetype == "application/openmetrics-text"
    assert answer.data.endswith(b"# EOF\n")
    assert client.get("/metrics").mimetype == "text/plain"


def test_two_applications_keep_their_figures_apart(make_app: MakeApp) -> None:
    """Each has a registry of its own."""
    busy, idle = make_app().test_client(), make_app().test_client()
    busy.post(TEXT, json={"prompt": "x"})
    assert summed(scraped(busy), "mtllm_requests_total") == 1
    assert summed(scraped(idle), "mtllm_requests_total") == 0


def test_failures_show_up_in_breaker_and_codes(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Five failures open the breaker; the calls were made, and the errors have their codes."""
    client = make_app(gemini_max_attempts="1").test_client()
    gemini.answers(*[status(503)] * 5)
    for number in range(6):
        client.post(TEXT, json={"prompt": str(number)})
    samples = scraped(client)
    assert value(samples, "mtllm_breaker_state", state="open") == 1
    assert value(samples, "mtllm_breaker_state", state="closed") == 0
    assert value(samples, "mtllm_breaker_opened_total") == 1
    assert value(samples, "mtllm_upstream_attempts_total", route=TEXT) == 5
    assert value(samples, "mtllm_errors_total", route=TEXT, code="upstream_unavailable") == 6


def test_rejections_and_shed_load_are_counted(make_app: MakeApp) -> None:
    """Past the rate limit, and past the places for Gemini."""
    app = make_app(rate_limits="2/minute", gemini_queue_seconds="0")
    client = app.test_client()
    client.post(TEXT, json={"prompt": "x"})
    for _ in range(app.service.admission.state().slots):
        app.service.admission.enter(0.0)
    client.post(TEXT, json={"prompt": "y"})
    client.post(TEXT, json={"prompt": "z"})
    samples = scraped(client)
    assert value(samples, "mtllm_limiter_rejections_total") == 1
    assert value(samples, "mtllm_limiter_clients") == 1
    assert value(samples, "mtllm_admission_shed_total") == 1
    assert value(samples, "mtllm_admission_in_use") == value(samples, "mtllm_admission_places")


def test_a_budget_shows_its_use(make_app: MakeApp, gemini: ScriptedGemini) -> None:
    """Limit, spent and reserved of today, only where one is set."""
    client = make_app(daily_budget_usd="2.5").test_client()
    client.post(TEXT, json={"prompt": "x"})
    samples = scraped(client)
    assert value(samples, "mtllm_budget_limit_usd") == 2.5
    assert value(samples, "mtllm_budget_spent_usd") == value(samples, "mtllm_ledger_cost_usd") > 0
    assert value(samples, "mtllm_budget_reserved_usd") == 0


def test_a_scrape_does_without_a_ledger_that_cannot_be_read(app: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums are missing, all else is there."""

    def gone() -> None:
        raise LedgerUnavailable()

    monkeypatch.setattr(app.service.ledger, "totals", gone)
    samples = scraped(app.test_client())
    assert ("mtllm_ledger_cost_usd", frozenset()) not in samples
    assert value(samples, "mtllm_ledger_writable") == 1
    assert value(samples, "mtllm_log_writable") == 1


def test_streams_are_counted_when_they_end(client: FlaskClient, gemini: ScriptedGemini) -> None:
    """With their tokens and costs."""
    gemini.answers(text("hello there"))
    with client.post(TEXT, json={"prompt": "x", "stream": True}) as answer:
        answer.get_data()
    samples = scraped(client)
    assert value(samples, "mtllm_requests_total", route=TEXT, status="200", origin="paid") == 1
    assert summed(samples, "mtllm_cost_usd_total") == pytest.approx(value(samples, "mtllm_ledger_cost_usd"), abs=1e-12)


# What one request adds


def test_own_time_is_what_gemini_and_the_queue_leave(observed: Metrics) -> None:
    """Never below 0."""
    observed.observe(event(duration=1.0, upstream_seconds=0.75, queue_seconds=0.125, attempts=1, origin=Origin.PAID))
    observed.observe(event(duration=1.0, upstream_seconds=1.5, attempts=1, origin=Origin.PAID))
    [figures] = observed.snapshot().routes.values()
    assert (figures.duration.total, figures.own.total, figures.upstream.total) == (2.0, 0.125, 2.25)


def test_hits_have_savings_and_no_tokens(observed: Metrics) -> None:
    """Tokens and costs are those of paid calls."""
    observed.observe(event(model="m", amount=Amount(TokenUsage(3, 5)), saved=7, origin=Origin.HIT))
    [money] = observed.snapshot().money.values()
    assert (money.paid.usage.input, money.paid.usage.output, money.saved) == (0, 0, 7)


def test_labels_are_bounded(observed: Metrics) -> None:
    """A thousand models and paths make a handful of series."""
    for number in range(1000):
        observed.observe(event(model=f"model-{number}", path=f"/{number}", origin=Origin.PAID))
    observed.observe(event(model=None, origin=Origin.PAID))
    snapshot = observed.snapshot()
    assert len(snapshot.money) == MODELS_NAMED + 2
    assert {("text", OTHER), ("text", UNKNOWN_MODEL)} <= set(snapshot.money)
    assert {route for route, _ in snapshot.routes} == {OTHER, TEXT}


def test_a_bucket_includes_its_bound() -> None:
    """`le` means less or equal; what is longer than all bounds is in the last bucket."""
    histogram = Histogram()
    for seconds in (0.0005, 0.00051, 1e9):
        histogram.add(seconds)
    assert histogram.counts[:2] == [1, 1]
    assert histogram.counts[-1] == 1


def test_nothing_is_lost_between_threads(observed: Metrics) -> None:
    """All requests of all threads are counted."""
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(500):
            observed.observe(event(model="m", duration=0.25, amount=Amount(TokenUsage(1)), origin=Origin.PAID))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = observed.snapshot()
    [figures], [money] = snapshot.routes.values(), snapshot.money.values()
    assert figures.statuses == {200: 4000}
    assert sum(figures.duration.counts) == 4000
    assert money.paid.usage.input == 4000


def test_a_snapshot_stands_still(observed: Metrics) -> None:
    """What is observed later does not change it."""
    observed.observe(event())
    before = observed.snapshot()
    observed.observe(event())
    [figures] = before.routes.values()
    assert figures.statuses == {200: 1}


# docs/monitoring


@pytest.fixture
def yaml() -> Any:
    """The parser of the sample files."""
    return pytest.importorskip("yaml")


def test_alert_rules_ask_for_metrics_that_are_there(yaml: Any, make_app: MakeApp, clock: FakeClock) -> None:
    """Every name and label in every expression is on the page of a service with a budget."""
    client = make_app(daily_budget_usd="1").test_client()
    client.post(TEXT, json={"prompt": "x"})
    client.post(TEXT, json={})
    samples = scraped(client)
    names = {name for name, _ in samples}
    [group] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) >= 8
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        asked = set(re.findall(r"\bmtllm_\w+", rule["expr"])) | set(re.findall(r"\bup\b", rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= names | {"up"}, rule["alert"]
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_queries_of_the_readme_ask_for_metrics_that_are_there(make_app: MakeApp) -> None:
    """Each name in backticks."""
    client = make_app(daily_budget_usd="1").test_client()
    for body in ({"prompt": "x"}, {"prompt": "x"}, {}):
        client.post(TEXT, json=body)
    names = {name for name, _ in scraped(client)}
    for name in re.findall(r"\bmtllm_\w*[a-z]\b", (MONITORING / "README.md").read_text()):
        assert name in names, name
