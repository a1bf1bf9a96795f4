"""Everything that can go wrong, as one small tree. Each error knows its status, code, sentence and headers.

    ApiError
    ├── InvalidJson, InvalidRequest                                  400
    ├── Unauthorized 401, BudgetExceeded 402, Forbidden 403
    ├── NotFound, MethodNotAllowed, PayloadTooLarge, UnsupportedMediaType
    ├── ContentBlocked, MaxOutputTokensTooSmall                      422
    ├── RateLimited 429, InternalError 500
    ├── Abandoned 499, NotCached 504
    ├── Unavailable                                                  503
    │   ├── Overloaded, Draining, LedgerUnavailable, NotConfigured
    └── UpstreamFailure                                              Gemini's part in it
        ├── UpstreamError, UpstreamRejected, UpstreamInvalidAnswer, UpstreamAuthFailed, ModelUnavailable   502
        ├── UpstreamUnavailable, QuotaExhausted                  503
        └── UpstreamTimeout 504

A message is written for the caller of the API and is safe to show: it never holds a key, a prompt, a path or text that
came from Gemini.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

MAX_REPORTED_FIELDS = 20
"""Bad fields that one answer names at most."""
MAX_FIELD_NAME_CHARS = 100
"""Characters that an answer repeats of a field's name at most."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field of a request body: its name (dotted for nested ones) and what is wrong with it.

    `foreign`: the name is none of ours, so it may hold anything and goes to the caller alone, not into a log.
    """

    field: str
    message: str
    foreign: bool = False


class ApiError(Exception):
    """An answer that is not a success.

    `retry_after` is in seconds (fractions allowed); the header is whole seconds, rounded up, at least 1 (RFC 9110,
    section 10.2.3).
    """

    status: ClassVar[int]
    code: ClassVar[str]
    sentence: ClassVar[str]

    def __init__(
        self,
        sentence: str | None = None,
        *,
        retry_after: float | None = None,
        details: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(sentence or self.sentence)
        self.retry_after = retry_after
        self.details = details

    @property
    def message(self) -> str:
        """Return the sentence shown to the caller."""
        return str(self.args[0])

    def __str__(self) -> str:
        """Return the sentence and the details, for those who call from Python."""
        return " ".join((self.message, *(f"{detail.field}: {detail.message}." for detail in self.details)))

    def headers(self) -> Mapping[str, str]:
        """Return the headers of this error, beside those of every response."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, ceil(self.retry_after)))}


class InvalidJson(ApiError):
    """The body is not JSON."""

    status, code = 400, "invalid_json"
    sentence = "The request body is not valid JSON."


class InvalidRequest(ApiError):
    """The body is JSON but not what the endpoint takes; `details` names each bad field."""

    status, code = 400, "invalid_request"
    sentence = "The request is not valid; see details."


class Unauthorized(ApiError):
    """No API key, or one that is not known."""

    status, code = 401, "unauthorized"
    sentence = "An API key is required: send it as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'."


class BudgetExceeded(ApiError):
    """The budget of the day or the month cannot cover this request's upper bound.

    `details`: scope ("service" or "key"); period ("day" or "month"); limit, spent, reserved and needed in dollars;
    helps, what would.
    """

    status, code = 402, "budget_exceeded"
    sentence = "The budget cannot cover this request."


class Forbidden(ApiError):
    """A valid key that may not do this, no admin key configured, or a blocked path."""

    status, code = 403, "forbidden"
    sentence = "This is not allowed."


class NotFound(ApiError):
    """No such path."""

    status, code = 404, "not_found"
    sentence = "There is nothing at this path; GET /api/v1/openapi.json lists the endpoints."


class MethodNotAllowed(ApiError):
    """The path exists, the method does not; `allow` lists those that do."""

    status, code = 405, "method_not_allowed"
    sentence = "This method is not allowed here; the Allow header lists those that are."

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.allow = allow

    def headers(self) -> Mapping[str, str]:
        """Return `Allow` (RFC 9110, section 10.2.1)."""
        return {"Allow": ", ".join(sorted(self.allow))}


class PayloadTooLarge(ApiError):
    """The body is longer than MAX_REQUEST_BYTES."""

    status, code = 413, "payload_too_large"
    sentence = "The request body is too large."


class UnsupportedMediaType(ApiError):
    """The body is not declared as JSON."""

    status, code = 415, "unsupported_media_type"
    sentence = "The request body must be sent as Content-Type: application/json in UTF-8."


class UnsupportedEncoding(UnsupportedMediaType):
    """The body is compressed in a way that is not read here."""

    sentence = "The request body must be plain, or have Content-Encoding gzip or deflate."

    def headers(self) -> Mapping[str, str]:
        """Return `Accept-Encoding`, what a body may be sent in (RFC 9110, section 12.5.3)."""
        return {"Accept-Encoding": "gzip, deflate, identity"}


class ContentBlocked(ApiError):
    """Gemini refused the prompt or its own answer (SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT, SPII, ...)."""

    status, code = 422, "content_blocked"
    sentence = "Gemini refused to answer this."


class MaxOutputTokensTooSmall(ApiError):
    """The token limit was used up before any text came (thinking counts)."""

    status, code = 422, "max_output_tokens_too_small"
    sentence = "The answer had no text within max_output_tokens; raise it."


class RateLimited(ApiError):
    """The client has used up one of its windows."""

    status, code = 429, "rate_limited"
    sentence = "Too many requests; Retry-After says when the next one is admitted."


class InternalError(ApiError):
    """A defect of ours. The log has the traceback under the request id."""

    status, code = 500, "internal_error"
    sentence = "Something went wrong on our side; the request id identifies it in our logs."


class Abandoned(ApiError):
    """The client went away before its answer was complete. It is for log and ledger; `maybe_billed` as below."""

    status, code = 499, "abandoned"
    sentence = "The client went away before the answer was complete."

    def __init__(self, *, maybe_billed: bool = False) -> None:
        super().__init__()
        self.maybe_billed = maybe_billed


class NotCached(ApiError):
    """`Cache-Control: only-if-cached` and nothing stored (RFC 9111, section 5.2.1.7)."""

    status, code = 504, "not_cached"
    sentence = "No stored answer matches, and only-if-cached forbids asking Gemini."


class Unavailable(ApiError):
    """We cannot serve this now."""

    status = 503

    def __init__(self, sentence: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(sentence, retry_after=retry_after)


class Overloaded(Unavailable):
    """All places for calls to Gemini are taken (load shedding)."""

    code = "overloaded"
    sentence = "All places for calls to Gemini are taken; try again shortly."


class Draining(Unavailable):
    """The service is shutting down. `maybe_billed`: it has cut a call to Gemini for that."""

    code = "draining"
    sentence = "The service is shutting down; another instance will take the request."

    def __init__(self, sentence: str | None = None, *, retry_after: float = 1.0, maybe_billed: bool = False) -> None:
        super().__init__(sentence, retry_after=retry_after)
        self.maybe_billed = maybe_billed


class LedgerUnavailable(Unavailable):
    """The ledger cannot be written, so nothing that costs money is done."""

    code = "ledger_unavailable"
    sentence = "The ledger cannot be written, so no paid request is made; stored answers are still served."


class NotConfigured(Unavailable):
    """A setting is missing; the sentence names it."""

    code = "not_configured"
    sentence = "No Gemini key is configured: set GOOGLE_API_KEY, or start with --offline."

    def __init__(self, sentence: str | None = None, *, retry_after: float = 60.0) -> None:
        super().__init__(sentence, retry_after=retry_after)


class Retry(enum.Enum):
    """Says whether the same call may be sent again after a failure."""

    NEVER = "never"
    ONCE = "once"
    YES = "yes"
    AT_ONCE = "at once"
    """Yes, without a pause: what failed was our old connection."""


class UpstreamFailure(ApiError):
    """A failure on the way to Gemini or at Gemini.

    `retry`: may the call be repeated. `wait`: the seconds Gemini asked us to wait (RetryInfo), if it did.
    `breaks`: counts towards the circuit breaker (connection, 5xx, 429, time-out; not a bad request).
    `maybe_billed`: the request was sent and its end is unknown, so Gemini may charge for it.
    `cause_words`: the upstream status and Google's fixed words, or the kinds of the network's errors, for the log; they
    quote nobody.
    """

    retry: Retry
    breaks: bool
    cause_words: tuple[str, ...] = ()

    def __init__(
        self,
        sentence: str | None = None,
        *,
        retry: Retry = Retry.NEVER,
        wait: float | None = None,
        breaks: bool = False,
        maybe_billed: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence, retry_after=retry_after)
        self.retry = retry
        self.wait = wait
        self.breaks = breaks
        self.maybe_billed = maybe_billed


class UpstreamError(UpstreamFailure):
    """Gemini failed (5xx), or the connection to it did."""

    status, code = 502, "upstream_error"
    sentence = "Gemini failed to answer."


class UpstreamRejected(UpstreamFailure):
    """Gemini calls our request invalid."""

    status, code = 502, "upstream_rejected"
    sentence = "Gemini rejected the request as invalid."


class UpstreamInvalidAnswer(UpstreamFailure):
    """Gemini's answer is empty, unreadable, or a label outside the list."""

    status, code = 502, "upstream_invalid_answer"
    sentence = "Gemini's answer could not be used."


class UpstreamAuthFailed(UpstreamFailure):
    """Gemini refused our key."""

    status, code = 502, "upstream_auth_failed"
    sentence = "Gemini refused this service's key; its operator must check GOOGLE_API_KEY."


class ModelUnavailable(UpstreamFailure):
    """A model is unknown, retired, or closed to this key."""

    status, code = 502, "model_unavailable"
    sentence = "The model is not served (any more); the operator must set GEMINI_MODEL to a live one."


class UpstreamUnavailable(UpstreamFailure):
    """Gemini is over quota or overloaded after retries, or the circuit breaker is open."""

    status, code = 503, "upstream_unavailable"
    sentence = "Gemini is not available at the moment."


class QuotaExhausted(UpstreamUnavailable):
    """A day's quota or the balance is used up: waiting a moment does not help."""


class UpstreamTimeout(UpstreamFailure):
    """Gemini did not answer within GEMINI_TIMEOUT_SECONDS."""

    status, code = 504, "upstream_timeout"
    sentence = "Gemini did not answer in time."


def may_be_billed(failure: BaseException) -> bool:
    """Return whether Gemini may charge for a call that ended with `failure`; of a defect of ours nobody knows."""
    return failure.maybe_billed if isinstance(failure, UpstreamFailure | Abandoned | Draining) else True


def wrap_defect(defect: Exception) -> InternalError:
    """Return the error that a client gets for a defect of ours, which stays its cause for the log."""
    error = InternalError()
    error.__cause__ = defect
    return error
