"""The files of `deploy/` as far as they can be tried without a container engine or a service manager."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mtllm.project import PROJECT

DEPLOY = PROJECT / "deploy"
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")]


def build(folder: Path) -> None:
    """Do what the COPY instructions say."""
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = shlex.split(rest)
            for pattern in sources:
                for source in PROJECT.glob(pattern):
                    place = folder / target if source.is_dir() else folder / target / source.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if source.is_dir() else shutil.copy)(source, place)


def test_the_dockerfile_is_made_of_known_instructions() -> None:
    """And does not run as root."""
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS
    assert names.index("USER") < names.index("CMD")


def test_what_the_image_holds_serves(tmp_path: Path) -> None:
    """The copied files alone, started as the image starts them, answer the image's health check and stop on SIGTERM."""
    build(tmp_path)
    command = shlex.join([sys.executable, "app.py"])
    environment = {"PATH": os.environ["PATH"], "PORT": "0"}
    with subprocess.Popen(
        shlex.split(command),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            [url] = re.findall(r"http://\S+", server.stdout.readline())
            for path in ("/health", "/dashboard", "/api/v1/openapi.json", "/swagger/"):
                with urllib.request.urlopen(url + path, timeout=10) as answer:
                    assert answer.status == 200
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=20)
    assert server.returncode == 0


def test_the_unit_is_a_valid_one(tmp_path: Path) -> None:
    """systemd itself finds nothing wrong, once the programs it names exist."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "multi-task-llm-api.service"
    text = (DEPLOY / unit.name).read_text().replace("/srv/multi-task-llm-api/venv/bin/python", sys.executable)
    unit.write_text(text)
    checked = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert unit.name not in checked.stderr


def test_the_unit_leaves_time_to_drain() -> None:
    """It kills later than DRAIN_SECONDS."""
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "multi-task-llm-api.service").read_text(), re.MULTILINE)
    assert int(seconds) > 30
