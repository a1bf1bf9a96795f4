"""Tokens to money: the front guard of `accounting`, and the command line over the ledger.

    python cost_tracker.py report --days 7
    python cost_tracker.py export --format csv --from 2026-11-01
    python cost_tracker.py prune
    python cost_tracker.py prices

The service takes the same parts from `accounting`. `CostTracker` is that machinery for a script that calls a model by
itself.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TypedDict, TypeVar

from mtllm.billing.export import COLUMNS, Column, export_csv, export_jsonl, write_file
from mtllm.billing.prices import DEFAULT_MODEL, Price, PriceTable, SpendMeter
from mtllm.billing.tokens import DOCUMENTED_PRICE, Drift, DriftMeter, TokenCounter
from mtllm.domain.money import NANO, Cost, dollars, exact_usd, format_usd
from mtllm.domain.times import LATEST, parse_time, rfc3339
from mtllm.ledger.ledger import OK, Attempt, Hit, Ledger, Settlement, open_ledger
from mtllm.project import project_path

__all__ = [
    "COLUMNS",
    "DEFAULT_MODEL",
    "DOCUMENTED_PRICE",
    "LATEST",
    "NANO",
    "Column",
    "Cost",
    "CostRecord",
    "CostTracker",
    "Drift",
    "DriftMeter",
    "Price",
    "PriceTable",
    "SpendMeter",
    "TokenCounter",
    "UsageStats",
    "dollars",
    "exact_usd",
    "export_csv",
    "export_jsonl",
    "format_usd",
    "parse_time",
    "rfc3339",
]

PRICES_FILE = project_path("prices.toml")

_LOG_BYTES = 10 * 1024 * 1024
_LOG_BACKUPS = 5
_HOUR = 3600

T = TypeVar("T")
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
    """Counts, prices and records requests: tokens by tiktoken, money as in the service, one JSON line each in a log.

    `log_file` is relative to the working directory and rotates at 10 MiB; prompts and answers are not in it. `ledger`
    keeps the records; without one they live in memory until `close`. Nothing is opened before the first use. Safe to
    share between threads.
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
        self._log_file = Path(log_file).absolute()
        self._model = model
        self._ledger = ledger
        self._owns_ledger = ledger is None
        self._prices = prices
        self._counter = counter or TokenCounter()
        self._clock = clock
        self._lock = threading.Lock()
        self._log_lock = threading.Lock()

    def track_request(
        self, endpoint: str, user_ip: str, prompt: str, response: str, cached: bool = False
    ) -> CostRecord:
        """Record one completion and say what it cost; a `cached` one costs nothing and counts as saved.

        Raises LedgerUnavailable when the ledger cannot be written. A log that cannot be written is only warned of.
        """
        now, request_id = self._clock(), str(uuid.uuid4())
        tokens = self._counter.count_tokens(prompt), self._counter.count_tokens(response)
        price = self._price_table().price_of(self._model, datetime.fromtimestamp(now, UTC).date())
        cost = price.cost(*tokens) if price else Cost()
        if cached:
            self._books().record_hit(Hit(request_id, now, endpoint, user_ip, self._model, *tokens, saved=cost.total))
            cost = Cost()
        else:
            attempt = Attempt(
                request_id, endpoint, user_ip, self._model, now, deadline=now + _HOUR, reserved=cost.total
            )
            row_id = self._books().open(attempt)
            self._books().settle(row_id, _settlement(self._model, tokens, cost, price))
        in_dollars = dollars(cost.input), dollars(cost.output), dollars(cost.total)
        record = CostRecord(now, endpoint, user_ip, *tokens, *in_dollars, cached)
        self._log(request_id, record)
        return record

    def get_usage_stats(self, hours: int = 24) -> UsageStats:
        """Sums of the last `hours` hours, in whole minutes; the same keys when there was nothing."""
        self._books().flush()
        usage = self._books().window(hours, self._clock())
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
        file, counted = Path(output_file), _Counted()
        from_ = 0.0 if hours is None else self._clock() - hours * _HOUR
        self._books().flush()
        rows = counted(self._books().export(from_, from_ if hours == 0 else LATEST))
        write_file(file, export_csv(rows) if file.suffix.lower() == ".csv" else export_jsonl(rows))
        return counted.number

    def close(self) -> None:
        """Forget the records kept in memory; a ledger that was given stays open."""
        with self._lock:
            ledger, self._ledger = self._ledger, None if self._owns_ledger else self._ledger
        if ledger is not None and self._owns_ledger:
            ledger.close()

    def _books(self) -> Ledger:
        with self._lock:
            if self._ledger is None:
                self._ledger = open_ledger(":memory:", clock=self._clock)
            return self._ledger

    def _price_table(self) -> PriceTable:
        if self._prices is None:
            self._prices = PriceTable.load(PRICES_FILE)
        return self._prices

    def _log(self, request_id: str, record: CostRecord) -> None:
        event = asdict(record) | {
            "timestamp": rfc3339(record.timestamp),
            "request_id": request_id,
            "client": record.user_ip,
        }
        try:
            with self._log_lock:  # keeps lines whole and rotation single; nothing but the log waits for it
                _append_line(self._log_file, json.dumps(event))
        except OSError as error:
            logger.warning("The cost log cannot be written: %s.", error.strerror)


def _settlement(model: str, tokens: tuple[int, int], cost: Cost, price: Price | None) -> Settlement:
    return Settlement(
        status=OK,
        model=model,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        input_cost=cost.input,
        output_cost=cost.output,
        total_cost=cost.total,
        estimated=True,
        unpriced=price is None,
        input_price=price.input if price else None,
        cached_input_price=price.cached_input if price else None,
        output_price=price.output if price else None,
    )


def _append_line(file: Path, line: str) -> None:
    """Append to a log that rotates; nothing stays open between two lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.stat().st_size >= _LOG_BYTES:
        handler = RotatingFileHandler(file, backupCount=_LOG_BACKUPS, delay=True)
        handler.doRollover()
        handler.close()
    with file.open("a", encoding="utf-8") as log:
        log.write(line + "\n")


class _Counted:
    """Passes on what it is called with and keeps count."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, rows: Iterable[T]) -> Iterator[T]:
        for row in rows:
            self.number += 1
            yield row


if __name__ == "__main__":
    from mtllm.billing.cli import main

    sys.exit(main())
