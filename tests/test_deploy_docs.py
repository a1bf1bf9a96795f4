"""docs/deployment.md: every block of commands is run by a test or says why not, and the checks on the page pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mtllm.project import PROJECT

PAGE = (PROJECT / "docs" / "deployment.md").read_text()
BLOCK = re.compile(r"^(?:<!-- (run|not run): ([^\n]+) -->\n)?```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_of_commands_is_accounted_for() -> None:
    """By tests that exist, or by a reason."""
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```sh\n") >= 8
    for kind, told, commands in blocks:
        assert kind, commands
        files = re.findall(r"tests/\w+\.py|\.ci/run", told)
        assert kind == "not run" or files, told
        assert all((PROJECT / file).exists() for file in files), told


def test_the_files_that_the_page_names_exist() -> None:
    """Links, and paths below deploy/ and docs/ in commands."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (PROJECT / "docs" / link).exists()] == []
    paths = re.findall(
        r"(?<![\w/.])(?:deploy|docs)/[\w./-]+", "".join(commands for _, _, commands in BLOCK.findall(PAGE))
    )
    assert paths
    assert [path for path in paths if not (PROJECT / path).exists()] == []


def checked(program: str, *words: str, **environment: str) -> None:
    """Run one of the page's checks; skips where its program is not installed."""
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([found, *words], env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_rules_well() -> None:
    """As the page asks for it."""
    checked("promtool", "check", "rules", str(PROJECT / "docs" / "monitoring" / "alerts.yml"))


def test_caddy_finds_its_file_well(tmp_path: Path) -> None:
    """As it is: no certificate is asked for by a check. (The others' files name certificates: test_proxies.py.)"""
    places = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    checked("caddy", "validate", "--adapter", "caddyfile", "--config", str(PROJECT / "deploy" / "Caddyfile"), **places)
