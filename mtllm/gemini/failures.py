"""What it means when a call to Gemini fails: error statuses with Google's error JSON, and exceptions of the network.

Everything here is total: whatever came back, the result is one UpstreamFailure whose sentence is ours. urllib3 is
imported when a failure needs it, so that the service starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any

from mtllm.domain.errors import (
    Draining,
    ModelUnavailable,
    QuotaExhausted,
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
from mtllm.gemini.documents import as_objects, error_in
from mtllm.gemini.waits import MAX_WAIT_SECONDS, is_daily, is_hopeless, requested_wait

DEFAULT_WAIT_SECONDS = 1.0
"""What a caller is told to wait when Gemini did not say."""
STALE_SECONDS = 1.0
"""A kept-alive connection that was closed while idle shows that within this time; later something else happened."""

_FIXED_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{1,127}")


def failure_of_status(status: object, body: bytes, headers: Mapping[str, str]) -> UpstreamFailure:
    """Return what a response with this status and Google's error JSON as its body means. No body makes it raise."""
    return failure_of_error(status, error_in(body), headers)


def failure_of_error(status: object, error: Mapping[str, Any], headers: Mapping[str, str]) -> UpstreamFailure:
    """Return what a status means together with the `error` of Google's JSON and the response's headers."""
    failure = _failure_by_status(status, error, requested_wait(error, headers))
    failure.cause_words = _fixed_words(status, error)
    return failure


def _failure_by_status(status: object, error: Mapping[str, Any], wait: float | None) -> UpstreamFailure:
    pause = DEFAULT_WAIT_SECONDS if wait is None else wait
    match status:
        case 429 if is_hopeless(error):
            return QuotaExhausted(
                "Gemini serves this key no more until its owner has looked at quota and balance.", breaks=True
            )
        case 429 if is_daily(error):
            pause = MAX_WAIT_SECONDS if wait is None else wait
            return QuotaExhausted(wait=wait, retry_after=pause, breaks=True)
        case 429 | 503:
            return UpstreamUnavailable(retry=Retry.YES, wait=wait, retry_after=pause, breaks=True)
        case 408:
            return UpstreamTimeout(retry=Retry.YES, breaks=True)
        case 504:
            return UpstreamTimeout(breaks=True)
        case int() if status >= 500:
            return UpstreamError(retry=Retry.ONCE, wait=wait, breaks=True)
        case 401 | 403:
            return UpstreamAuthFailed()
        case 404:
            return ModelUnavailable()
        case int() if 400 <= status < 500:
            return _failure_of_request(error)
        case _:
            return UpstreamInvalidAnswer("Gemini's endpoint did not answer as Gemini does.")


def _failure_of_request(error: Mapping[str, Any]) -> UpstreamFailure:
    if any(str(detail.get("reason")).startswith("API_KEY_") for detail in as_objects(error.get("details"))):
        return UpstreamAuthFailed()
    if error.get("status") == "FAILED_PRECONDITION":
        return UpstreamRejected(
            "Gemini does not serve this service's region or account; its operator must look at the key's project."
        )
    return UpstreamRejected()


def _fixed_words(status: object, error: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the number and Google's fixed words of a refusal, which quote nobody: status, reason, quota."""
    details = as_objects(error.get("details"))
    words: list[object] = [error.get("status"), *(detail.get("reason") for detail in details)]
    words += [item.get("quotaId") for detail in details for item in as_objects(detail.get("violations"))]
    fixed = (word for word in words if isinstance(word, str) and _FIXED_WORD.fullmatch(word))
    return tuple(dict.fromkeys((str(status), *fixed)))


@contextmanager
def translate_failures(call: BoundedCall) -> Iterator[None]:
    """Turn whatever the SDK, requests or urllib3 raise inside into an UpstreamFailure."""
    try:
        yield
    except UpstreamFailure:
        raise
    except Exception as cause:
        if call.cut_by is Cut.CANCEL:
            # Whoever cancelled knows better why: the service, or a client.
            raise Draining(maybe_billed=call.sent) from cause
        failure = _failure_of(call, cause)
        failure.cause_words = tuple(dict.fromkeys(type(error).__name__ for error in _causes(cause)))[:4]
        raise failure from cause


def _failure_of(call: BoundedCall, cause: Exception) -> UpstreamFailure:
    if call.cut_by is Cut.DEADLINE or call.remaining <= 0:
        return UpstreamTimeout(breaks=True, maybe_billed=call.sent)
    if not call.sent:
        return UpstreamError("Gemini could not be reached.", retry=Retry.YES, breaks=True)
    if _is_garbage(cause) or (call.answered and not _is_loss(cause)):
        return UpstreamInvalidAnswer(maybe_billed=True)
    if call.answered:
        return UpstreamError("The connection to Gemini was lost in mid-answer.", breaks=True, maybe_billed=True)
    was_stale = call.reused and call.seconds_sent < STALE_SECONDS  # closed while idle, most likely
    return UpstreamError(
        "The connection to Gemini was lost.",
        retry=Retry.AT_ONCE if was_stale else Retry.YES,
        breaks=True,
        maybe_billed=not was_stale,
    )


def _is_garbage(error: BaseException) -> bool:
    """Return whether something came that is not HTTP."""
    return any(
        isinstance(cause, HTTPException) and not isinstance(cause, (RemoteDisconnected, IncompleteRead))
        for cause in _causes(error)
    )


def _is_loss(error: BaseException) -> bool:
    """Return whether the connection ended before the response did."""
    from urllib3.exceptions import ProtocolError

    return isinstance(error, (OSError, ProtocolError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, and the errors it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
