"""Tokens to money for Python callers, and the command line over the ledger.

    python cost_tracker.py report --days 7
    python cost_tracker.py export --format csv --from 2026-11-01
    python cost_tracker.py prune
    python cost_tracker.py prices

The service uses the same parts: the counter and the prices (`mtllm.billing`), the ledger and the cost log.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from mtllm.billing.export import export_csv, export_jsonl, write_file
from mtllm.billing.prices import DEFAULT_MODEL, PriceTable
from mtllm.billing.tokens import TokenCounter
from mtllm.domain.completion import Origin
from mtllm.domain.events import RequestEvent
from mtllm.domain.money import NO_COST, Amount, Charge, TokenUsage, dollars
from mtllm.domain.times import LATEST
from mtllm.ledger.ledger import OK, Attempt, ExportRow, Hit, Ledger, Settlement, open_ledger
from mtllm.logs.files import LogFile
from mtllm.logs.lines import Lines
from mtllm.project import project_path

__all__ = ["CostRecord", "CostTracker", "TokenCounter", "UsageStats"]

_HOUR = 3600

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CostRecord:
    """One tracked request. Costs are dollars, all 0 for a cached one; `timestamp` is epoch seconds."""

    timestamp: float
    endpoint: str
    user_ip: str
    input_tokens: int
    output_tokens: int
    input_cost: float
    output_cost: float
    total_cost: float
    cached: bool


class UsageStats(TypedDict):
    """Sums over the last hours, in dollars and tokens; tokens are those of paid requests."""

    period_hours: int
    total_requests: int
    cached_requests: int
    total_cost: float
    cost_savings_from_cache: float
    input_tokens: int
    output_tokens: int


class CostTracker:
    """Counts, prices and records requests: tokens by estimate, money as in the service, a line each in the cost log.

    `log_file` is relative to the working directory. It may be the service's own: lines, rotation and retention are the
    same. Prompts and answers are not in it. `ledger` keeps the records; without one they live in memory until `close`.
    Nothing is opened before the first use. Safe to share between threads.
    """

    def __init__(
        self,
        log_file: str | Path = "logs/cost_tracking.log",
        *,
        model: str = DEFAULT_MODEL,
        ledger: Ledger | None = None,
        prices: PriceTable | None = None,
        counter: TokenCounter | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._ledger = ledger
        self._owns_ledger = ledger is None
        self._prices = prices
        self._counter = counter or TokenCounter()
        self._clock = clock
        self._opening = threading.Lock()
        self._lines = Lines()
        self._log = LogFile(Path(log_file).absolute(), clock=clock)
        self._logging = threading.Lock()

    def track_request(
        self, endpoint: str, user_ip: str, prompt: str, response: str, cached: bool = False
    ) -> CostRecord:
        """Record one completion and return what it cost; a `cached` one costs nothing and counts as saved.

        Raises LedgerUnavailable when the ledger cannot be written. A log that cannot be written is only warned of.
        """
        now, request_id = self._clock(), str(uuid.uuid4())
        usage = TokenUsage(self._counter.count_tokens(prompt), self._counter.count_tokens(response))
        tokens = usage.input, usage.output
        price = self._price_table().price_of(self._model, datetime.fromtimestamp(now, UTC).date())
        cost, saved = price.cost(*tokens) if price else NO_COST, 0
        ledger = self._open_ledger()
        if cached:
            cost, saved = NO_COST, cost.total
            ledger.record_hit(Hit(request_id, now, endpoint, user_ip, self._model, *tokens, saved=saved))
        else:
            charge = Charge(Amount(usage, cost), price, estimated=True)
            attempt = Attempt(request_id, endpoint, user_ip, self._model, now, now + _HOUR, reserved=cost.total)
            ledger.settle(ledger.open(attempt), Settlement(OK, self._model, charge))
        self._append_to_log(
            RequestEvent(
                request_id,
                now,
                client=user_ip,
                task=endpoint,
                model=self._model,
                cached=cached,
                origin=Origin.HIT if cached else Origin.PAID,
                amount=Amount(usage, cost),
                saved=saved,
            )
        )
        in_dollars = dollars(cost.input), dollars(cost.output), dollars(cost.total)
        return CostRecord(now, endpoint, user_ip, *tokens, *in_dollars, cached)

    def get_usage_stats(self, hours: int = 24) -> UsageStats:
        """Return the sums of the last `hours` hours, in whole minutes; the same keys when there was nothing."""
        ledger = self._open_ledger()
        ledger.flush()
        usage = ledger.window(hours, self._clock())
        return {
            "period_hours": hours,
            "total_requests": usage.requests,
            "cached_requests": usage.cached_requests,
            "total_cost": dollars(usage.cost),
            "cost_savings_from_cache": dollars(usage.saved),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        }

    def export_records(self, output_file: str | Path, hours: float | None = None) -> int:
        """Write the records of the last `hours` hours (None = all, 0 = none) to a file and return how many.

        A name that ends in `.csv` makes it CSV, any other JSON lines. The file appears whole; its folder is created.
        """
        file, count = Path(output_file), 0
        ledger = self._open_ledger()
        ledger.flush()
        from_ = 0.0 if hours is None else self._clock() - hours * _HOUR

        def rows() -> Iterator[ExportRow]:
            nonlocal count
            for row in ledger.export(from_, from_ if hours == 0 else LATEST):
                count += 1
                yield row

        write_file(file, export_csv(rows()) if file.suffix.lower() == ".csv" else export_jsonl(rows()))
        return count

    def close(self) -> None:
        """Forget the records kept in memory; a ledger that was given stays open."""
        with self._opening:
            ledger, self._ledger = self._ledger, None if self._owns_ledger else self._ledger
        if ledger is not None and self._owns_ledger:
            ledger.close()

    def _open_ledger(self) -> Ledger:
        with self._opening:
            if self._ledger is None:
                self._ledger = open_ledger(":memory:", clock=self._clock)
            return self._ledger

    def _price_table(self) -> PriceTable:
        if self._prices is None:
            self._prices = PriceTable.load(project_path("prices.toml"))
        return self._prices

    def _append_to_log(self, event: RequestEvent) -> None:
        line = self._lines.cost(event).encode("ascii")
        try:
            with self._logging:  # one thread at a time; nothing but the log waits for it
                self._log.append(line)
                self._log.close()
        except OSError as error:
            logger.warning("The cost log cannot be written: %s.", error.strerror)


if __name__ == "__main__":
    from mtllm.billing.cli import main

    sys.exit(main())
