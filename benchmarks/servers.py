"""The processes under measurement: the service, the floor and the emulator, each with a core, a port and a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mtllm.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
KEY = "the-secret-that-the-benchmark-sends"
ADMIN_KEY = "the-secret-of-the-benchmark-s-admin"
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server and the load run on; None where they cannot be told apart."""

    server: int | None
    load: int | None

    @classmethod
    def found(cls) -> Cores:
        """The first two cores of this process; none of them when there is but one, or no way to choose."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


CORES = Cores.found()


def pinned(process: subprocess.Popen[bytes], core: int | None) -> subprocess.Popen[bytes]:
    """`process`, from now on on `core`, with every thread that it is still to start."""
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server process that answers at `port`; use it in a `with` statement, which waits until it is healthy."""

    def __init__(
        self,
        arguments: Sequence[str],
        port: int,
        *,
        environ: Mapping[str, str] | None = None,
        core: int | None = CORES.server,
        healthy_path: str = "/health",
        folder: Path = PROJECT,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.seconds_to_healthy = 0.0
        self._command = [sys.executable, *arguments]
        self._environ = dict(_plain_environ() if environ is None else environ)
        self._core = core
        self._healthy_path = healthy_path
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the server is stopped

    def __enter__(self) -> Self:
        started = time.perf_counter()
        process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environ, stdout=subprocess.DEVNULL, stderr=self._complaints
        )
        self._process = pinned(process, self._core)
        try:
            self._wait_until_healthy(started + START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_healthy = time.perf_counter() - started
        return self

    def __exit__(self, *_exc_info: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def cpu_seconds(self) -> float:
        """The processor time that it has taken so far, of all its threads; 0.0 where /proc does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Its resident memory in MB (10^6 bytes); 0.0 where /proc does not tell."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _wait_until_healthy(self, deadline: float) -> None:
        assert self._process is not None
        while self._process.poll() is None and time.perf_counter() < deadline:
            if answers(self.port, self._healthy_path):
                return
            time.sleep(0.001)
        self._complaints.seek(0)
        said = self._complaints.read()[-1000:].decode(errors="replace")
        raise RuntimeError(
            f"{' '.join(self._command[1:])} did not become healthy (exit {self._process.poll()}): {said}"
        )


def answers(port: int, path: str) -> bool:
    """Whether a server there answers a GET of `path` with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(4096)[9:12] == b"200"
    except OSError:
        return False


def floor(threads: int = 4, *, upstream: Server | None = None) -> Server:
    """Bare Flask; see `benchmarks.floor`."""
    port = free_port()
    gemini = [] if upstream is None else [f"--gemini={upstream.url}"]
    return Server(["-m", "benchmarks.floor", f"--port={port}", f"--threads={threads}", *gemini], port)


def emulator(latency_ms: float = 0) -> Server:
    """Gemini's stand-in, on the core of the load: it belongs to the world outside."""
    port = free_port()
    arguments = ["-m", "mtllm.emulator", f"--port={port}", f"--latency={latency_ms / 1000}"]
    return Server(arguments, port, core=CORES.load, healthy_path="/v1beta/models?key=benchmark")


@contextmanager
def service(
    upstream: Server,
    *,
    threads: int | None = None,
    offline: bool = False,
    checkout: Path = PROJECT,
    **settings: str,
) -> Iterator[Server]:
    """The service with everything on and limits that nobody reaches, with state of its own.

    With `threads` under `waitress-serve --threads=N app:app`, else under `python app.py`; that of another `checkout`
    too.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mtllm-benchmark-") as folder:
        environ = _plain_environ() | everything_on(Path(folder), upstream.url) | settings | {"PORT": str(port)}
        with Server(_command(port, threads, offline=offline), port, environ=environ, folder=checkout) as server:
            yield server


def _command(port: int, threads: int | None, *, offline: bool) -> list[str]:
    if threads is None:
        return ["app.py", *(["--offline"] if offline else [])]
    believe = "--no-clear-untrusted-proxy-headers"
    return ["-m", "waitress", f"--listen=127.0.0.1:{port}", f"--threads={threads}", believe, "app:app"]


def everything_on(folder: Path, gemini: str) -> dict[str, str]:
    """Settings under which every feature works and no request of a benchmark is refused."""
    return {
        "GOOGLE_API_KEY": "benchmark",
        "GEMINI_API_ENDPOINT": gemini,
        "API_KEYS": f"benchmark:{KEY},another:{KEY}-2",
        "ADMIN_API_KEY": ADMIN_KEY,
        "RATE_LIMITS": "100000000/minute;100000000/hour",
        "RESPONSE_CACHE_TTL_SECONDS": "86400",
        "LEDGER_SYNC": "full",
        "LOG_DIR": str(folder / "logs"),
        "CACHE_DIR": str(folder / "cache"),
        "DATA_DIR": str(folder / "data"),
    }


def _plain_environ() -> dict[str, str]:
    """This process's environment without any setting of the service's."""
    settings = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name not in settings}


def read(url: str) -> bytes:
    """What a GET brings."""
    with urllib.request.urlopen(url, timeout=START_SECONDS) as response:
        body: bytes = response.read()
        return body
