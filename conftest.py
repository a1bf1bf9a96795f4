"""Fixtures that the story (test_unit.py) and the tests of the parts share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Api, create_app
from mtllm.settings import Settings, load_settings
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import ScriptedGemini

THREADS = 8


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's settings."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when told; it begins now, so that deadlines made from it are plausible outside too."""
    return FakeClock(float(int(time.monotonic())))


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    """A Gemini at the wire that follows a script, and answers like the offline model when the script is used up."""
    with ScriptedGemini() as scripted:
        yield scripted


@pytest.fixture
def environment(tmp_path: Path, gemini: ScriptedGemini) -> dict[str, str]:
    """The environment of a service whose Gemini is `gemini` and whose files lie in `tmp_path`."""
    return {
        "GOOGLE_API_KEY": "AIza-test-key",
        "GEMINI_API_ENDPOINT": gemini.url,
        "GEMINI_FALLBACK_MODELS": "",  # one model, unless a test is about the chain
        "LOG_DIR": str(tmp_path / "logs"),
        "CACHE_DIR": str(tmp_path / "cache"),
        "DATA_DIR": str(tmp_path / "data"),
    }


@pytest.fixture
def make_app(environment: dict[str, str], clock: FakeClock) -> Iterator[Callable[..., Api]]:
    """Builds applications, with settings by name; `real_time=True` for those that must not stand still."""
    made: list[Api] = []
    offset = float(int(time.time() - clock()))

    def wall() -> float:
        return clock() + offset

    def make(*, real_time: bool = False, threads: int = THREADS, **settings: str) -> Api:
        texts = environment | {name.upper(): text for name, text in settings.items()}
        times: dict[str, Any] = {} if real_time else {"clock": wall, "monotonic": clock}
        app = create_app(load_settings(texts, env_file=None), **times)
        app.service.open(threads)
        made.append(app)
        return app

    yield make
    for app in made:
        app.service.close()


@pytest.fixture
def app(make_app: Callable[..., Api]) -> Api:
    """The application with its default settings."""
    return make_app()


@pytest.fixture
def client(app: Api) -> FlaskClient:
    """A caller of `app`."""
    return app.test_client()


def pytest_configure(config: pytest.Config) -> None:
    """`long` tests (soaks, kills, benchmarks) are for those who work on the project."""
    config.addinivalue_line("markers", "long: runs where requirements-dev.txt is installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With requirements.txt alone the suite stays short."""
    if find_spec("hypothesis") is None:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: runs where requirements-dev.txt is installed"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skip into a failure under CI."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
