"""The Grafana dashboard: whether it is one, and whether a real Prometheus answers its every query.

The service runs in a process of its own with some traffic; Prometheus scrapes it with our rules. The dashboard's form
is read by Grafana's own models of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mtllm.project import PROJECT
from tests.support.scripted_gemini import ScriptedGemini, status
from tests.support.serving import APP_PY, PATIENCE, Process, eventually, free_port, get, listens, post

MONITORING = PROJECT / "docs" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "mtllm.json"
TEXT = "/api/v1/generate/text"
EMPTY_UNTIL_IT_HAPPENS = {"Today's budget"}


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_grafanas_own_models_read_the_dashboard() -> None:
    """Nothing in it is unknown to them, and none of it is lost."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="grafana-foundation-sdk is missing")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    written = json.loads(DASHBOARD.read_text())
    read = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(written)))
    assert set(written) <= set(read)
    assert [panel["title"] for panel in read["panels"]] == [panel["title"] for panel in written["panels"]]


def test_panels_lie_side_by_side() -> None:
    """In the grid of 24 columns, none over another; each says what it shows."""
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        assert panel["type"] == "row" or panel["description"]
        cells |= own


def test_the_provisioned_files_fit_together() -> None:
    """The data source is the one that compose starts, the folder is where compose mounts the dashboard."""
    yaml = pytest.importorskip("yaml")
    provisioning = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "mtllm.yml").read_text())["providers"]
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    assert urllib.parse.urlsplit(source["url"]).hostname in compose
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["grafana"]["volumes"]}
    assert (MONITORING / mounted[provider["options"]["path"]]).resolve() == DASHBOARD.parent
    assert (MONITORING / mounted["/etc/grafana/provisioning"]).resolve() == provisioning


Ask = Callable[[str], list[Any]]


@pytest.fixture
def prometheus(tmp_path: Path, environment: dict[str, str], gemini: ScriptedGemini) -> Iterator[Ask]:
    """Asks a Prometheus that has scraped a busy service a few times."""
    yaml = pytest.importorskip("yaml")
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    with Process(APP_PY, environment | {"RATE_LIMITS": "20/minute", "GEMINI_MAX_ATTEMPTS": "1"}, threads=8) as service:
        port = free_port()
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        [job] = config["scrape_configs"]
        del job["authorization"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = [program, f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], env=os.environ, stdout=log, stderr=log
            )
        try:
            assert eventually(lambda: listens(port))

            def ask(query: str) -> list[Any]:
                return _asked(port, query)

            for number in range(1, 4):  # each round is scraped, so that every rate has something to go by
                _a_round(service.port, gemini)
                assert eventually(partial(_has_seen, ask, number))
            yield ask
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _has_seen(ask: Ask, failures: int) -> bool:
    """Whether Prometheus has scraped so many failures of Gemini."""
    samples = ask('mtllm_errors_total{code="upstream_error"}')
    return sum(float(sample["value"][1]) for sample in samples) == failures


def _a_round(port: int, gemini: ScriptedGemini) -> None:
    """A paid answer, a hit, a mistake of the caller's, and a failure of Gemini's."""
    prompt = f"prompt {time.monotonic()}"
    for _ in range(2):
        post(port, TEXT, {"prompt": prompt})
    post(port, TEXT, {})
    gemini.answers(status(500))
    post(port, TEXT, {"prompt": prompt + " fails"})
    get(port, "/health")


def _asked(port: int, query: str) -> list[Any]:
    """The result of an instant query; a refused one fails the test with Prometheus' words."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            result: list[Any] = json.load(answer)["data"]["result"]
            return result
    except urllib.error.HTTPError as refusal:
        pytest.fail(f"{query}: {refusal.read().decode()}")


def test_a_real_prometheus_answers_every_query(prometheus: Ask) -> None:
    """With something to show, for a service that has had traffic of every kind; and so do those of the README."""
    variables = {"$job": "mtllm", "$instance": ".*", "$__rate_interval": "10s"}
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, text in variables.items():
                query = query.replace(name, text)
            assert "$" not in query
            result = prometheus(query)
            assert result or panel["title"] in EMPTY_UNTIL_IT_HAPPENS, f"{panel['title']}: {query}"
    for query in re.findall(r"\| `([^`]*mtllm_[^`]*)` \|$", (MONITORING / "README.md").read_text(), re.MULTILINE):
        assert prometheus(query), query


def test_the_scrape_is_well_and_the_rules_are_loaded(prometheus: Ask) -> None:
    """`up` is 1 under the job's name that the rules use; nobody is paged by three failures."""
    assert [sample["value"][1] for sample in prometheus('up{job="mtllm"}')] == ["1"]
    assert prometheus('ALERTS{alertname!="MtllmErrors"}') == []
