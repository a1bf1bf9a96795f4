"""`deploy/Dockerfile`, built by a real engine (buildah) and run from what was built.

The base image is a stand-in, since tests ask no registry: empty but for links to this machine's own /usr and virtual
environment, which are mounted read-only while the image is built and run. All else is as the Dockerfile says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtllm.project import PROJECT
from tests.support.serving import PATIENCE, eventually, free_port, get, listens

DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
BASE = next(line.removeprefix("FROM ") for line in DOCKERFILE.read_text().splitlines() if line.startswith("FROM "))
STAND_IN = f"""
FROM scratch
COPY . /
ENV PATH={sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
HOME = "srv/multi-task-llm-api"
UID = 10001


def test_the_base_is_an_exact_version() -> None:
    """A digest, or a tag with every part of Python's version and Debian's name: no build changes by itself."""
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", BASE)


@dataclass(frozen=True)
class Engine:
    """buildah with a store of its own, without network, cgroups or a daemon."""

    program: str
    store: Path

    def command(self, *words: str) -> list[str]:
        """A buildah command."""
        places = ("--root", str(self.store / "root"), "--runroot", str(self.store / "run"))
        return [self.program, *places, "--storage-driver", "vfs", *words]

    def run(self, *words: str) -> str:
        """What a buildah command prints."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, dockerfile: Path, context: Path, tag: str) -> None:
        """Build an image from the files of `context`, with `docker build`'s options."""
        self.run(
            *("build", "--isolation", "chroot", "--format", "docker", "--pull-never", *mounts()),
            *("--file", str(dockerfile), "--tag", tag, str(context)),
        )


def mounts() -> list[str]:
    """What the stand-in for the base image borrows from this machine."""
    places = dict.fromkeys(["/usr", sys.base_prefix, sys.prefix])
    return [word for place in places for word in ("--volume", f"{place}:{place}:ro")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine that has the base image's stand-in."""
    program = shutil.which("buildah")
    if program is None:
        pytest.skip("buildah is not installed (Debian: apt-get install buildah)")
    if os.geteuid() != 0:
        pytest.skip("building without a daemon needs root here")
    folder = tmp_path_factory.mktemp("engine")
    base = folder / "base"
    for name in ("etc", "tmp", "proc", "sys", "dev", "usr"):
        (base / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (base / name).symlink_to(f"usr/{name}")
    (base / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (base / "etc" / "group").write_text("root:x:0:\n")
    (folder / "Dockerfile").write_text(STAND_IN)
    made = Engine(program, folder / "store")
    made.build(folder / "Dockerfile", base, f"docker.io/library/{BASE}")
    return made


@dataclass(frozen=True)
class Image:
    """What was built, as a container that has not run yet, and its root folder."""

    engine: Engine
    container: str
    root: Path
    config: dict[str, Any]

    def command(self, words: Sequence[str], port: int, **environment: str) -> list[str]:
        """Run `words` as a container would, on another port than 5000."""
        given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        moved = [word.replace("5000", str(port)) for word in words]
        found = ("/bin/sh", "-c", 'exec "$0" "$@"', *moved)  # buildah itself does not look along the image's PATH
        return self.engine.command("run", "--isolation", "chroot", *mounts(), *given, self.container, "--", *found)


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built where a developer has worked: with secrets, state and caches lying about."""
    context = tmp_path_factory.mktemp("context") / "project"
    shutil.copytree(PROJECT, context, ignore=shutil.ignore_patterns(".git", ".*_cache", "venv", ".venv"))
    for name in (".env", "data/ledger.sqlite3", "logs/api_requests.log", "cache/answers", "mtllm/__pycache__/old.pyc"):
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text("private")
    engine.build(context / "deploy" / "Dockerfile", context, "multi-task-llm-api")
    container = engine.run("from", "--pull-never", "multi-task-llm-api").strip()
    config = json.loads(engine.run("inspect", "--type", "image", "multi-task-llm-api"))["Docker"]["config"]
    return Image(engine, container, Path(engine.run("mount", container).strip()), config)


def test_the_image_starts_the_prescribed_command_and_not_as_root(image: Image) -> None:
    """With its health check, its volume, and SIGTERM to stop it."""
    assert image.config["Cmd"] == ["waitress-serve", "--host=0.0.0.0", "--port=5000", "--threads=4", "app:app"]
    assert image.config["User"] == str(UID)
    assert list(image.config["Volumes"]) == ["/state"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Healthcheck"]["Test"][0] == "CMD"


def test_the_image_holds_the_service_and_nothing_else(image: Image) -> None:
    """No tests, secrets, state, history or documents; and nothing of it belongs to the user that runs."""
    home = image.root / HOME
    assert {path.name for path in home.iterdir()} >= {"app.py", "mtllm", "prices.toml", "data"}
    held = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    assert not tracked or held <= set(tracked.split())
    assert not [name for name in held if re.match(r"tests/|benchmarks/|docs/|deploy/|test_|conftest|\.", name)]
    assert {path.stat().st_uid for path in home.rglob("*")} == {0}


@contextmanager
def started(image: Image, port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The image's command as a container runs it, and the process id of the service in it."""
    command = image.command(image.config["Cmd"], port, GOOGLE_API_KEY="AIza-test-key")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert eventually(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None, process.communicate()[0].decode()
            yield process, process_of(port)
        finally:
            for pid in processes_of(port):
                os.kill(pid, signal.SIGKILL)


def processes_of(port: int) -> list[int]:
    """The processes of waitress-serve at `port`, whoever started them."""
    needle = f"--port={port}\0".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:  # it has gone meanwhile
            continue
        if needle in words and b"python" in words.partition(b"\0")[0]:
            found.append(int(place.parent.name))
    return found


def process_of(port: int) -> int:
    """The one process that serves at `port`."""
    [pid] = processes_of(port)
    return pid


def test_what_was_built_serves_and_stops(image: Image) -> None:
    """As its own user, healthy by its own check, with its state in the volume; SIGTERM ends it with status 0."""
    port = free_port()
    check = image.command(image.config["Healthcheck"]["Test"][1:], port)
    with started(image, port) as (process, pid):
        for path in ("/health", "/api/v1/health/ready", "/dashboard", "/api/v1/openapi.json", "/swagger/"):
            assert get(port, path).status == 200
        assert Path(f"/proc/{pid}").stat().st_uid == UID
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        state = Path(f"/proc/{pid}/root/state")
        assert {path.name for path in state.iterdir()} >= {"data", "logs"}
        os.kill(pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0
