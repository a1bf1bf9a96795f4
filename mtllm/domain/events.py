"""What can be logged: a finished request, or something that no single request caused."""

from __future__ import annotations

from dataclasses import dataclass

from mtllm.domain.findings import Finding

Fact = str | float | bool | None


@dataclass(slots=True)
class RequestEvent:
    """One finished request, as its edge saw it; every log line of the request is made from this.

    Times in seconds (`timestamp` since the epoch), money in nano-dollars. `cached` is None when there was no
    completion. `prompt` and `answer` are only references: the writer shows of them what LOG_PROMPTS allows; an `answer`
    in bytes is a JSON body, whose first value it is. `fault` is the exception behind a 500. `note` is a sentence for
    the operator, on the error line.
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
    answer: str | bytes | None = None
    findings: tuple[Finding, ...] = ()
    fault: BaseException | None = None
    note: str | None = None

    @property
    def is_error(self) -> bool:
        """Whether it belongs on the error log: a failure of anybody's, save a path that is not there.

        A stream that fails after its first byte has a code, and the status 200 that was sent before.
        """
        return (self.status >= 400 or self.code is not None) and self.status != 404


@dataclass(frozen=True, slots=True)
class Notice:
    """What no single request caused: the event's name, a sentence for the operator, and figures."""

    timestamp: float
    event: str
    message: str
    facts: tuple[tuple[str, Fact], ...]
