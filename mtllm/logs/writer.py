"""Five JSON-lines log files behind one object: what happened, without anything that must not be known.

    api_requests.log    one line per request              performance.log     one line per request: where the time went
    cost_tracking.log   one line per completion           api_errors.log      every 4xx and 5xx except 404; operations
    security_audit.log  findings, 401, 403

A request hands over one `RequestEvent` and goes on; a single thread encodes, redacts, writes and rotates. Nothing here
touches the `logging` module's loggers, and importing it starts nothing.
"""

from __future__ import annotations

import atexit
import os
import secrets as randomness
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from weakref import WeakMethod

from mtllm.domain.completion import StoredAnswer
from mtllm.domain.events import Fact, Operation, RequestEvent
from mtllm.logs.files import LogFile
from mtllm.logs.lines import (
    COSTS,
    ERRORS,
    PERFORMANCE,
    REQUESTS,
    SECURITY,
    Lines,
    PromptLogging,
    error_name,
    traceback_of,
)
from mtllm.security.redaction import redact

__all__ = ["FILES", "LogHealth", "PromptLogging", "RequestEvent", "RequestLogger", "redact"]

FILES: Final = (REQUESTS, PERFORMANCE, COSTS, ERRORS, SECURITY)

QUEUE_BYTES: Final = 16 * 1024 * 1024
EVENT_BYTES: Final = 1024  # what an event without words weighs in the queue, roughly
LINGER_SECONDS: Final = 0.1  # lines gather so long before they are written
BATCH: Final = 512  # events per write
CHUNK: Final = 32  # events encoded before other threads get the interpreter: about a fifth of a millisecond
PAUSE_SECONDS: Final = 0.0002
PROBE_SECONDS: Final = 5.0  # how often a failing file is tried while nothing happens
STUCK_SECONDS: Final = 5.0  # a write that takes longer counts as failing
SWEEP_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class LogHealth:
    """How the log files do. Counts are since this process started.

    `writable`: the last write succeeded (or none was tried). `queued`: events waiting. `dropped`: events that found the
    queue full. `failed_writes`: lines that a file did not take. `last_error`: its kind (`ENOSPC`), None once healed.
    """

    writable: bool
    queued: int
    dropped: int
    failed_writes: int
    last_error: str | None


class RequestLogger:
    """Writes the five files of `log_dir`, which is created when missing.

    `retention_days`: rotated files older than this go, at rotation and once a day. `prompts`: what of prompts and
    answers is shown (`off`: length and a hash keyed with `prompt_key`, random per process unless given). `secrets`:
    values that are masked wherever they turn up. `queue_bytes`: what waiting events may weigh; errors and findings may
    take a quarter more, and go to stderr past that. The writer thread starts with the first event, in every process.
    """

    def __init__(
        self,
        log_dir: str | Path = "logs",
        *,
        max_bytes: int = 10 * 1024 * 1024,
        backup_count: int = 5,
        retention_days: float = 90,
        prompts: PromptLogging = "off",
        slow_request_seconds: float = 5.0,
        secrets: tuple[str, ...] = (),
        prompt_key: bytes | None = None,
        queue_bytes: int = QUEUE_BYTES,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = Lines(prompts, slow_request_seconds, secrets, prompt_key or randomness.token_bytes(32))
        self._files = {
            name: LogFile(
                Path(log_dir) / name,
                max_bytes=max_bytes,
                backup_count=backup_count,
                retention_seconds=retention_days * 86_400,
                clock=clock,
            )
            for name in FILES
        }
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._begin()
        if hasattr(os, "register_at_fork"):
            begin_again = WeakMethod(self._begin_in_child)
            os.register_at_fork(after_in_child=lambda: (begin := begin_again()) and begin())

    def record(self, event: RequestEvent) -> None:
        """Take over one finished request. Never raises, never waits for a file."""
        answer = event.answer.body if isinstance(event.answer, StoredAnswer) else event.answer
        weight = EVENT_BYTES + len(event.prompt or "") + len(answer or "")
        self._put(event, weight, urgent=event.is_error or bool(event.findings))

    def operational(self, event: str, message: str, **facts: Fact) -> None:
        """Report what no single request caused (ledger trouble, a broken key file) on api_errors.log."""
        self._put(Operation(self._clock(), event, message, tuple(facts.items())), EVENT_BYTES, urgent=True)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or counted as lost; False when `timeout` seconds pass."""
        with self._state:
            wanted = self._accepted
            self._hurry.set()
            self._wake.set()
            return self._state.wait_for(lambda: self._done >= wanted, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Flush and end the writer. Later events are dropped and counted, errors and findings go to stderr."""
        with self._state:
            self._closed = True
            writer = self._writer
        self._hurry.set()
        self._wake.set()
        if writer is not None:
            writer.join(timeout)
        atexit.unregister(self.close)

    def health(self) -> LogHealth:
        """The figures that readiness and metrics show; costs no file access."""
        with self._state:
            stuck = self._busy_since is not None and self._monotonic() - self._busy_since > STUCK_SECONDS
            error = next(iter(self._failing.values()), "stuck" if stuck else None)
            waiting = self._accepted - self._done
            return LogHealth(error is None, waiting, self._dropped, self._failed_writes, error)

    # The caller's side

    def _begin(self) -> None:
        self._state = threading.Condition(threading.Lock())
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._queue: deque[RequestEvent | Operation] = deque()
        self._weight = self._accepted = self._done = self._dropped = self._failed_writes = 0
        self._failing: dict[str, str] = {}
        self._busy_since: float | None = None
        self._next_sweep = 0.0
        self._writer: threading.Thread | None = None
        self._closed = False

    def _begin_in_child(self) -> None:
        """After a fork: the parent's events are the parent's, and its files share their locks with ours."""
        for file in self._files.values():
            file.close()
        self._begin()

    def _put(self, event: RequestEvent | Operation, weight: int, *, urgent: bool) -> None:
        room = self._queue_bytes + self._queue_bytes // 4 if urgent else self._queue_bytes
        with self._state:
            accepted = not self._closed and self._weight + weight <= room
            if accepted:
                self._queue.append(event)
                self._weight += weight
                self._accepted += 1
                if self._writer is None:
                    self._start()
            else:
                self._dropped += 1
        if accepted and not self._wake.is_set():
            self._wake.set()
        elif urgent and not accepted:
            for name, line in self._encoded(event):
                _tell_stderr(name, line)

    def _start(self) -> None:
        writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
        with suppress(RuntimeError):  # no thread to be had now; the next event tries again
            writer.start()
            self._writer = writer
            atexit.register(self.close)

    # The writer's side

    def _run(self) -> None:
        for name in FILES:
            self._tried(name, self._files[name].create)  # whoever follows a file finds it from the first event on
        while not (self._closed and not self._queue):
            self._wake.wait(PROBE_SECONDS if self._failing else max(1.0, self._next_sweep - self._monotonic()))
            self._hurry.wait(LINGER_SECONDS)
            self._hurry.clear()
            self._wake.clear()
            self._drain()
        for file in self._files.values():
            file.close()

    def _drain(self) -> None:
        with self._state:
            events, self._queue, self._weight = self._queue, deque(), 0
            self._busy_since = self._monotonic()
        self._tend()
        while events:
            batch = min(BATCH, len(events))
            self._write(self._pages(events, batch))
            with self._state:
                self._done += batch
                self._busy_since = self._monotonic()
                self._state.notify_all()
        with self._state:
            self._busy_since = None

    def _pages(self, events: deque[RequestEvent | Operation], count: int) -> dict[str, list[str]]:
        pages: dict[str, list[str]] = defaultdict(list)
        for n in range(1, count + 1):
            for name, line in self._encoded(events.popleft()):
                pages[name].append(line)
            if n % CHUNK == 0:
                time.sleep(PAUSE_SECONDS)
        return pages

    def _encoded(self, event: RequestEvent | Operation) -> list[tuple[str, str]]:
        try:
            return self._lines.of(event)
        except Exception as error:  # one event that defies its types must not end the log
            fault = traceback_of(error, with_messages=False) or ""
            lost = Operation(self._clock(), "event_unreadable", "An event could not be logged.", (("fault", fault),))
            return self._lines.of(lost)

    def _write(self, pages: dict[str, list[str]]) -> None:
        for name, lines in pages.items():
            if not self._tried(name, partial(self._files[name].append, "".join(lines).encode("ascii"))):
                self._lost(name, lines)

    def _tend(self) -> None:
        """Try the files that failed, so that they heal without traffic, and delete what is past its retention."""
        for name in tuple(self._failing):
            self._tried(name, self._files[name].probe)
        if self._monotonic() >= self._next_sweep:
            self._next_sweep = self._monotonic() + SWEEP_SECONDS
            for file in self._files.values():
                file.sweep()

    def _tried(self, name: str, work: Callable[[], None]) -> bool:
        """Whether the file did what was asked of it; if not, it counts as failing until it does."""
        error = None
        try:
            work()
        except OSError as refused:
            error = error_name(refused) or type(refused).__name__
        with self._state:
            if error is None:
                self._failing.pop(name, None)
            else:
                self._failing[name] = error
        return error is None

    def _lost(self, name: str, lines: list[str]) -> None:
        with self._state:
            self._failed_writes += len(lines)
        for line in lines:
            _tell_stderr(name, line)


def _tell_stderr(name: str, line: str) -> None:
    """The overflow of the two files whose lines matter most; what stderr does not take is gone."""
    if name in (ERRORS, SECURITY) and sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line)
