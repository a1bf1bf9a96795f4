"""Whatever happens in whatever order: what clients were told, ledger, statistics and Gemini's bill are one sum."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app import Api, create_app
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.money import NANO, format_usd
from mtllm.domain.times import LATEST, parse_time
from mtllm.emulator import EmulatedReply, GeminiCall, answered, candidate
from mtllm.settings import load_settings
from tests.support.fakes import FakeClock
from tests.support.scripted_gemini import (
    ScriptedGemini,
    Step,
    blocked_prompt,
    empty_object,
    finished,
    garbage,
    no_candidates,
    no_usage,
    status,
    usage,
)

pytest.importorskip("hypothesis")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

ADMIN = {"X-API-Key": "admin-secret"}
TEXT = "/api/v1/generate/text"
CLASSIFY = "/api/v1/classify/text"
START = 1_800_000_000.0
BUDGET = 4_000_000
INPUT, CACHED_INPUT, OUTPUT = 100, 10, 400
"""Nano-dollars for a token of the default model."""


class Bill:
    """What Gemini's stand-in does not count as `delivered`: answers without usage, and answers of other models."""

    def __init__(self) -> None:
        self.nano = 0
        self.unpriced = 0
        self._counter = TokenCounter()

    def without_usage(self, said: str, step: Step) -> Step:
        """Tokens are estimated, of the words that are sent and of those (`said`) that come back by `step`."""

        def billed(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
            asked = "\n".join((call.system, call.prompt, *call.labels))
            self.nano += self._counter.estimate_tokens(asked) * INPUT + self._counter.estimate_tokens(said) * OUTPUT
            return step(gemini, call)

        return billed

    def of_another(self, model: str, nano: int) -> Step:
        """Ten tokens in, twenty out, of a model that costs `nano` for them; 0 = nobody knows."""

        def step(gemini: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
            self.nano += nano
            self.unpriced += not nano
            used = {"promptTokenCount": 10, "candidatesTokenCount": 20, "totalTokenCount": 30}
            return answered(
                call, [candidate(call, "a", finish_reason="STOP") | {"modelVersion": model, "usageMetadata": used}]
            )

        return step


BEHAVIOURS: dict[str, Callable[[Bill], Step]] = {
    "thinks, and knows part of the prompt": lambda _: usage("fine", thoughts=5, cached=30),
    "is cut off": lambda _: finished("MAX_TOKENS", "half an ans"),
    "spends its tokens on thoughts": lambda _: finished("MAX_TOKENS", thoughts=64),
    "blocks its answer": lambda _: finished("SAFETY"),
    "blocks the prompt": lambda _: blocked_prompt(),
    "says nothing": lambda _: no_candidates(),
    "reports no usage": lambda bill: bill.without_usage("fine", no_usage("fine")),
    "has another model answer": lambda bill: bill.of_another("gemini-3.1-pro-preview", 10 * 2000 + 20 * 12_000),
    "has an unknown model answer": lambda bill: bill.of_another("gemini-99", 0),
    "is overloaded": lambda _: status(503, retry_delay="0.001s"),
    "is over its quota": lambda _: status(429, retry_delay="0.001s"),
    "does not know the model": lambda _: status(404),
    "stutters": lambda _: garbage(),
    "sends an empty object": lambda bill: bill.without_usage("", empty_object()),
}
"""What Gemini may do at its next call, beside answering like the offline model."""

behaviours = st.sampled_from([""] * 4 + list(BEHAVIOURS))
prompts = st.sampled_from(["one", "two", "three", "four", "five"])
directives = st.sampled_from([None, None, None, "no-cache", "no-store", "max-age=5", "only-if-cached"])


class Reconciliation(RuleBasedStateMachine):
    """The service behind HTTP, with Gemini at the wire; the wall clock may jump, the monotonic one only advances."""

    @initialize()
    def open_shop(self) -> None:
        """Empty folders, a Gemini that has billed nothing."""
        self.folder = tempfile.TemporaryDirectory()
        self.gemini = ScriptedGemini()
        self.gemini.start()
        self.wall, self.monotonic = FakeClock(START), FakeClock(time.monotonic())
        self.bill = Bill()
        self.told = 0
        self.answers = self.hits = 0
        self.app: Api = self.started()

    def started(self) -> Api:
        """The application as it is after every restart: the same folders, no memory."""
        folder = Path(self.folder.name)
        environ = {
            "GOOGLE_API_KEY": "AIza-test-key",
            "GEMINI_API_ENDPOINT": self.gemini.url,
            "GEMINI_MAX_ATTEMPTS": "3",
            "GEMINI_FALLBACK_MODELS": "",
            "GEMINI_TIMEOUT_SECONDS": "3600",  # the clock stands still while real time passes
            "RATE_LIMITS": "",
            "ADMIN_API_KEY": "admin-secret",
            "DAILY_BUDGET_USD": str(BUDGET / NANO),
            "RESPONSE_CACHE_STALE_SECONDS": "3600",
            "USAGE_RETENTION_DAYS": "36500",
            "LEDGER_SYNC": "normal",
            "LOG_DIR": str(folder / "logs"),
            "CACHE_DIR": str(folder / "cache"),
            "DATA_DIR": str(folder / "data"),
        }
        app = create_app(load_settings(environ, env_file=None), clock=self.wall, monotonic=self.monotonic)
        app.service.open(8)
        self.told_since_start = 0
        return app

    def teardown(self) -> None:
        """Close what is open, also when nothing was opened."""
        if hasattr(self, "app"):
            self.app.service.close()
            self.gemini.close()
            self.folder.cleanup()

    # What clients do

    def gemini_will(self, behaviour: str) -> None:
        """At its next call, whoever makes that."""
        if behaviour:
            self.gemini.answers(BEHAVIOURS[behaviour](self.bill))

    def take(self, answer: TestResponse) -> None:
        """Add up what one client was told."""
        nano, status_code = int(answer.headers["X-Cost-Nanodollars"]), answer.status_code
        if answer.headers.get("X-Cost-Pending"):
            event, _, data = answer.text.rstrip().rpartition("\n\n")[2].partition("\ndata: ")
            ended = json.loads(data)
            nano, status_code = (ended["cost"]["nanodollars"], 200) if event == "event: done" else (0, 500)
        self.told += nano
        self.told_since_start += nano
        self.answers += status_code == 200
        self.hits += answer.headers["X-Cached"] == "true"

    def post(self, path: str, body: dict[str, Any], directive: str | None = None) -> TestResponse:
        headers = {} if directive is None else {"Cache-Control": directive}
        return self.app.test_client().post(path, json=body, headers=headers)

    @rule(prompt=prompts, directive=directives, behaviour=behaviours)
    def ask(self, prompt: str, directive: str | None, behaviour: str) -> None:
        """A hit or a miss, as it comes."""
        self.gemini_will(behaviour)
        self.take(self.post(TEXT, {"prompt": prompt}, directive))

    @rule(prompt=prompts, directive=directives, behaviour=behaviours)
    def stream(self, prompt: str, directive: str | None, behaviour: str) -> None:
        """The same as it is generated."""
        self.gemini_will(behaviour)
        self.take(self.post(TEXT, {"prompt": prompt, "stream": True}, directive))

    @rule(prompt=prompts, behaviour=behaviours)
    def classify(self, prompt: str, behaviour: str) -> None:
        """With one repair when the answer is none of the categories."""
        self.gemini_will(behaviour)
        self.take(self.post(CLASSIFY, {"text": prompt, "categories": ["a", "b"]}))

    @rule(prompt=prompts)
    def ask_together(self, prompt: str) -> None:
        """Three at once: one pays at most."""
        with ThreadPoolExecutor(3) as pool:
            for answer in pool.map(lambda _: self.post(TEXT, {"prompt": prompt}), range(3)):
                self.take(answer)

    # What time and the operator do

    @rule(seconds=st.sampled_from([1.0, 11.0, 1800.0, 90_000.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Answers expire, the breaker closes, the budget's day ends."""
        self.wall.advance(seconds)
        self.monotonic.advance(seconds)

    @rule(seconds=st.sampled_from([-90_000.0, -3600.0, -2.0, 2.0, 3600.0]))
    def step_the_clock(self, seconds: float) -> None:
        """Somebody corrects the time."""
        self.wall.advance(seconds)

    @rule()
    def restart(self) -> None:
        """On the same folders."""
        self.app.service.close()
        self.app = self.started()

    # What must hold

    @invariant()
    def all_sums_are_one(self) -> None:
        """Headers = export = statistics = usage = Gemini's bill; and the budget holds."""
        if not hasattr(self, "app"):
            return
        rows, stats = self.exported(), self.got("/stats")
        overall = stats["overall_stats"]
        billed = self.gemini.delivered
        uncached = (billed.prompt - billed.cached) * INPUT + billed.cached * CACHED_INPUT
        expected = uncached + (billed.candidates + billed.thoughts) * OUTPUT + self.bill.nano
        assert self.told == expected
        assert sum(nano(row["total_cost"]) for row in rows) == expected
        assert sum(nano(row["input_cost"]) + nano(row["output_cost"]) for row in rows) == expected
        assert nano(overall["total_cost_all_time"]) == expected
        assert sum(nano(group["total_cost"]) for group in self.usage()) == expected
        assert sum(row["status"] != "hit" for row in rows) == self.gemini.count
        assert overall["total_requests_all_time"] == self.answers
        assert overall["cached_requests_all_time"] == self.hits
        assert overall["unpriced_requests_all_time"] == self.bill.unpriced
        assert self.overall() == format_usd(self.told_since_start)
        self.the_budget_holds(rows, stats["budget"])

    def the_budget_holds(self, rows: list[Any], budget: Any) -> None:
        """Spent and reserved are those of the day's rows, and together within the limit."""
        today = int(self.wall() // 86_400)
        of_today = [row for row in rows if int(epoch(row["timestamp"]) // 86_400) == today]
        assert nano(budget["spent"]) == sum(nano(row["total_cost"]) for row in of_today)
        assert nano(budget["reserved"]) == sum(nano(row["reserved"]) for row in of_today)
        assert nano(budget["spent"]) + nano(budget["reserved"]) <= BUDGET

    def exported(self) -> list[Any]:
        lines = self.app.test_client().get("/api/v1/usage/export?format=jsonl", headers=ADMIN).text.splitlines()
        return [json.loads(line, parse_float=Decimal) for line in lines]

    def got(self, path: str) -> Any:
        return json.loads(self.app.test_client().get(path, headers=ADMIN).text, parse_float=Decimal)

    def usage(self) -> list[Any]:
        groups: list[Any] = self.got(f"/api/v1/usage?from=0&to={LATEST:.0f}&group_by=model")["groups"]
        return groups

    def overall(self) -> str:
        return self.app.test_client().get("/health").headers["X-Cost-Overall"]


def nano(amount: Decimal | float) -> int:
    """Nano-dollars of an amount in dollars; nothing is lost."""
    exact = Decimal(amount) * NANO
    assert exact == int(exact)
    return int(exact)


def epoch(timestamp: str) -> float:
    """Seconds since the epoch of an exported time."""
    return parse_time(timestamp)


Reconciliation.TestCase.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)
TestReconciliation = Reconciliation.TestCase
