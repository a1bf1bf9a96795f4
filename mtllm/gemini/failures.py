"""What it means when a call to Gemini fails: error statuses with Google's error JSON, and exceptions of the network.

Everything here is total: whatever came back, the result is one UpstreamFailure whose sentence is ours. urllib3 is
imported when a failure needs it, so that the service starts without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any

from mtllm.domain.errors import (
    ModelUnavailable,
    Retry,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.gemini.deadlines import BoundedCall, Cut

MAX_WAIT_SECONDS = 3600.0
"""A longer wait asked for by Gemini counts as this: callers have been locked out for hours by absurd ones."""
DEFAULT_WAIT_SECONDS = 1.0
"""What a caller is told to wait when Gemini did not say."""


_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,18})?)(ms|s)")


def failure_of_status(status: object, body: bytes, headers: Mapping[str, str]) -> UpstreamFailure:
    """Return what a response with this status and Google's error JSON as its body means. No body makes it raise."""
    details = _error_details(body)
    wait = _requested_wait(details, headers)
    pause = DEFAULT_WAIT_SECONDS if wait is None else wait
    match status:
        case 429 if _is_daily(details):
            pause = MAX_WAIT_SECONDS if wait is None else wait
            return UpstreamUnavailable(wait=wait, retry_after=pause, breaks=True)
        case 429 | 503:
            return UpstreamUnavailable(retry=Retry.YES, wait=wait, retry_after=pause, breaks=True)
        case 504:
            return UpstreamTimeout(breaks=True)
        case int() if status >= 500:
            return UpstreamError(retry=Retry.ONCE, wait=wait, breaks=True)
        case 401 | 403:
            return UpstreamAuthFailed()
        case 404:
            return ModelUnavailable(
                "The configured model does not exist (any more); the operator must set GEMINI_MODEL to a live one, "
                "such as gemini-3.5-flash-lite."
            )
        case int() if 400 <= status < 500:
            return UpstreamAuthFailed() if _refuses_key(details) else UpstreamRejected()
        case _:
            return UpstreamInvalidAnswer("Gemini's endpoint did not answer as Gemini does.")


def _error_details(body: bytes) -> Sequence[Mapping[str, Any]]:
    """Return `details` of Google's error JSON, which comes in an array on streams."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    if isinstance(document, list):
        document = next(iter(document), None)
    return as_objects(as_object(as_object(document).get("error")).get("details"))


def failure_of_element(text: str) -> UpstreamFailure | None:
    """Return what an error document among the elements of a stream means; None for any other element.

    Deltas may have been passed on before it, so it is not sent again.
    """
    if '"error"' not in text or '"candidates"' in text:
        return None
    failure = failure_of_status(as_object(as_object(json.loads(text)).get("error")).get("code"), text.encode(), {})
    failure.retry, failure.maybe_billed = Retry.NEVER, True
    return failure


def as_object(value: object) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_objects(value: object) -> Sequence[Mapping[str, Any]]:
    """Return the objects in `value` if it is a JSON array, else none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()


def _requested_wait(details: Iterable[Mapping[str, Any]], headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Gemini asks for: RetryInfo, or the forms that were seen instead of it."""
    durations = [detail.get("retryDelay") for detail in details]
    durations += [as_object(detail.get("metadata")).get("quotaResetDelay") for detail in details]
    durations.append(f"{headers.get('Retry-After', '')}s")
    waits = [wait for duration in durations if (wait := parse_duration(duration)) is not None]
    return min(waits[0], MAX_WAIT_SECONDS) if waits else None


def _is_daily(details: Iterable[Mapping[str, Any]]) -> bool:
    violations = (violation for detail in details for violation in as_objects(detail.get("violations")))
    return any("PerDay" in str(violation.get("quotaId")) for violation in violations)


def _refuses_key(details: Iterable[Mapping[str, Any]]) -> bool:
    return any(str(detail.get("reason")).startswith("API_KEY_") for detail in details)


def parse_duration(text: object) -> float | None:
    """Return the seconds of a duration as Google writes it ("45.837906927s", "373.801628ms"), else None."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) and len(text) <= 40 else None
    if match is None:
        return None
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


@contextmanager
def translate_failures(call: BoundedCall, *, is_whole: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn whatever the SDK, requests or urllib3 raise inside into an UpstreamFailure.

    When `is_whole()` is true, the answer was complete before the failure, which is then dropped.
    """
    try:
        yield
    except Exception as cause:
        if isinstance(cause, UpstreamFailure):
            raise
        if not is_whole():
            raise _failure_of(call, cause) from cause


def _failure_of(call: BoundedCall, cause: Exception) -> UpstreamFailure:
    if call.cut_by is Cut.CANCEL:
        return UpstreamError("The call was cancelled.", maybe_billed=call.sent)
    if call.cut_by is Cut.DEADLINE or call.remaining <= 0:
        return UpstreamTimeout(breaks=True, maybe_billed=call.sent)
    if not call.sent:
        return UpstreamError("Gemini could not be reached.", retry=Retry.YES, breaks=True)
    if _is_garbage(cause) or (call.answered and not _is_loss(cause)):
        return UpstreamInvalidAnswer(maybe_billed=True)
    if call.answered:
        return UpstreamError("The connection to Gemini was lost in mid-answer.", breaks=True, maybe_billed=True)
    return UpstreamError(
        "The connection to Gemini was lost.",
        retry=Retry.YES,
        wait=0.0 if call.reused else None,  # it was closed while idle, most likely: nothing to wait for
        breaks=True,
        maybe_billed=not call.reused,
    )


def _is_garbage(error: BaseException) -> bool:
    """Did something come that is not HTTP?"""
    return any(
        isinstance(cause, HTTPException) and not isinstance(cause, (RemoteDisconnected, IncompleteRead))
        for cause in _causes(error)
    )


def _is_loss(error: BaseException) -> bool:
    """Did the connection end before the response did?"""
    from urllib3.exceptions import ProtocolError

    return isinstance(error, (OSError, ProtocolError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, and the errors it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
