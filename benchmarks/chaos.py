"""A soak: the service against a Gemini that misbehaves at random, with `kill -9` of either side.

python -m benchmarks.chaos --minutes 30          --seconds 30 for a short one; --seed to repeat one

The time is divided into rounds, each one life of the service: warm-up, a rest in which its memory is measured, load
with a `kill -9` of Gemini in the middle, a rest in which it is measured again, and `kill -9` under load (SIGTERM in the
last round). Everything stays on the loopback. It fails when one of these does not hold:

- no answer is a 500, and none is outside the contract
- no plain answer comes later than GEMINI_TIMEOUT_SECONDS and `--slack` (0.3 s is promised; the rest is for a machine
  that runs three busy processes on two cores), no stream later than STREAM_MAX_SECONDS and that
- money adds up: the ledger has a row for each call that Gemini counted; what a caller was told is what the rows of its
  request add up to, and what all were told is no more than the ledger's total
- within a life, memory after the load is within 5 MB of that before, with no more threads or descriptors
  than are kept for later
- the service that is told to stop leaves with status 0
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random

from benchmarks.servers import PROJECT, answers, free_port
from mtllm.ledger.ledger import ExportRow, open_ledger
from mtllm.settings import Settings

TEXT = "/api/v1/generate/text"
CLIENTS, PLACES = 10, 6
DEADLINE, LONGEST_STREAM = 1.0, 2.0
SLACK = 1.0
PATIENCE_SECONDS = 30.0
REST_SECONDS, KILL_AFTER_SECONDS = DEADLINE + 0.5, 0.5
MEGABYTES = 5.0
EXPECTED = {200, 422, 502, 503, 504}
LOST = 0
"""The status of a request whose connection ended without an answer; that is right while the service is killed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended, as its caller saw it. `told`: its cost in nano-dollars, None when the end was not seen."""

    request_id: str
    prompt: str
    status: int
    code: str | None
    streamed: bool
    seconds: float
    told: int | None
    disturbed: bool
    """The service was being killed when it ended."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process takes of the machine."""

    megabytes: float
    threads: int
    descriptors: int


@dataclass(slots=True)
class Report:
    """What happened, and what should not have."""

    outcomes: list[Outcome] = field(default_factory=list)
    lives: list[tuple[Vitals, Vitals]] = field(default_factory=list)
    calls: int = 0
    told: int = 0
    booked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a person."""
        seen = Counter(f"{outcome.status} {outcome.code or ''}".strip() for outcome in self.outcomes)
        yield f"requests  {len(self.outcomes)}: " + ", ".join(f"{name} x {count}" for name, count in seen.most_common())
        yield f"slowest   plain {self._slowest(streamed=False):.2f} s, stream {self._slowest(streamed=True):.2f} s"
        yield f"calls     {self.calls} counted by Gemini; attempts in the ledger: {dict(self.statuses.most_common())}"
        yield f"money     {self.told} nano-dollars told, {self.booked} booked"
        for before, after in self.lives:
            yield f"a life    {before} -> {after}"
        yield from (f"VIOLATED  {violation}" for violation in self.violations)
        yield "all invariants hold" if not self.violations else f"{len(self.violations)} violations"

    def _slowest(self, *, streamed: bool) -> float:
        return max((each.seconds for each in self.outcomes if each.streamed is streamed), default=0.0)


class Child:
    """A process that can be killed and started again at the same port."""

    def __init__(self, arguments: Sequence[str], port: int, healthy: str, environ: Mapping[str, str]) -> None:
        self.port = port
        self._command = [sys.executable, *arguments]
        self._healthy = healthy
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            self._command, cwd=PROJECT, env=dict(self._environ), stdout=quiet, stderr=quiet
        )
        deadline = time.monotonic() + 60
        while not answers(self.port, self._healthy):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command[1]} does not start")
            time.sleep(0.02)

    def kill(self) -> None:
        """`kill -9`; harmless when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def vitals(self) -> Vitals:
        """As /proc tells it."""
        assert self._process is not None
        proc = Path(f"/proc/{self._process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return Vitals(
            round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
            threads=len(list((proc / "task").iterdir())),
            descriptors=len(list((proc / "fd").iterdir())),
        )


class Crowd:
    """Clients that ask without end: new prompts and known ones, plain and streamed; some leave in mid-stream."""

    def __init__(self, port: int, seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self.service_dies = False
        self._port = port
        self._random = Random(seed)
        self._numbers = iter(range(1_000_000_000))
        self._lock = threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask while the block runs; each client's last request is finished after it."""
        enough = threading.Event()
        threads = [threading.Thread(target=self._ask_on, args=(enough,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            for thread in threads:
                thread.join()

    def _ask_on(self, enough: threading.Event) -> None:
        while not enough.is_set():
            outcome = self._ask()
            with self._lock:
                self.outcomes.append(outcome)
            if outcome.status in (LOST, 503):
                enough.wait(0.05)

    def _ask(self) -> Outcome:
        with self._lock:
            number = next(self._numbers)
            prompt = f"question {number if self._random.random() < 0.7 else self._random.randrange(number + 1)}"
            streamed, leaves = self._random.random() < 0.4, self._random.random() < 0.1
        request_id, begun = f"chaos-{number}", time.monotonic()
        try:
            status, code, told = self._exchange(prompt, request_id, streamed=streamed, leaves=leaves)
        except (OSError, HTTPException, ValueError, IndexError):
            status, code, told = LOST, None, None
        seconds = time.monotonic() - begun
        return Outcome(request_id, prompt, status, code, streamed, seconds, told, disturbed=self.service_dies)

    def _exchange(
        self, prompt: str, request_id: str, *, streamed: bool, leaves: bool
    ) -> tuple[int, str | None, int | None]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Content-Type": "application/json", "X-Request-ID": request_id}
        try:
            connection.request("POST", TEXT, json.dumps({"prompt": prompt, "stream": streamed}), headers)
            response = connection.getresponse()
            if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
                code = json.loads(response.read()).get("code")
                return response.status, code, int(response.headers["X-Cost-Nanodollars"])
            if leaves:
                response.readline()
                response.close()
                return response.status, "left", None
            name, data = response.read().decode().rstrip().rsplit("event: ", 1)[1].split("\ndata: ")
            end = json.loads(data)
            return (200, None, end["cost"]["nanodollars"]) if name == "done" else (200, end["code"], None)
        finally:
            connection.close()


def soak(seconds: float, *, seed: int = 1, slack: float = SLACK) -> Report:
    """Run for about so long; see the module for what it checks."""
    with tempfile.TemporaryDirectory(prefix="mtllm-chaos-") as name:
        folder = Path(name)
        gemini, service = _children(folder, seed)
        crowd, report = Crowd(service.port, seed), Report()
        report.outcomes = crowd.outcomes
        rounds = max(2, int(seconds // 60))
        try:
            gemini.start()
            for number in range(rounds):
                _life(service, gemini, crowd, report, seconds / rounds, last=number == rounds - 1)
        finally:
            service.kill()
            gemini.kill()
        _check_answers(report, slack)
        _check_money(report, _rows(folder), (folder / "calls.txt").read_text().splitlines())
    return report


def _children(folder: Path, seed: int) -> tuple[Child, Child]:
    gemini_port, port = free_port(), free_port()
    settings = {name.upper() for name in Settings.model_fields}
    plain = {name: value for name, value in os.environ.items() if name not in settings}
    misbehave = ["-m", "benchmarks.chaos_gemini", f"--port={gemini_port}", f"--seed={seed}"]
    environ = {
        "GOOGLE_API_KEY": "chaos",
        "GEMINI_API_ENDPOINT": f"http://127.0.0.1:{gemini_port}",
        "GEMINI_TIMEOUT_SECONDS": f"{DEADLINE}",
        "GEMINI_MAX_CONCURRENCY": f"{PLACES}",
        "STREAM_MAX_SECONDS": f"{LONGEST_STREAM}",
        "RESPONSE_CACHE_SIZE": "100",
        "RATE_LIMITS": "",
        "DRAIN_SECONDS": "5",
        "THREADS": "16",
        "PORT": f"{port}",
        **{f"{kind.upper()}_DIR": str(folder / kind) for kind in ("log", "cache", "data")},
    }
    return (
        Child([*misbehave, f"--calls={folder / 'calls.txt'}"], gemini_port, "/v1beta/models?key=chaos", plain),
        Child(["app.py"], port, "/health", plain | environ),
    )


def _life(service: Child, gemini: Child, crowd: Crowd, report: Report, seconds: float, *, last: bool) -> None:
    """One round: see the module."""
    ends = time.monotonic() + seconds
    service.start()
    met = len(crowd.outcomes)
    with crowd.asking():
        time.sleep(max(1.0, (ends - time.monotonic()) * 0.4))
        patience = time.monotonic() + PATIENCE_SECONDS
        while not any(outcome.told for outcome in crowd.outcomes[met:]) and time.monotonic() < patience:
            time.sleep(0.1)  # the first paid answer loads what is to stay
    before = _at_rest(service)
    with crowd.asking():
        time.sleep(max(1.0, (ends - time.monotonic()) * 0.4))
        gemini.kill()
        gemini.start()
        time.sleep(max(1.0, ends - time.monotonic() - REST_SECONDS - KILL_AFTER_SECONDS))
    after = _at_rest(service)
    report.lives.append((before, after))
    report.violations.extend(_grown(before, after))
    if last:
        if (status := service.stop()) != 0:
            report.violations.append(f"exit status {status} after SIGTERM")
        return
    with crowd.asking():
        time.sleep(KILL_AFTER_SECONDS)
        crowd.service_dies = True
        service.kill()
    crowd.service_dies = False


def _at_rest(service: Child) -> Vitals:
    """Once no call is under way, and connections that were closed are gone."""
    time.sleep(REST_SECONDS)
    return service.vitals()


def _grown(before: Vitals, after: Vitals) -> Iterator[str]:
    if abs(after.megabytes - before.megabytes) > MEGABYTES:
        yield f"memory went from {before.megabytes} to {after.megabytes} MB"
    if after.threads > before.threads + PLACES:  # a thread is started when it is first needed, and then kept
        yield f"threads grew from {before.threads} to {after.threads}"
    if after.descriptors > before.descriptors + PLACES:  # connections to Gemini that are kept for the next call
        yield f"descriptors grew from {before.descriptors} to {after.descriptors}"


def _check_answers(report: Report, slack: float) -> None:
    for outcome in report.outcomes:
        limit = (LONGEST_STREAM if outcome.streamed else DEADLINE) + slack
        if outcome.seconds > limit and not outcome.disturbed:
            report.violations.append(f"{outcome.request_id} took {outcome.seconds:.2f} s")
        lost = outcome.status == LOST and outcome.disturbed
        if not lost and (outcome.status not in EXPECTED or outcome.code == "internal_error"):
            report.violations.append(f"{outcome.request_id} got {outcome.status} {outcome.code}")


def _check_money(report: Report, rows: Sequence[ExportRow], calls: Sequence[str]) -> None:
    attempts = [row for row in rows if not row.cached]
    cost: Counter[str] = Counter()
    booked: Counter[str] = Counter()
    asked = defaultdict(set)
    for row in attempts:
        cost[row.request_id] += row.total_cost
        booked[row.request_id] += 1
    for outcome in report.outcomes:
        asked[outcome.prompt].add(outcome.request_id)
        if outcome.told is None:
            continue
        report.told += outcome.told
        if outcome.told != cost[outcome.request_id] and (
            outcome.status == 200 or outcome.told > cost[outcome.request_id]
        ):
            report.violations.append(f"{outcome.request_id} was told {outcome.told}, booked {cost[outcome.request_id]}")
    for prompt, count in Counter(calls).items():
        if count > (entered := sum(booked[request_id] for request_id in asked[prompt])):
            report.violations.append(f"Gemini counted {count} calls of {prompt}, the ledger {entered}")
    report.calls, report.booked = len(calls), sum(cost.values())
    report.statuses.update(row.status for row in attempts)
    if report.told > report.booked:
        report.violations.append(f"told {report.told}, booked {report.booked}")


def _rows(folder: Path) -> list[ExportRow]:
    ledger = open_ledger(folder / "data" / "ledger.sqlite3")
    try:
        return list(ledger.export(0, time.time() + 86_400))
    finally:
        ledger.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, tell, and return 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=5.0)
    length.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slack", type=float, default=SLACK, help=f"seconds past a deadline (default: {SLACK})")
    options = parser.parse_args(arguments)
    report = soak(options.seconds or 60 * options.minutes, seed=options.seed, slack=options.slack)
    print("\n".join(report.lines()))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
