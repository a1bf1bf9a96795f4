"""RequestLogger beside the handlers of the standard library, writing the same JSON lines to three rotating files.

    python -m benchmarks.parts_logging            a minute
    python -m benchmarks.parts_logging --smoke    that it runs, a second

One event is one answered request from the cache: a line each on api_requests, performance and cost_tracking. The
handlers of the standard library get the same fields through a JSON formatter (and redact nothing, which ours does).
Contenders take turns within each round; `caller` is the wall-clock time that the request's thread spends on an event,
`processor` the time of all threads until the event is formatted and written. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import queue
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mtllm.domain.money import Amount, TokenUsage
from mtllm.logs.writer import RequestEvent, RequestLogger

FILES = ("api_requests.log", "performance.log", "cost_tracking.log")
MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 5


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to log: `record` takes an event, `flush` waits until its lines are written."""

    name: str
    record: Callable[[RequestEvent], None]
    flush: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds per event in one round: on the caller's side (median, 99th percentile) and of all threads."""

    caller: float
    caller_p99: float
    processor: float


def events(count: int) -> list[RequestEvent]:
    """Hits as the service records them."""
    return [
        RequestEvent(
            request_id=f"0f8fad5b-d9cb-469f-a165-{n:012x}",
            timestamp=1_769_860_800.125 + n / 1000,
            client=f"10.0.0.{n % 250}",
            method="POST",
            path="/api/v1/generate/text",
            duration=0.0005,
            user_agent="python-requests/2.32",
            task="text",
            model="gemini-2.5-flash-lite",
            cached=True,
            amount=Amount(TokenUsage(15, 425)),
            saved=171_500,
            request_bytes=64,
            response_bytes=412,
        )
        for n in range(count)
    ]


def contents(event: RequestEvent) -> Iterator[dict[str, Any]]:
    """What the three lines of `event` say, in the order of `FILES`."""
    head = {
        "timestamp": event.timestamp,
        "request_id": event.request_id,
        "client": event.client,
        "method": event.method,
        "path": event.path,
        "status": event.status,
        "task": event.task,
        "model": event.model,
        "cached": event.cached,
        "duration_ms": round(event.duration * 1e3, 3),
    }
    yield {
        **head,
        "code": event.code,
        "request_bytes": event.request_bytes,
        "response_bytes": event.response_bytes,
        "user_agent": event.user_agent,
    }
    yield {
        **head,
        "queue_ms": event.queue_seconds * 1e3,
        "upstream_ms": event.upstream_seconds * 1e3,
        "app_ms": round(event.duration * 1e3, 3),
        "attempts": event.attempts,
        "output_tokens_per_second": 0.0,
        "slow": event.duration >= 5.0,
    }
    yield {
        **head,
        "input_tokens": event.amount.usage.input,
        "output_tokens": event.amount.usage.output,
        "input_cost": event.amount.cost.input / 1e9,
        "output_cost": event.amount.cost.output / 1e9,
        "total_cost": event.amount.cost.total / 1e9,
        "saved": event.saved / 1e9,
    }


class JsonFormatter(logging.Formatter):
    """The record's `fields` as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Without a newline, which the handler adds."""
        fields: dict[str, Any] = record.__dict__["fields"]
        stamp = datetime.fromtimestamp(fields["timestamp"], UTC).isoformat(timespec="milliseconds")
        return json.dumps({**fields, "timestamp": stamp.replace("+00:00", "Z")})


def _loggers(handlers: Sequence[logging.Handler]) -> list[logging.Logger]:
    loggers = []
    for name, handler in zip(FILES, handlers, strict=True):
        logger = logging.Logger(name, logging.INFO)  # outside the global tree
        logger.addHandler(handler)
        loggers.append(logger)
    return loggers


def _recorder(loggers: Sequence[logging.Logger]) -> Callable[[RequestEvent], None]:
    def record(event: RequestEvent) -> None:
        for logger, fields in zip(loggers, contents(event), strict=True):
            logger.info("request", extra={"fields": fields})

    return record


def _file_handlers(folder: Path, stack: ExitStack) -> list[RotatingFileHandler]:
    folder.mkdir()
    handlers = [RotatingFileHandler(folder / name, maxBytes=MAX_BYTES, backupCount=BACKUPS) for name in FILES]
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
        stack.callback(handler.close)
    return handlers


def ours(folder: Path, stack: ExitStack) -> Contender:
    """RequestLogger with its defaults."""
    logger = RequestLogger(folder, max_bytes=MAX_BYTES, backup_count=BACKUPS)
    stack.callback(logger.close)
    return Contender("RequestLogger", logger.record, lambda: logger.flush(60.0))


def rotating(folder: Path, stack: ExitStack) -> Contender:
    """The caller formats and writes."""
    handlers = _file_handlers(folder, stack)
    return Contender("RotatingFileHandler", _recorder(_loggers(handlers)), lambda: None)


def queued(folder: Path, stack: ExitStack) -> Contender:
    """A queue and a listening thread for each file, as the standard library's cookbook has it."""
    queues: list[queue.Queue[Any]] = []
    for handler in _file_handlers(folder, stack):
        queues.append(queue.Queue())
        listener = QueueListener(queues[-1], handler)
        listener.start()
        stack.callback(listener.stop)

    def flush() -> None:
        for each in queues:
            each.join()

    return Contender("QueueHandler + QueueListener", _recorder(_loggers([QueueHandler(q) for q in queues])), flush)


@contextmanager
def contenders() -> Iterator[list[Contender]]:
    """All of them, each on a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield [make(Path(folder) / make.__name__, stack) for make in (ours, rotating, queued)]


def measure(contender: Contender, work: Sequence[RequestEvent]) -> Cost:
    """One round."""
    calls: list[int] = []
    processor = time.process_time_ns()
    for event in work:
        start = time.perf_counter_ns()
        contender.record(event)
        calls.append(time.perf_counter_ns() - start)
    contender.flush()
    processor = time.process_time_ns() - processor
    return Cost(median(calls) / 1e3, quantiles(calls, n=100)[-1] / 1e3, processor / len(work) / 1e3)


def compare(count: int, rounds: int) -> dict[str, Cost]:
    """The median cost per event of each contender, by name."""
    work = events(count)
    costs: dict[str, list[Cost]] = {}
    with contenders() as all_of_them:
        for turn in range(rounds + 1):
            for contender in all_of_them:
                cost = measure(contender, work)
                if turn:  # the first round warms up
                    costs.setdefault(contender.name, []).append(cost)
    return {
        name: Cost(*(median(getattr(cost, part) for cost in found) for part in Cost.__slots__))
        for name, found in costs.items()
    }


def tables(*, quick: bool = False) -> Iterator[str]:
    """A Markdown table, line by line: microseconds per event. `quick` only shows that it runs."""
    yield "| writer | caller, median µs | caller, p99 µs | processor, µs |"
    yield "|---|---:|---:|---:|"
    for name, cost in (compare(count=100, rounds=1) if quick else compare(count=2_000, rounds=15)).items():
        yield f"| {name} | {cost.caller:.1f} | {cost.caller_p99:.1f} | {cost.processor:.1f} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts_logging", description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="show that it runs, in a second")
    for line in tables(quick=parser.parse_args(argv).smoke):
        print(line, flush=True)


if __name__ == "__main__":
    main()
