"""The bodies and headers of responses, in words and types; the OpenAPI document is made of them.

The models of figures also render them: /stats and /api/v1/usage send what these models hold. Answers of tasks, errors
and stream events are rendered where they arise, and tests hold them against the models here, key by key.

Loading this module takes a while, so only those who need a model import it, at their first request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, create_model

from mtllm.domain.completion import FallbackReason, FinishReason, Origin
from mtllm.domain.periods import Period
from mtllm.ledger.ledger import GroupBy
from mtllm.resilience.breaker import State
from mtllm.stats.body import ResponseBody
from mtllm.tasks import Task

_SIX_DECIMALS = r"^[0-9]+\.[0-9]{6}$"


class DescribedBody(ResponseBody):
    """A body whose fields are described by the strings below them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


# Tasks ----------------------------------------------------------------------------------------------------------------


class TokensUsed(DescribedBody):
    """Tokens of one answer."""

    input_tokens: int = Field(ge=0)
    """Tokens of the prompt, those from Gemini's context cache included."""
    output_tokens: int = Field(ge=0)
    """Tokens of the answer, thinking included."""
    source: Literal["gemini", "tiktoken"]
    """Who counted: Gemini as a rule; tiktoken estimates when Gemini reported nothing."""
    thinking_tokens: int = Field(0, ge=0)
    """Those of the output that went into thoughts; left out where there were none."""


class Answered(DescribedBody):
    """What every answer of a task has beside the answer itself."""

    model: str
    """The model that answered."""
    finish_reason: FinishReason
    """`max_tokens`: the answer was cut at max_output_tokens."""
    usage: TokensUsed
    estimated: bool = False
    """True where the tokens are tiktoken's estimate; left out otherwise."""
    unpriced: bool = False
    """True where the model has no known price, so that the costs show 0; left out otherwise."""
    ignored: tuple[str, ...] = ()
    """Fields of the request that this model does not use, such as `temperature`; left out where there are none."""


class CostAhead(DescribedBody):
    """What a request would cost, in dollars."""

    input: float = Field(ge=0)
    output_max: float = Field(ge=0)
    total_max: float = Field(ge=0)
    nanodollars_max: int = Field(ge=0)
    """The total in billionths of a dollar."""


class BudgetAhead(DescribedBody):
    """The budget with the least room, in dollars."""

    scope: Literal["service", "key"]
    period: Period
    limit: float = Field(ge=0)
    spent: float = Field(ge=0)
    reserved: float = Field(ge=0)
    fits: bool
    """The request's upper bound could be reserved now."""


class DryRunAnswer(DescribedBody):
    """What a request with `dry_run` would cost at most. Nothing was asked, stored or reserved."""

    dry_run: Literal[True]
    model: str
    """The model that would answer."""
    cached: bool
    """The answer is stored, so it would cost nothing."""
    input_tokens: int = Field(ge=0)
    source: Literal["gemini", "tiktoken"]
    """Who counted the input: Gemini's countTokens, which is free, or tiktoken's estimate."""
    max_output_tokens: int = Field(ge=1)
    """The most that the answer may have, thoughts included."""
    cost: CostAhead
    budget: BudgetAhead | None
    """null where the caller has none."""
    unpriced: bool = False
    """True where the model has no known price; left out otherwise."""


class StreamCost(DescribedBody):
    """What a streamed answer cost: its headers could not say."""

    input: str = Field(pattern=_SIX_DECIMALS)
    """Dollars, as in X-Cost-Input."""
    output: str = Field(pattern=_SIX_DECIMALS)
    """Dollars, as in X-Cost-Output."""
    total: str = Field(pattern=_SIX_DECIMALS)
    """Dollars, as in X-Cost-Total."""
    nanodollars: int = Field(ge=0)
    """The exact total in billionths of a dollar."""


class StreamDelta(DescribedBody):
    """Data of the unnamed events: the next piece of the answer, as Gemini wrote it."""

    delta: str


def task_answer(task: Task) -> type[DescribedBody]:
    """Return the model of the body of a 200 of `task`."""
    kind: Any = Any if task.answers_json else str
    answer: Any = (kind, Field(description=f"The result: {task.summary[0].lower()}{task.summary[1:]}."))
    return create_model(
        _name(task, "Response"),
        __base__=Answered,
        __doc__=f"Answer of POST {task.path}.",
        **{task.answer_field: answer},
    )


def stream_end(task: Task) -> type[DescribedBody]:
    """Return the model of the data of `event: done`, with which a stream of `task` ends."""
    return create_model(
        _name(task, "StreamEnd"),
        __base__=task_answer(task),
        __doc__=f"Data of `event: done`: the whole answer of POST {task.path}, and its cost.",
        cost=(StreamCost, ...),
        cached=(bool, ...),
        request_id=(str, ...),
    )


def _name(task: Task, suffix: str) -> str:
    return task.request_model.__name__.removesuffix("Request") + suffix


# Errors ---------------------------------------------------------------------------------------------------------------


class FieldProblem(DescribedBody):
    """One bad field of a request."""

    field: str
    """Its name, dotted for nested ones (`categories.0`)."""
    message: str


class Error(DescribedBody):
    """Body of every error."""

    error: str
    """A sentence for a person. It may change; programs look at `code`."""
    code: str
    """A constant for programs."""
    request_id: str
    """The same as X-Request-ID; log lines carry it."""
    details: list[FieldProblem] = Field(default_factory=list)
    """The bad fields of an `invalid_request`; left out otherwise."""


# Figures --------------------------------------------------------------------------------------------------------------


class TokenSums(DescribedBody):
    """Tokens of paid calls."""

    input: int = Field(ge=0)
    output: int = Field(ge=0)


class CacheFigures(DescribedBody):
    """The response cache of this process."""

    size: int = Field(ge=0)
    """Answers kept."""
    max_size: int = Field(ge=1)
    """Answers kept at most (RESPONSE_CACHE_SIZE)."""
    bytes: int = Field(ge=0)
    """Memory that the kept answers take."""
    max_bytes: int | None
    """Memory that they may take (RESPONSE_CACHE_MAX_BYTES)."""
    hits: int = Field(ge=0)
    """Requests since the start that were answered from the cache or by an identical request in flight."""
    misses: int = Field(ge=0)
    """Requests since the start that were not."""
    evictions: int = Field(ge=0)
    """Answers that had to go for others since the start."""
    expirations: int = Field(ge=0)
    """Answers that were found past their time since the start."""
    hit_ratio: float = Field(ge=0, le=1)
    """hits / (hits + misses), 0 before the first request."""
    cache_hit_ratio: float = Field(ge=0, le=1)
    """The same as hit_ratio."""


class WindowFigures(DescribedBody):
    """What the ledger has of the last hours, in whole minutes, at most one too many."""

    period_hours: int
    total_requests: int = Field(ge=0)
    """Answers given, those from the cache included."""
    cached_requests: int = Field(ge=0)
    """Answers that cost nothing: from the cache or shared with an identical request in flight."""
    total_cost: float = Field(ge=0)
    """Dollars paid."""
    cost_savings_from_cache: float = Field(ge=0)
    """Dollars that the cached answers would have cost."""
    total_tokens: TokenSums


class Windows(DescribedBody):
    """Usage in three windows that end now."""

    last_hour: WindowFigures
    last_24_hours: WindowFigures
    last_30_days: WindowFigures


class LimitFigures(DescribedBody):
    """One window."""

    requests: int = Field(ge=1)
    """Requests admitted in any so many seconds."""
    seconds: int = Field(ge=1)


class LimiterFigures(DescribedBody):
    """The table of rate-limited clients of this process."""

    cache_size: int = Field(ge=0)
    """Clients in the table."""
    max_size: int = Field(ge=1)
    """Clients that it remembers at most (RATE_LIMIT_CACHE_SIZE)."""
    limits: list[LimitFigures]
    """The windows of callers without limits of their own (RATE_LIMITS)."""
    protected: int = Field(ge=0)
    """Clients that are, or just were, at a limit."""
    rejected: int = Field(ge=0)
    """Requests answered with 429 since the start."""


class AllTimeFigures(DescribedBody):
    """Sums that survive restarts, from the ledger, over all its processes."""

    total_requests_all_time: int = Field(ge=0)
    """Answers given, those from the cache included."""
    cached_requests_all_time: int = Field(ge=0)
    """Answers that cost nothing."""
    total_cost_all_time: float = Field(ge=0)
    """Dollars paid."""
    total_tokens_all_time: TokenSums
    cache_savings_all_time: float = Field(ge=0)
    """Dollars that the cached answers would have cost."""
    unpriced_requests_all_time: int = Field(ge=0)
    """Paid calls to models without a known price; their cost shows 0."""
    total_cost_since_start: float = Field(ge=0)
    """Dollars paid since this process started, as in X-Cost-Overall."""


class TaskFigures(DescribedBody):
    """Finished requests of one task since the start."""

    paid: int = Field(ge=0)
    """Answered by Gemini."""
    hit: int = Field(ge=0)
    """Answered from the cache."""
    shared: int = Field(ge=0)
    """Answered by an identical request in flight."""
    stale: int = Field(ge=0)
    """Answered by an expired answer while Gemini failed."""
    errors: dict[str, int]
    """By code."""


class Percentiles(DescribedBody):
    """Of the last 1000 requests at most, in milliseconds."""

    samples: int = Field(ge=0)
    p50_ms: float = Field(ge=0)
    p95_ms: float = Field(ge=0)
    p99_ms: float = Field(ge=0)
    max_ms: float = Field(ge=0)


class LatencyFigures(DescribedBody):
    """How long requests took."""

    hit: Percentiles
    """Answered without Gemini."""
    miss: Percentiles
    """Those that waited for Gemini."""
    own: Percentiles
    """Our own share: without Gemini and queue."""


class EstimateFigures(DescribedBody):
    """Our estimates, which stand in where Gemini reports no tokens, beside its counts where it does."""

    samples: int = Field(ge=0)
    """Calls compared."""
    input_ratio: float | None
    """Estimate over report; null before the first."""
    output_ratio: float | None
    """Estimate over report; null before the first."""
    dropped: int = Field(ge=0)
    """Calls not compared, for lack of time."""


class BudgetFigures(DescribedBody):
    """A budget in its present day or month, in dollars."""

    limit: float = Field(ge=0)
    spent: float = Field(ge=0)
    reserved: float = Field(ge=0)
    """Upper bounds of calls that are not settled, or of which Gemini may bill more than is known."""


class BudgetPace(BudgetFigures):
    """A budget of the service, and how long it lasts."""

    ends_at: str = Field(json_schema_extra={"format": "date-time"})
    """When its day or month ends."""
    used_up_at: str | None
    """When it is used up at the pace of its day or month so far; null where that is not before its end."""


class NextPrice(DescribedBody):
    """A price that is dated in the future."""

    since: str = Field(json_schema_extra={"format": "date"})
    """Its first day (UTC)."""
    input_price: float
    """Dollars per million tokens."""
    output_price: float


class ModelFigures(DescribedBody):
    """One model of the chain."""

    model: str
    answers: bool
    """A request that names no model is answered by this one."""
    refusal: str | None
    """Why it does not answer, as far as looks and calls have told."""
    input_price: float | None
    """Dollars per million tokens today; null where no price is known."""
    output_price: float | None
    next_price: NextPrice | None
    """The next change of the price; null where none is dated."""


class FallbackFigures(DescribedBody):
    """Answers by another model than the one that was asked for, since the start."""

    requested_model: str
    model: str
    reason: FallbackReason
    answers: int = Field(ge=1)


class BreakerFigures(DescribedBody):
    """The circuit breakers before Gemini, one a model: the one that is worst off."""

    state: State
    consecutive_failures: int = Field(ge=0)
    retry_in_seconds: float = Field(ge=0)
    """Seconds until the next call is let through; 0 when one would be now."""
    times_opened: int = Field(ge=0)
    """Since the start."""


class AdmissionFigures(DescribedBody):
    """Slots for calls to Gemini, and the line of requests that wait for one."""

    in_use: int = Field(ge=0)
    places: int = Field(ge=1)
    """Slots in all."""
    queued: int = Field(ge=0)
    """Requests that wait in line now."""
    waited: int = Field(ge=0)
    """Requests that got a slot after a wait, since the start."""
    shed: int = Field(ge=0)
    """Requests refused since the start because no slot came free in time."""
    abandoned: int = Field(ge=0)
    """Calls given up since the start while Gemini was still at them: at the deadline, or with their stream's client."""


class SeenError(DescribedBody):
    """One request that failed."""

    timestamp: str = Field(json_schema_extra={"format": "date-time"})
    status: int
    method: str
    path: str
    request_id: str


class ErrorFigures(DescribedBody):
    """Requests that failed with one code; 404s are not kept."""

    code: str
    count: int = Field(ge=1)
    """Since the start."""
    latest: list[SeenError]
    """The last 5 at most, the latest first."""


class CallerFigures(DescribedBody):
    """Who asks."""

    key: str | None
    """The name of the API key; null without one."""
    admin: bool
    """It is the admin key."""


class ServiceFigures(DescribedBody):
    """What runs."""

    model: str
    """GEMINI_MODEL; an offline one begins with `offline-`."""
    offline: bool
    """A local emulator answers, not Gemini."""
    in_flight: int = Field(ge=0)
    """Requests not yet closed, this one included."""
    draining: bool
    """It is shutting down."""
    admin_key: bool
    """An admin key is configured."""


class RedisFigures(DescribedBody):
    """How the link to Redis stands."""

    up: bool
    """It answers in time; else cache, limits and total are this process's own."""
    failures: int = Field(ge=0)
    """Questions that it did not answer in time, since the process started."""
    refused: int = Field(ge=0)
    """Questions that were not asked because it was away."""


class Statistics(DescribedBody):
    """The figures of the service."""

    cache_stats: CacheFigures
    usage_stats: Windows
    rate_limit_stats: LimiterFigures
    overall_stats: AllTimeFigures
    requests_by_task: dict[str, TaskFigures]
    """By the task's name: text, code, classify."""
    latency: LatencyFigures
    token_estimate: EstimateFigures
    budget: BudgetPace | None
    """The service's of the day; null without DAILY_BUDGET_USD."""
    monthly_budget: BudgetPace | None
    """The service's of the month; null without MONTHLY_BUDGET_USD."""
    models: list[ModelFigures]
    """The chain, in the order in which its models are asked."""
    fallbacks: list[FallbackFigures]
    breaker: BreakerFigures
    admission: AdmissionFigures
    last_errors: list[ErrorFigures]
    """The code seen last comes first."""
    caller: CallerFigures
    service: ServiceFigures
    redis_stats: RedisFigures | None = None
    """With REDIS_URL only."""


class UsageOfGroup(DescribedBody):
    """Sums of one group."""

    key: str
    """A month (`2026-11`) or day (`2026-11-23`) in `tz`, an hour or minute (`2026-11-23T15:00:00Z`), or a name; empty
    where a request had no key or tag."""
    total_requests: int = Field(ge=0)
    """Answers given, those from the cache included."""
    cached_requests: int = Field(ge=0)
    """Answers that cost nothing."""
    input_tokens: int = Field(ge=0)
    """Of paid calls."""
    output_tokens: int = Field(ge=0)
    """Of paid calls."""
    total_cost: float = Field(ge=0)
    """Dollars paid."""
    cost_savings_from_cache: float = Field(ge=0)
    """Dollars that the cached answers would have cost."""


class AttemptOfRequest(DescribedBody):
    """One call to Gemini, or one hit."""

    timestamp: str
    attempt: int = Field(ge=0)
    """1 for the first call of its request; 0 for a hit."""
    task: str
    client: str
    requested_model: str
    model: str
    fallback: str
    """Why `model` is not the requested one; empty where it is."""
    tag: str
    status: str
    """ok, hit, an error code, abandoned, open or unsettled."""
    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    total_cost: float = Field(ge=0)
    """Dollars."""
    reserved: float = Field(ge=0)
    """Dollars that count against the budget beside the cost, because Gemini may bill them."""
    saved: float = Field(ge=0)
    """Dollars that a hit did not cost."""


class AttemptsOfRequest(DescribedBody):
    """Every attempt of the requests with one id, in order."""

    request_id: str
    attempts: list[AttemptOfRequest]


class OwnLimit(DescribedBody):
    """One rate limit of the caller's."""

    limit: int = Field(ge=1)
    """Requests in any `window_seconds`."""
    window_seconds: int = Field(ge=1)
    remaining: int | None
    """Requests that it would still admit now; null where several processes share the limit in Redis."""


class OwnBudget(BudgetFigures):
    """A budget that the caller's requests are held to, in dollars."""

    scope: Literal["service", "key"]
    period: Period
    ends_at: str
    """When the day or the month ends."""


class OwnUsage(DescribedBody):
    """What the caller used since the beginning of a day or a month."""

    since: str
    total_requests: int = Field(ge=0)
    cached_requests: int = Field(ge=0)
    input_tokens: int = Field(ge=0)
    """Of paid calls."""
    output_tokens: int = Field(ge=0)
    """Of paid calls."""
    total_cost: float = Field(ge=0)
    """Dollars paid."""
    cost_savings_from_cache: float = Field(ge=0)
    """Dollars that the cached answers would have cost."""


class OwnView(DescribedBody):
    """A caller's own view: what it may do, and what it has done. The admin, and a service without keys, see all."""

    key: str | None
    """Name of the API key; null without one."""
    admin: bool
    expires: str | None
    """When the key ends."""
    models: list[str]
    """The models that a request may name."""
    rate_limits: list[OwnLimit]
    budgets: list[OwnBudget]
    today: OwnUsage
    """In the days of BUDGET_TIMEZONE."""
    this_month: OwnUsage


class UsageReport(DescribedBody):
    """Usage of a time by group. Groups without any usage are left out."""

    from_: str = Field(validation_alias="from", serialization_alias="from", json_schema_extra={"format": "date-time"})
    """The first moment counted."""
    to: str = Field(json_schema_extra={"format": "date-time"})
    """The first moment not counted any more."""
    group_by: GroupBy
    groups: list[UsageOfGroup]


# Headers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """One response header: what it means, and the JSON schema of its value. `always`: on every response."""

    meaning: str
    schema: dict[str, Any]
    example: str | int
    always: bool = False


def _dollars(meaning: str, *, always: bool = True) -> Header:
    return Header(meaning, {"type": "string", "pattern": _SIX_DECIMALS}, "0.000170", always)


def _count(meaning: str, example: int, *, least: int = 0, always: bool = False) -> Header:
    return Header(meaning, {"type": "integer", "minimum": least}, example, always)


_TEXT = {"type": "string"}
_ORIGINS = ", ".join(origin.value for origin in Origin)

HEADERS: dict[str, Header] = {
    "X-Request-ID": Header(
        "The caller's X-Request-ID where it is 1 to 128 of `A-Z a-z 0-9 . _ -`, else a new UUID.",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "84ffd3b0-0af0-42d9-bdcd-cd311a4f6ad6",
        always=True,
    ),
    "X-Cost-Input": _dollars("Dollars for input tokens, over all attempts of this request; 0 on a hit."),
    "X-Cost-Output": _dollars("Dollars for output tokens, over all attempts of this request; 0 on a hit."),
    "X-Cost-Total": _dollars("Dollars for this request; rounded by itself, so it may differ by 0.000001 from the sum."),
    "X-Cost-Overall": _dollars(
        "Dollars spent since the service started, this request included; never decreases. To known keys alone.",
        always=False,
    ),
    "X-Cost-Nanodollars": _count("The exact total of this request in billionths of a dollar.", 170_000, always=True),
    "X-Tokens-Input": _count("Input tokens; on a hit, those of the stored answer.", 12, always=True),
    "X-Tokens-Output": _count("Output tokens, thinking included; on a hit, the stored ones.", 425, always=True),
    "X-Cached": Header(
        "Whether the answer cost nothing: from the cache, or shared with an identical request in flight.",
        {"type": "string", "enum": ["true", "false"]},
        "false",
        always=True,
    ),
    "X-Model": Header("The model that answered; on a hit, the one that did then.", _TEXT, "gemini-2.5-flash-lite"),
    "X-Model-Fallback": Header(
        "The model that was asked for and did not answer, and why: one of "
        + ", ".join(f"`{reason.value}`" for reason in FallbackReason),
        _TEXT,
        "gemini-2.5-flash-lite; reason=unavailable",
    ),
    "X-Cost-Saved": _dollars("Dollars that a cached answer did not cost.", always=False),
    "X-Cost-Pending": Header(
        "On a stream that is not from the cache: cost and token headers are 0, `event: done` has the true figures.",
        {"type": "string", "enum": ["true"]},
        "true",
    ),
    "Age": _count("Seconds since the cached answer was made.", 42),
    "Cache-Status": Header("Where the answer came from (RFC 9211).", _TEXT, "mtllm; fwd=miss; stored"),
    "X-RateLimit-Limit": _count("Requests that the window with least remaining admits.", 60, least=1),
    "X-RateLimit-Remaining": _count("Requests that it would still admit now.", 59),
    "X-RateLimit-Reset": _count("Seconds until Remaining next grows.", 60),
    "RateLimit": Header("The same (draft-ietf-httpapi-ratelimit-headers-11).", _TEXT, '"60-in-60";r=59;t=60'),
    "RateLimit-Policy": Header("All windows that hold (same draft).", _TEXT, '"60-in-60";q=60;w=60'),
    "Retry-After": _count("Seconds after which the request is served if nothing else changes.", 12, least=1),
    "Allow": Header("Methods that this path takes.", _TEXT, "GET, HEAD, OPTIONS"),
    "WWW-Authenticate": Header("How to send the key (RFC 9110).", _TEXT, 'Bearer realm="api"'),
    "Server-Timing": Header(
        f"Where the time went, in ms: `cache` (its desc is one of {_ORIGINS}), `queue`, `upstream` (Gemini), `app` "
        "(our own share).",
        _TEXT,
        "cache;desc=paid, queue;dur=0.0, upstream;dur=812.4, app;dur=3.1",
        always=True,
    ),
    "X-Content-Type-Options": Header("Always `nosniff`.", {"type": "string", "const": "nosniff"}, "nosniff", True),
    "Cache-Control": Header("Always `no-store`.", {"type": "string", "const": "no-store"}, "no-store", True),
    "Content-Disposition": Header("A file name to save under.", _TEXT, "attachment; filename=usage.csv"),
}
"""Every response header of ours by its name."""

TASK_HEADERS = ("Cache-Status", *(name for name in HEADERS if "RateLimit" in name))
"""On responses of tasks, errors included, once Gemini or the cache was asked or the limits were."""

ANSWER_HEADERS = ("X-Model", "X-Model-Fallback", "Age", "X-Cost-Saved")
"""On answers of tasks: who answered, and what is said of one that cost nothing."""
