"""Five JSON-lines log files behind one object: what happened, without anything that must not be known.

    api_requests.log    one line per request              performance.log     one line per request: where the time went
    cost_tracking.log   one line per completion           api_errors.log      every 4xx and 5xx except 404; operations
    security_audit.log  findings, 401, 403

A request hands over one `RequestEvent` and goes on; a single thread encodes, redacts, writes and rotates. Nothing here
touches the `logging` module's loggers, and importing it starts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from security import Finding

PromptLogging = Literal["off", "preview", "full"]


@dataclass(slots=True)
class RequestEvent:
    """One finished request, as its edge saw it; every log line of the request is made from this.

    Times in seconds (`timestamp` since the epoch), money in nano-dollars. `cached` is None when there was no completion.
    `prompt` and `answer` are only references: the writer shows of them what LOG_PROMPTS allows. `fault` is the
    exception behind a 500. `note` is a sentence for the operator, on the error line.
    """

    request_id: str
    timestamp: float
    client: str = "-"
    method: str = "-"
    path: str = "-"
    status: int = 200
    duration: float = 0.0
    code: str | None = None
    trace_id: str | None = None
    user_agent: str | None = None
    task: str | None = None
    model: str | None = None
    cached: bool | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_cost: int = 0
    output_cost: int = 0
    total_cost: int = 0
    saved: int = 0
    attempts: int = 0
    queue_seconds: float = 0.0
    upstream_seconds: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    prompt: str | None = None
    answer: str | None = None
    findings: tuple[Finding, ...] = ()
    fault: BaseException | None = None
    note: str | None = None


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
    """Writes the five files of `log_dir`, which is created when missing."""

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
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None: ...

    def record(self, event: RequestEvent) -> None:
        """Take over one finished request. Never raises, never waits for a file."""

    def operational(self, event: str, message: str, **facts: str | float | bool | None) -> None:
        """Report what no single request caused (ledger trouble, a broken key file) on api_errors.log."""

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was recorded before is written or counted as lost; False when `timeout` seconds pass."""
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Flush and end the writer. Later events are dropped and counted, errors and findings go to stderr."""

    def health(self) -> LogHealth:
        """The figures that readiness and metrics show; costs no file access."""
        return LogHealth(True, 0, 0, 0, None)


def redact(text: str) -> str:
    """`text` with everything masked that looks like a key, token, cookie or password; linear in its length."""
    return text
