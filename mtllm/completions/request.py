"""One request on its way through the flow, and how its work ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mtllm.domain.caller import Caller
from mtllm.domain.completion import CacheControl, Completion, Origin, Route
from mtllm.domain.errors import ApiError, wrap_defect
from mtllm.domain.money import NOTHING, Receipt
from mtllm.tasks import Job

ANSWER_GRACE_SECONDS = 0.1
"""A call is ended at its deadline; its caller waits so much longer for the settlement."""


@dataclass(slots=True)
class CompletionRequest:
    """One request: its job, caller and deadline (monotonic seconds), its route, and the receipt of its attempts so far.

    `key` is the key, in the cache, of the answer that comes by `route`; both change when the next model is asked.
    `receipt` is written by the thread that makes the attempts; the one that waits for them may read it at any time.
    """

    job: Job
    caller: Caller
    cache_control: CacheControl
    deadline: float
    route: Route
    key: bytes
    receipt: Receipt = NOTHING
    flight_key: bytes = field(init=False)
    """The key under which identical requests find each other: that of the first model."""

    def __post_init__(self) -> None:
        self.flight_key = self.key


@dataclass(frozen=True, slots=True)
class AnswerKeys:
    """Makes the keys of answers in the cache.

    `key_scoped`: each API key has answers of its own. `endpoint` is the server that answers, empty for Google's.
    """

    key_scoped: bool = False
    endpoint: str = ""

    def of(self, job: Job, caller: Caller, route: Route) -> bytes:
        """Return the key of the answer to `job` that comes by `route`."""
        scope = (caller.key or caller.client) if self.key_scoped else ""
        return job.key(route.model, scope, self.endpoint, terms=route.terms)


def run_to_completion(request: CompletionRequest, work: Callable[[], Completion]) -> Completion:
    """Run `work` and return how it ended.

    From here on an error is a value: several threads may wait for it, and none raises another's exception.
    """
    try:
        return work()
    except ApiError as error:
        return Completion(Origin.PAID, request.receipt, error=error, route=request.route)
    except Exception as defect:  # a result is owed whatever happens; the log gets the cause
        return Completion(Origin.PAID, request.receipt, error=wrap_defect(defect), route=request.route)
