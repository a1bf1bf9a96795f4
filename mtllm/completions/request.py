"""One request on its way through the flow, and how its work ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mtllm.domain.caller import Caller
from mtllm.domain.completion import CacheControl, Completion, Origin
from mtllm.domain.errors import ApiError, wrap_defect
from mtllm.domain.money import NOTHING, Receipt
from mtllm.tasks import Job

ANSWER_GRACE_SECONDS = 0.1
"""A call is ended at its deadline; its caller waits so much longer for the settlement."""


@dataclass(slots=True)
class CompletionRequest:
    """One request: its job, caller and deadline (monotonic seconds), and the receipt of its attempts so far.

    `key` is the answer's key in the cache. `receipt` is written by the thread that makes the attempts; the one that
    waits for them may read it at any time.
    """

    job: Job
    caller: Caller
    cache_control: CacheControl
    key: bytes
    deadline: float
    receipt: Receipt = NOTHING


def run_to_completion(request: CompletionRequest, work: Callable[[], Completion]) -> Completion:
    """Run `work` and return how it ended.

    From here on an error is a value: several threads may wait for it, and none raises another's exception.
    """
    try:
        return work()
    except ApiError as error:
        return Completion(Origin.PAID, request.receipt, error=error)
    except Exception as defect:  # a result is owed whatever happens; the log gets the cause
        return Completion(Origin.PAID, request.receipt, error=wrap_defect(defect))
