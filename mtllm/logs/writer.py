"""Five JSON-lines log files behind one object: what happened, without anything that must not be known.

    api_requests.log    one line per request              performance.log     one line per request: where the time went
    cost_tracking.log   one line per completion           api_errors.log      every 4xx and 5xx except 404; notices
    security_audit.log  findings, 401, 403

A request hands over one `RequestEvent` and goes on; a single thread encodes, redacts, writes and rotates. Nothing here
touches the `logging` module's loggers, and importing it starts nothing.
"""

from __future__ import annotations

import atexit
import os
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
from mtllm.domain.events import Fact, Notice, RequestEvent
from mtllm.logs.files import BACKUP_COUNT, MAX_BYTES
from mtllm.logs.folder import FILES, LogFolder, tell_stderr
from mtllm.logs.lines import Lines, PromptLogging, traceback_of
from mtllm.logs.queue import EVENT_BYTES, QUEUE_BYTES, EventQueue, LogEvent
from mtllm.security.redaction import redact

__all__ = ["FILES", "LogHealth", "PromptLogging", "RequestEvent", "RequestLogger", "redact"]

LINGER_SECONDS: Final = 0.1  # lines gather so long before they are written
BATCH: Final = 512  # events per write
CHUNK: Final = 32  # events encoded before other threads get the interpreter: about a fifth of a millisecond
PAUSE_SECONDS: Final = 0.0002
STUCK_SECONDS: Final = 5.0  # a write that takes longer counts as failing


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
        max_bytes: int = MAX_BYTES,
        backup_count: int = BACKUP_COUNT,
        retention_days: float = 90,
        prompts: PromptLogging = "off",
        slow_request_seconds: float = 5.0,
        secrets: tuple[str, ...] = (),
        prompt_key: bytes | None = None,
        queue_bytes: int = QUEUE_BYTES,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = Lines(prompts, slow_request_seconds, secrets, prompt_key)
        self._open_folder = partial(
            LogFolder,
            Path(log_dir),
            max_bytes=max_bytes,
            backup_count=backup_count,
            retention_seconds=retention_days * 86_400,
            clock=clock,
            monotonic=monotonic,
        )
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_calling(WeakMethod(self._begin_again)))

    def record(self, event: RequestEvent) -> None:
        """Take over one finished request. Never raises, never waits for a file."""
        answer = event.answer.body if isinstance(event.answer, StoredAnswer) else event.answer
        weight = EVENT_BYTES + len(event.prompt or "") + len(answer or "")
        self._put(event, weight, urgent=event.is_error or bool(event.findings))

    def operational(self, event: str, message: str, **facts: Fact) -> None:
        """Write a notice of what no single request caused (ledger trouble, a broken key file) to api_errors.log."""
        self._put(Notice(self._clock(), event, message, tuple(facts.items())), EVENT_BYTES, urgent=True)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or counted as lost; False when `timeout` seconds pass."""
        self._hurry.set()
        self._wake.set()
        return self._queue.wait_until_done(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Flush and end the writer. Later events are dropped and counted, errors and findings go to stderr."""
        with self._starting:
            self._queue.close()
            writer = self._writer
        self._hurry.set()
        self._wake.set()
        if writer is not None:
            writer.join(timeout)
        atexit.unregister(self.close)

    def health(self) -> LogHealth:
        """Return the figures that readiness and metrics show; costs no file access."""
        queued, dropped = self._queue.counts()
        error, failed_writes = self._folder.failures()
        busy_since = self._busy_since
        if error is None and busy_since is not None and self._monotonic() - busy_since > STUCK_SECONDS:
            error = "stuck"
        return LogHealth(error is None, queued, dropped, failed_writes, error)

    def _begin(self) -> None:
        self._folder = self._open_folder()
        self._queue = EventQueue(self._queue_bytes)
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._writer: threading.Thread | None = None
        self._busy_since: float | None = None

    def _begin_again(self) -> None:
        """Start afresh in a forked child: the parent's events are the parent's, and its files share their locks."""
        self._folder.close()
        self._begin()

    # The caller's side

    def _put(self, event: LogEvent, weight: int, *, urgent: bool) -> None:
        if self._queue.put(event, weight, urgent=urgent):
            if self._writer is None:
                self._start_writer()
            if not self._wake.is_set():
                self._wake.set()
        elif urgent:
            for name, line in self._encode(event):
                tell_stderr(name, [line])

    def _start_writer(self) -> None:
        with self._starting:
            if self._writer is None:
                writer = threading.Thread(target=self._run, name="log-writer", daemon=True)
                with suppress(RuntimeError):  # no thread to be had now; the next event tries again
                    writer.start()
                    self._writer = writer
                    atexit.register(self.close)

    # The writer's side

    def _run(self) -> None:
        self._folder.create()
        while not self._queue.is_finished:
            self._wake.wait(self._folder.seconds_until_due())
            self._hurry.wait(LINGER_SECONDS)
            self._hurry.clear()
            self._wake.clear()
            self._drain()
        self._folder.close()

    def _drain(self) -> None:
        events = self._queue.take_all()
        self._busy_since = self._monotonic()
        self._folder.tend()
        while events:
            batch = min(BATCH, len(events))
            self._folder.write(self._pages(events, batch))
            self._queue.mark_done(batch)
            self._busy_since = self._monotonic()
        self._busy_since = None

    def _pages(self, events: deque[LogEvent], count: int) -> dict[str, list[str]]:
        """Return the lines of the next `count` events by file name."""
        pages: dict[str, list[str]] = defaultdict(list)
        for number in range(1, count + 1):
            for name, line in self._encode(events.popleft()):
                pages[name].append(line)
            if number % CHUNK == 0:
                time.sleep(PAUSE_SECONDS)
        return pages

    def _encode(self, event: LogEvent) -> list[tuple[str, str]]:
        try:
            return self._lines.of(event)
        except Exception as error:  # one event that defies its types must not end the log
            fault = traceback_of(error, with_messages=False) or ""
            lost = Notice(self._clock(), "event_unreadable", "An event could not be logged.", (("fault", fault),))
            return self._lines.of(lost)


def _calling(method: WeakMethod[Callable[[], None]]) -> Callable[[], None]:
    """Return a function that calls `method` as long as its object exists."""

    def call() -> None:
        bound = method()
        if bound is not None:
            bound()

    return call
