"""Events for the logs: a finished request, or an operation that no single request caused."""

from __future__ import annotations

from dataclasses import dataclass

from mtllm.domain.completion import FallbackReason, Origin, StoredAnswer
from mtllm.domain.errors import FieldError
from mtllm.domain.findings import Finding
from mtllm.domain.money import NO_AMOUNT, Amount

Fact = str | float | bool | None


@dataclass(slots=True)
class RequestEvent:
    """One finished request; every log line of the request is made from this.

    Times in seconds (`timestamp` since the epoch), money in nano-dollars. `cached` is None when there was no
    completion. `amount`: what all attempts together used and cost. `prompt` and `answer` are only references: the
    writer shows of them what LOG_PROMPTS allows. `fault` is the exception behind a 500. `note` is a sentence for the
    operator, on the error line.
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
    requested_model: str | None = None
    fallback: FallbackReason | None = None
    """Why another model answered than the one that was asked for."""
    cached: bool | None = None
    origin: Origin = Origin.NONE
    amount: Amount = NO_AMOUNT
    saved: int = 0
    attempts: int = 0
    queue_seconds: float = 0.0
    upstream_seconds: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    prompt: str | None = None
    answer: StoredAnswer | str | None = None
    findings: tuple[Finding, ...] = ()
    fault: BaseException | None = None
    note: str | None = None
    upstream: tuple[str, ...] = ()
    """Why Gemini failed, in fixed words that quote nobody."""
    details: tuple[FieldError, ...] = ()
    """The bad fields of a refused request."""

    @property
    def is_error(self) -> bool:
        """Return whether the event belongs on the error log: any failure but an unknown path.

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
