"""`deploy/multi-task-llm-api.service`: read by systemd's own tools, and started by a real systemd on a bare machine.

The machine is this one's root folder under an empty, throw-away layer, with a systemd of its own as process 1: no user,
folder or setting was prepared on it but the project in /opt.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mtllm.project import PROJECT
from mtllm.settings import default_text
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import PATIENCE, eventually, free_port, get, listens, post

UNIT = PROJECT / "deploy" / "multi-task-llm-api.service"
INSTALLED = "/opt/multi-task-llm-api"
TEXT = "/api/v1/generate/text"
MOST_EXPOSED = 3.0

BOOT = """
set -e
top=$1 opt=$2 python=$3 packages=$4 unit=$5
mount --make-rprivate /
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" machine "$top/root"
cd "$top/root"
rm -rf etc/systemd/system/*
cp "$opt/multi-task-llm-api/deploy/$unit" etc/systemd/system/
install -m 0600 "$opt/multi-task-llm-api.env" etc/
mount --bind "$opt" opt
mount --bind "$python" opt/python
mount --bind "$packages" opt/packages
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mkdir before
pivot_root . before
umount -l before
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit="$unit"
"""


def test_the_unit_leaves_the_service_little_to_do_harm_with() -> None:
    """systemd's own measure of what is exposed, from 0 to 10, is at most 3."""
    said = analyzed("security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", str(UNIT))
    assert said.returncode == 0, said.stdout
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)
    assert float(exposure) <= MOST_EXPOSED


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """Once the program that it names exists."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(f"{INSTALLED}/venv/bin/python", sys.executable))
    said = analyzed("verify", "--man=no", str(unit))
    assert UNIT.name not in said.stdout + said.stderr


def test_the_unit_leaves_time_to_drain() -> None:
    """It kills later than DRAIN_SECONDS."""
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert int(seconds) > float(default_text("drain_seconds"))


def analyzed(*words: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


class Machine:
    """A booted machine, seen from outside."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def systemctl(self, *words: str) -> str:
        """What `systemctl` prints there."""
        command = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "systemctl", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def properties(self, *names: str) -> dict[str, str]:
        """The unit's properties."""
        lines = self.systemctl("show", UNIT.name, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def boot(tmp_path: Path) -> Callable[..., AbstractContextManager[Machine]]:
    """Boots a machine whose /etc/multi-task-llm-api.env has the given settings."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or not Path("/lib/systemd/systemd").exists():
        pytest.skip("booting a systemd needs root, unshare and systemd (Debian: apt-get install systemd)")

    @contextmanager
    def booted(**settings: str) -> Iterator[Machine]:
        top, opt = tmp_path / "top", tmp_path / "opt"
        top.mkdir()
        install(opt, settings)
        places = map(str, (top, opt, sys.base_prefix, sysconfig.get_path("purelib")))
        command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
        with subprocess.Popen([*command, "sh", "-c", BOOT, "boot", *places, UNIT.name]) as process:
            try:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                assert eventually(lambda: children.read_text().strip())
                yield Machine(int(children.read_text()))
            finally:
                process.kill()

    return booted


def install(opt: Path, settings: dict[str, str]) -> None:
    """Make the /opt of docs/deployment.md: the project with a virtual environment, here of this machine's packages."""
    home = opt / "multi-task-llm-api"
    shutil.copytree(PROJECT, home, ignore=shutil.ignore_patterns(".*", "venv", "tests", "*.sqlite3*"))
    for empty in ("python", "packages"):
        (opt / empty).mkdir()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    venv = home / "venv"
    (venv / "lib" / version).mkdir(parents=True)
    (venv / "lib" / version / "site-packages").symlink_to("/opt/packages")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(f"/opt/python/bin/{version}")
    (venv / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    example = (PROJECT / ".env.example").read_text().splitlines(keepends=True)
    lines = [line for line in example if "_DIR=" not in line] + [
        f"{name}={value}\n" for name, value in settings.items()
    ]
    lines.append("LD_LIBRARY_PATH=/opt/python/lib\n")  # where a Python that has been moved finds itself
    (opt / "multi-task-llm-api.env").write_text("".join(lines))


def test_the_unit_starts_on_a_bare_machine(boot: Any, gemini: ScriptedGemini) -> None:
    """With its own user and folders, which nobody else can read; a restart loses nothing; a stop ends with status 0."""
    port = free_port()
    settings = {"PORT": str(port), "GOOGLE_API_KEY": "AIza-test-key", "GEMINI_API_ENDPOINT": gemini.url}
    with boot(**settings) as machine:
        assert eventually(lambda: listens(port), seconds=3 * PATIENCE)
        assert post(port, TEXT, {"prompt": "first"}).status == 200
        assert get(port, "/api/v1/health/ready").json["status"] == "ready"
        for folder, file in (("lib", "ledger.sqlite3"), ("log", "api_requests.log")):
            private = machine.root / "var" / folder / "private" / "multi-task-llm-api"
            assert stat.S_IMODE(private.stat().st_mode) & 0o007 == 0
            assert (private / file).stat().st_uid == private.stat().st_uid != 0
        machine.systemctl("restart", UNIT.name)
        assert eventually(lambda: listens(port))
        assert post(port, TEXT, {"prompt": "first"}).headers["X-Cached"] == "true"
        machine.systemctl("stop", UNIT.name)
        ended = machine.properties("Result", "ExecMainStatus", "ActiveState")
    assert ended == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
    assert gemini.count == 1


def test_settings_that_cannot_be_used_are_not_tried_again_and_again(boot: Any) -> None:
    """The unit fails at once, and stays so for a person to look at."""
    with boot(PORT="many") as machine:
        assert eventually(lambda: machine.properties("ActiveState").get("ActiveState") == "failed", 3 * PATIENCE)
        ended = machine.properties("ExecMainStatus", "NRestarts")
    assert ended == {"ExecMainStatus": "2", "NRestarts": "0"}
