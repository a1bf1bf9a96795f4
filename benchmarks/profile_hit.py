"""Where the microseconds of a hit go, part by part, without a socket.

    python -m benchmarks.profile_hit [--seconds 10] [--functions 25]

The application is called as a server would call it, one request after the other in one thread, with everything on. A
timer interrupts it 2,000 times a second; each time, the innermost function of the project on the stack gets the sample,
with what it calls outside the project (Flask, pydantic, the standard library). Shares of samples times processor time
per request are microseconds. What the writers of logs and ledger take, in threads of their own, is read from their
threads' clocks. Bare Flask is called in the same way for comparison. The one part of the server's work that depends on
the application, writing the headers that it names, is timed apart.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import inf
from pathlib import Path
from timeit import repeat
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

from waitress.task import Task

from app import Api, create_app
from benchmarks import floor
from benchmarks.hits import HIT
from benchmarks.load import Request
from benchmarks.servers import PROJECT, everything_on
from mtllm.emulator import Emulator
from mtllm.settings import load_settings

SAMPLE_SECONDS = 0.0005
WARM_UP_CALLS = 2000
CALLS_A_TURN = 50
HEADS_A_TURN = 200

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Place = tuple[str, str]
"""A part and, within it, a function."""


@contextmanager
def warm_app() -> Iterator[Api]:
    """The service with everything on, and the answer to `HIT` in its cache."""
    with tempfile.TemporaryDirectory(prefix="mtllm-profile-") as folder, Emulator() as emulator:
        app = create_app(load_settings(everything_on(Path(folder), emulator.url), env_file=None))
        try:
            call(app, environ_of(HIT))
            yield app
        finally:
            app.service.close()


def environ_of(request: Request) -> dict[str, Any]:
    """What waitress hands an application for `request`, without what belongs to the connection."""
    body = (request.body or "").encode()
    return {
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_HOST": "127.0.0.1",
        "REMOTE_PORT": "40000",
        "REQUEST_METHOD": request.method,
        "SERVER_PORT": "5000",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_SOFTWARE": "waitress",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "REQUEST_URI": request.path,
        "QUERY_STRING": "",
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.errors": None,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "HTTP_HOST": "127.0.0.1:5000",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "body": body,
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()},
    }


def call(app: Wsgi, environ: dict[str, Any]) -> list[tuple[str, str]]:
    """One request and its whole answer, of which the headers are handed on; raises RuntimeError unless it is a 200."""
    heads: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        heads.append((status, headers))

    body = app({**environ, "wsgi.input": BytesIO(environ["body"])}, start_response)
    try:
        answer = b"".join(body)
    finally:
        getattr(body, "close", lambda: None)()
    status, headers = heads[-1]
    if status != "200 OK":
        raise RuntimeError(f"{status}: {answer!r}")
    return headers


def written_micros(headers: list[tuple[str, str]]) -> float:
    """What waitress takes to write these headers."""
    request: Any = SimpleNamespace(version="1.1", headers={})
    channel: Any = SimpleNamespace(server=SimpleNamespace(adj=SimpleNamespace(ident="mtllm")))

    def write() -> None:
        task: Any = Task(channel, request)
        task.response_headers = headers
        task.build_response_header()

    return min(repeat(write, number=HEADS_A_TURN, repeat=9)) / HEADS_A_TURN * 1e6


def calls_for(seconds: float, app: Wsgi, environ: dict[str, Any]) -> int:
    """Call for so long; how often."""
    until, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        call(app, environ)
        count += 1
    return count


class Sampler:
    """Interrupts this (the main) thread at a fixed rate and counts where it was. Use it in a `with` statement."""

    def __init__(self) -> None:
        self.places: Counter[Place] = Counter()
        self._known: dict[CodeType, str | None] = {}

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGALRM, self._sample)
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_SECONDS, SAMPLE_SECONDS)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _sample(self, _signal: int, innermost: FrameType | None) -> None:
        frame = innermost
        while frame is not None and innermost is not None:
            module = self._module(frame.f_code)
            if module is not None:
                self.places[_place(module, frame.f_code, innermost.f_code)] += 1
                return
            frame = frame.f_back

    def _module(self, code: CodeType) -> str | None:
        if code not in self._known:
            file = Path(code.co_filename)
            ours = file.is_relative_to(PROJECT) and "site-packages" not in file.parts
            self._known[code] = str(file.relative_to(PROJECT)) if ours else None
        return self._known[code]


def _place(module: str, ours: CodeType, innermost: CodeType) -> Place:
    """app.py is told by function, apart from what Flask takes below it; lru_cache.py, which serves two, by class."""
    function = ours.co_qualname
    if module == "app.py" and innermost is not ours:
        return f"Flask below app.py {function}", f"{Path(innermost.co_filename).stem}.{innermost.co_qualname}"
    if module == "app.py":
        return f"app.py {function}", function
    if module == "lru_cache.py":
        return f"lru_cache.py {function.partition('.')[0]}", function
    return ("the loop itself" if module.startswith("benchmarks/") else module), function


def writers_cpu() -> dict[str, float]:
    """Processor seconds so far of every thread but this one, by name."""
    here = threading.current_thread()
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread is not here and thread.ident is not None
    }


def lines(seconds: float, functions: int) -> Iterator[str]:
    """The report."""
    bare, asked = floor.create_app(), environ_of(Request(floor.PATH, HIT.body))
    with warm_app() as app:
        hit = environ_of(HIT)
        for _ in range(WARM_UP_CALLS):
            call(app, hit)
            call(bare, asked)
        floor_micros, hit_micros = _in_turn(seconds / 2, (bare, asked), (app, hit))
        before = writers_cpu()
        with Sampler() as sampler:
            count = calls_for(seconds, app, hit)
        app.service.logger.flush()
        after = writers_cpu()
        heads = [(side, call(*asking)) for side, asking in (("bare Flask", (bare, asked)), ("hit", (app, hit)))]
    yield _told("bare Flask, in process", floor_micros)
    yield _told("hit, in the request's thread", hit_micros) + f" ({floor_micros / hit_micros:.2f} of the floor)"
    for side, headers in heads:
        yield _told(f"{side}, waitress writing its {len(headers)} headers", written_micros(headers))
    for name in sorted(set(before) & set(after)):
        micros = (after[name] - before[name]) / count * 1e6
        if micros > 0.05:
            yield _told(f"hit, in thread {name}", micros)
    scale = Scale(sampler.places.total(), hit_micros, floor_micros)
    yield from _ranked("part", sampler.places, scale, lambda place: place[0], 100)
    yield from _ranked("function", sampler.places, scale, lambda place: f"{place[0]}: {place[1]}", functions)


def _told(what: str, micros: float) -> str:
    return f"{what:<45}{micros:5.1f} µs"


def _in_turn(seconds: float, *sides: tuple[Wsgi, dict[str, Any]]) -> list[float]:
    """Processor microseconds per call of each side: the least of many short turns, which other work disturbs least."""
    until, least = time.perf_counter() + seconds, [inf] * len(sides)
    while time.perf_counter() < until:
        for number, (app, environ) in enumerate(sides):
            before = time.thread_time()
            for _ in range(CALLS_A_TURN):
                call(app, environ)
            least[number] = min(least[number], (time.thread_time() - before) / CALLS_A_TURN * 1e6)
    return least


@dataclass(frozen=True, slots=True)
class Scale:
    """What makes microseconds of samples: all of them, and microseconds per hit and per call of the floor."""

    samples: int
    hit_micros: float
    floor_micros: float


def _ranked(
    heading: str, places: Counter[Place], scale: Scale, name: Callable[[Place], str], most: int
) -> Iterator[str]:
    grouped: Counter[str] = Counter()
    for place, samples in places.items():
        grouped[name(place)] += samples
    yield f"\n    µs  % of floor  {heading}"
    for named, samples in grouped.most_common(most):
        micros = samples / scale.samples * scale.hit_micros
        yield f"{micros:6.1f}  {micros / scale.floor_micros * 100:10.1f}  {named}"


def main(arguments: list[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_hit", description="Where a hit's time goes.")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to sample (default: 10)")
    parser.add_argument("--functions", type=int, default=25, help="functions to list (default: 25)")
    options = parser.parse_args(arguments)
    for line in lines(options.seconds, options.functions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
