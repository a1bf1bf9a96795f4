"""The bodies that the OpenAPI document shows as examples, made of the models that render the real ones."""

from __future__ import annotations

from mtllm.domain.completion import FallbackReason
from mtllm.ledger.ledger import ExportRow
from mtllm.stats import schemas
from mtllm.stats.health import CacheDeletion, Check, Health, Readiness

REQUEST_ID = "84ffd3b0-0af0-42d9-bdcd-cd311a4f6ad6"

ANSWERS = {
    "text": "A cache keeps answers near those who ask. HTTP tells it for how long.",
    "code": "def reverse(text):\n    return text[::-1]",
    "extract": '{"name": "Ann Lee", "age": 31}',
}
"""What a model may say, by task."""

COST = {"input": "0.000001", "output": "0.000007", "total": "0.000008", "nanodollars": 8400}

HEALTH = Health(status="healthy", timestamp=1_795_449_182.483596)
READY = Readiness(status="ready", checks={"backend": Check(status="ok"), "ledger": Check(status="ok")})
NOT_READY = Readiness(status="unavailable", checks={"draining": Check(status="fail", reason="shutting down")})
CACHE_DELETION = CacheDeletion(deleted=2)


def _window(hours: int) -> schemas.WindowFigures:
    return schemas.WindowFigures(
        period_hours=hours,
        total_requests=3,
        cached_requests=1,
        total_cost=0.0000168,
        cost_savings_from_cache=0.0000084,
        total_tokens=schemas.TokenSums(input=24, output=36),
    )


_NO_REQUESTS = schemas.TaskFigures(paid=0, hit=0, shared=0, stale=0, errors={})

STATISTICS = schemas.Statistics(
    cache_stats=schemas.CacheFigures(
        size=2,
        max_size=500,
        bytes=1740,
        max_bytes=67_108_864,
        hits=1,
        misses=2,
        evictions=0,
        expirations=0,
        hit_ratio=1 / 3,
        cache_hit_ratio=1 / 3,
    ),
    usage_stats=schemas.Windows(last_hour=_window(1), last_24_hours=_window(24), last_30_days=_window(720)),
    rate_limit_stats=schemas.LimiterFigures(
        cache_size=1,
        max_size=10_000,
        limits=[schemas.LimitFigures(requests=60, seconds=60), schemas.LimitFigures(requests=1000, seconds=3600)],
        protected=0,
        rejected=0,
    ),
    overall_stats=schemas.AllTimeFigures(
        total_requests_all_time=3,
        cached_requests_all_time=1,
        total_cost_all_time=0.0000168,
        total_tokens_all_time=schemas.TokenSums(input=24, output=36),
        cache_savings_all_time=0.0000084,
        unpriced_requests_all_time=0,
        total_cost_since_start=0.0000168,
    ),
    requests_by_task={
        "text": schemas.TaskFigures(paid=2, hit=1, shared=0, stale=0, errors={"upstream_timeout": 1}),
        "code": _NO_REQUESTS,
        "classify": _NO_REQUESTS,
    },
    latency=schemas.LatencyFigures(
        hit=schemas.Percentiles(samples=1, p50_ms=0.8, p95_ms=0.8, p99_ms=0.8, max_ms=0.8),
        miss=schemas.Percentiles(samples=2, p50_ms=640.2, p95_ms=812.4, p99_ms=812.4, max_ms=812.4),
        own=schemas.Percentiles(samples=3, p50_ms=3.1, p95_ms=4.4, p99_ms=4.4, max_ms=4.4),
    ),
    token_estimate=schemas.EstimateFigures(samples=2, input_ratio=0.92, output_ratio=1.04, dropped=0),
    budget=schemas.BudgetPace(
        limit=5.0, spent=0.0000168, reserved=0.0, ends_at="2026-11-24T00:00:00.000000Z", used_up_at=None
    ),
    monthly_budget=None,
    models=[
        schemas.ModelFigures(
            model="gemini-2.5-flash-lite",
            answers=False,
            refusal="is not served to this key (404, NOT_FOUND)",
            input_price=0.1,
            output_price=0.4,
            next_price=None,
        ),
        schemas.ModelFigures(
            model="gemini-3.1-flash-lite",
            answers=True,
            refusal=None,
            input_price=0.25,
            output_price=1.5,
            next_price=schemas.NextPrice(since="2027-01-01", input_price=0.2, output_price=1.2),
        ),
    ],
    fallbacks=[
        schemas.FallbackFigures(
            requested_model="gemini-2.5-flash-lite",
            model="gemini-3.1-flash-lite",
            reason=FallbackReason.UNAVAILABLE,
            answers=3,
        )
    ],
    breaker=schemas.BreakerFigures(state="closed", consecutive_failures=1, retry_in_seconds=0.0, times_opened=0),
    admission=schemas.AdmissionFigures(in_use=0, places=64, queued=0, waited=0, shed=0, abandoned=0),
    last_errors=[
        schemas.ErrorFigures(
            code="upstream_timeout",
            count=1,
            latest=[
                schemas.SeenError(
                    timestamp="2026-11-23T15:53:02.500000Z",
                    status=504,
                    method="POST",
                    path="/api/v1/generate/text",
                    request_id=REQUEST_ID,
                )
            ],
        )
    ],
    caller=schemas.CallerFigures(key="alice", admin=False),
    service=schemas.ServiceFigures(
        model="gemini-2.5-flash-lite", offline=False, in_flight=1, draining=False, admin_key=True
    ),
)
USAGE = schemas.UsageReport(
    from_="2026-10-24T15:53:02.000000Z",
    to="2026-11-23T15:53:02.000000Z",
    group_by="task",
    groups=[
        schemas.UsageOfGroup(
            key="text",
            total_requests=3,
            cached_requests=1,
            input_tokens=24,
            output_tokens=36,
            total_cost=0.0000168,
            cost_savings_from_cache=0.0000084,
        )
    ],
)
ATTEMPTS = schemas.AttemptsOfRequest(
    request_id=REQUEST_ID,
    attempts=[
        schemas.AttemptOfRequest(
            timestamp="2026-11-23T15:53:02.500000Z",
            attempt=1,
            task="text",
            client="alice",
            requested_model="gemini-2.5-flash-lite",
            model="gemini-2.5-flash-lite",
            fallback="",
            tag="newsletter",
            status="ok",
            input_tokens=12,
            output_tokens=18,
            total_cost=0.0000084,
            reserved=0.0,
            saved=0.0,
        )
    ],
)
EXPORTED = ExportRow(
    request_id=REQUEST_ID,
    timestamp=1_795_449_182.5,
    task="text",
    client="alice",
    model="gemini-2.5-flash-lite",
    status="ok",
    cached=False,
    input_tokens=12,
    output_tokens=18,
    input_cost=1200,
    output_cost=7200,
    total_cost=8400,
    saved=0,
    attempt=1,
    cached_input_tokens=0,
    reserved=0,
    shared=False,
    estimated=False,
    unpriced=False,
    input_price=100_000_000,
    cached_input_price=10_000_000,
    output_price=400_000_000,
    key="alice",
    requested_model="gemini-2.5-flash-lite",
    fallback="",
    tag="newsletter",
)
METRICS = '# TYPE mtllm_requests_total counter\nmtllm_requests_total{route="/health",status="200",origin="none"} 1.0\n'

CHAT_REQUEST = {
    "model": "gemini-2.5-flash-lite",
    "messages": [{"role": "user", "content": "Explain HTTP caching in two sentences."}],
}
CHAT_ANSWER = {
    "id": f"chatcmpl-{REQUEST_ID}",
    "object": "chat.completion",
    "created": 1_795_449_182,
    "model": "gemini-2.5-flash-lite",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A cache keeps answers.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 18,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
    "cost": {"total": "0.000008", "nanodollars": 8400},
}
MODELS = {
    "object": "list",
    "data": [{"id": "gemini-2.5-flash-lite", "object": "model", "created": 1_795_449_182, "owned_by": "google"}],
}
CHAT_EVENTS = (
    'data: {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1795449182, "choices": [{"index": 0, '
    '"delta": {"role": "assistant", "content": "A cache"}, "finish_reason": null}]}\n\n'
    "data: [DONE]\n\n"
)

_OWN_USAGE = schemas.OwnUsage(
    since="2026-11-23T00:00:00.000000Z",
    total_requests=3,
    cached_requests=1,
    input_tokens=24,
    output_tokens=36,
    total_cost=0.0000168,
    cost_savings_from_cache=0.0000084,
)
OWN_VIEW = schemas.OwnView(
    key="alice",
    admin=False,
    expires=None,
    models=["gemini-2.5-flash-lite", "gemini-3.1-flash-lite"],
    rate_limits=[schemas.OwnLimit(limit=60, window_seconds=60, remaining=57)],
    budgets=[
        schemas.OwnBudget(
            scope="key", period="day", limit=5.0, spent=0.0000168, reserved=0.0, ends_at="2026-11-24T00:00:00.000000Z"
        )
    ],
    today=_OWN_USAGE,
    this_month=_OWN_USAGE,
)
