"""The compose files as docker-compose itself reads them: settings come from .env, and nothing switches them off."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtllm.project import PROJECT
from mtllm.settings import Settings, load_settings

FILES = ["deploy/compose.yaml", "docs/monitoring/compose.yaml"]
PLACES = {"data_dir": "/state/data", "cache_dir": "/state/cache", "log_dir": "/state/logs"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the files refer to, for a .env of its own."""
    for name in ("deploy", "docs/monitoring"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    return tmp_path


def composed(project: Path, file: str, **environment: str) -> dict[str, Any]:
    """What docker-compose makes of a file, in a shell with these variables."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
    command = [program, "--file", str(project / file), "config"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


def settings_of(service: dict[str, Any]) -> Settings:
    """The settings that the service's container starts with."""
    texts = {name: str(text).replace("$$", "$") for name, text in service["environment"].items()}
    return load_settings(texts, env_file=None)


@pytest.mark.parametrize("file", FILES)
def test_what_env_says_holds_in_the_container(project: Path, file: str) -> None:
    """Keys and budget too, also where the shell has empty variables of the same names."""
    (project / ".env").write_text("GOOGLE_API_KEY=AIza-test\nAPI_KEYS=bob:s3cret-key-of-bob\nDAILY_BUDGET_USD=1\n")
    service = composed(project, file, API_KEYS="", DAILY_BUDGET_USD="")["services"]["mtllm"]
    settings = settings_of(service)
    assert (settings.google_api_key, settings.daily_budget_usd) == ("AIza-test", 1.0)
    assert settings.api_keys == (("bob", "s3cret-key-of-bob"),)


def test_the_example_of_env_gives_the_defaults(project: Path) -> None:
    """But for the places, which lie in the container's volume."""
    shutil.copy(PROJECT / ".env.example", project / ".env")
    settings = settings_of(composed(project, FILES[0])["services"]["mtllm"])
    assert {name: str(getattr(settings, name)) for name in PLACES} == PLACES
    defaults = load_settings({}, env_file=None)
    assert settings.model_dump(exclude=set(PLACES)) == defaults.model_dump(exclude=set(PLACES))


def test_both_files_start_the_same_service(project: Path) -> None:
    """With the same state, so that one can go from one file to the other."""
    (project / ".env").write_text("")
    [one, other] = [composed(project, file) for file in FILES]
    assert one["services"]["mtllm"] == other["services"]["mtllm"]
    assert one["volumes"]["state"] == other["volumes"]["state"]


def test_the_container_may_do_little(project: Path) -> None:
    """No capability, nothing to write to but its volume and /tmp, and no address but this machine's."""
    (project / ".env").write_text("")
    services = composed(project, FILES[1])["services"]
    service = services["mtllm"]
    assert (service["cap_drop"], service["read_only"], service["tmpfs"]) == (["ALL"], True, ["/tmp"])
    assert service["volumes"] == ["state:/state:rw"]
    ports = [port for each in services.values() for port in each["ports"]]
    assert all(str(port).startswith("127.0.0.1:") for port in ports), json.dumps(ports)


def test_what_is_mounted_exists_and_images_are_exact(project: Path) -> None:
    """But for the key that the operator writes; no image changes by itself."""
    (project / ".env").write_text("")
    for name, service in composed(project, FILES[1])["services"].items():
        sources = [Path(volume.split(":")[0]) for volume in service["volumes"] if volume.startswith("/")]
        assert [source.name for source in sources if not source.exists()] in ([], ["api_key"]), name
        assert service["image"] == "multi-task-llm-api" or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_prometheus_scrapes_what_compose_starts(project: Path) -> None:
    """Host and port are the service's; the files that prometheus.yml names are those that compose mounts."""
    (project / ".env").write_text("")
    services = composed(project, FILES[1])["services"]
    prometheus = yaml.safe_load((PROJECT / "docs" / "monitoring" / "prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert any(f":{port}" in mapping for mapping in services[name]["ports"])
    mounted = {volume.split(":")[1] for volume in services["prometheus"]["volumes"]}
    assert {*prometheus["rule_files"], job["authorization"]["credentials_file"]} <= mounted
