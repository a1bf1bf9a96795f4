"""The README's examples run as they are written, against the service as the README starts it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from app import create_app
from mtllm.emulator import Emulator
from mtllm.project import PROJECT
from mtllm.settings import load_settings
from tests.support.serving import serving

README = (PROJECT / "README.md").read_text()
FIRST_SCREEN = 30
"""Lines that a person sees before scrolling."""


@pytest.fixture
def served(environment: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Rewrites an example to the port that an offline service listens on."""
    with Emulator() as emulator:
        app = create_app(load_settings(environment, env_file=None).offline(emulator.url))
        try:
            with serving(app) as port:
                yield lambda example: example.replace("127.0.0.1:5000", f"127.0.0.1:{port}")
        finally:
            app.service.close()


def block(language: str, containing: str) -> str:
    """The one code block of the README in `language` that has these words."""
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    return str(found)


def run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_answer_is_as_shown(served: Callable[[str], str]) -> None:
    """Every header and every character of the body that the first screen shows is what one gets."""
    shown_head, _, shown_body = block("http", "HTTP/1.1 200 OK").partition("\n\n")
    head, _, body = run("bash", "-c", served(block("bash", "curl -i"))).replace("\r\n", "\n").partition("\n\n")
    came = {line.lower() for line in head.splitlines()}
    assert [line for line in shown_head.splitlines() if line.lower() not in came] == []
    assert body == shown_body


def test_the_python_example_runs(served: Callable[[str], str]) -> None:
    """And prints code and cost."""
    printed = run(sys.executable, "-c", served(block("python", "urlopen")))
    assert "def " in printed
    assert re.search(r"cost: 0\.0000\d\d cached: false", printed)


def test_the_javascript_example_runs(served: Callable[[str], str]) -> None:
    """And sees deltas and the figures at the end."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    printed = run(node, "--input-type=module", given=served(block("javascript", "fetch")))
    assert 'data: {"delta": ' in printed
    assert "event: done" in printed
    assert '"nanodollars": ' in printed


def test_the_first_screen_has_it_all() -> None:
    """One sentence, one curl with its answer, and the two commands."""
    top = README.splitlines()[: FIRST_SCREEN + 5]
    assert any(line.startswith("curl -i") for line in top)
    assert any(line.startswith("pip install -r requirements.txt && python app.py --offline") for line in top)
    assert any(line.startswith("pip install -r requirements.txt && python test_unit.py") for line in top)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?:docs/)?[A-Za-z_.-]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    """Within the project."""
    assert (PROJECT / link).is_file()
