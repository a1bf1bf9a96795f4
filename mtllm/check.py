"""`python app.py --check`: would the service work? A line for each thing it needs, and what to do where one fails.

Nothing that bills is asked, and nothing is changed: a ledger that is not there yet is made by the service.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mtllm import process
from mtllm.completions.chain import ModelChain
from mtllm.domain.errors import LedgerUnavailable, UpstreamFailure
from mtllm.gemini.client import GOOGLE
from mtllm.logs.folder import FILES
from mtllm.settings import Settings
from mtllm.wiring import LEAST_FREE_BYTES, Service

SECONDS = 10.0
"""How long one look may take."""
MOST_DRIFT_SECONDS = 60.0
"""A clock further from the endpoint's than this files costs under the wrong day sooner or later."""


@dataclass(frozen=True, slots=True)
class CheckLine:
    """What was found of one thing. `advice` says what to do; it is empty where all is well."""

    subject: str
    told: str
    advice: str = ""

    @property
    def line(self) -> str:
        """Return the finding as it is printed."""
        word = "fail" if self.advice else "ok"
        return f"{word:<5} {self.subject:<9} {self.told}" + (f": {self.advice}" if self.advice else "")


def check(settings: Settings, service: Service, tell: Callable[[str], object] = print) -> int:
    """Look at everything, tell each finding in a line, and return the exit status: 0 all well, 1 something fails."""
    failed = 0
    for finding in look(settings, service):
        tell(finding.line)
        failed += bool(finding.advice)
    tell("All is well." if not failed else f"{failed} of these would fail.")
    return 1 if failed else 0


def look(settings: Settings, service: Service, clock: Callable[[], float] = time.time) -> Iterator[CheckLine]:
    """Yield what is found, in the order in which a service comes to need it."""
    yield CheckLine("settings", "can be used")
    yield from _folders(settings)
    yield _key(settings)
    if settings.google_api_key is not None:
        yield from _models(settings, service, clock)
    yield _ledger(settings, service)
    if service.redis is not None:
        yield _redis(service)
    yield from _logs(settings)
    if not settings.is_offline:
        yield _clock(settings.gemini_api_endpoint or GOOGLE, clock)
    yield _port(settings)


def _folders(settings: Settings) -> Iterator[CheckLine]:
    for folder in (settings.data_dir, settings.cache_dir, settings.log_dir):
        free = process.free_bytes(folder)
        told = f"{folder}, {free // 2**20:,} MiB free"
        yield CheckLine(
            "folder", told, "" if free >= LEAST_FREE_BYTES else "make room, or name a folder on another disk"
        )


def _key(settings: Settings) -> CheckLine:
    if settings.google_api_key is None:
        return CheckLine("key", "none", "set GOOGLE_API_KEY, or start with --offline")
    return CheckLine("key", "not needed offline" if settings.is_offline else "is set")


def _models(settings: Settings, service: Service, clock: Callable[[], float]) -> Iterator[CheckLine]:
    """Yield a finding for each model of the chain; one that is not served fails only where no other is."""
    chain, refusals = service.chain, dict[str, str]()
    for model in chain.models:
        try:
            service.free_look.look_at(model)
        except UpstreamFailure as failure:
            words = f" ({', '.join(failure.cause_words)})" if failure.cause_words else ""
            refusals[model] = f"{failure.message}{words}"
    for model in chain.models:
        told = f"{model}, {_state(chain, model)}, {_price(service, model, clock())}"
        if model not in refusals:
            yield CheckLine("model", f"{told}, served to this key")
        elif len(refusals) < len(chain.models):
            yield CheckLine("model", f"{told}, not served to this key; the next one answers")
        else:
            yield CheckLine("model", told, refusals[model])
    unpriced = service.recorder.price_of(chain.answering().model, clock()) is None
    if unpriced and (settings.daily_budget_usd or settings.monthly_budget_usd) is not None:
        yield CheckLine("price", "none is known where a budget is set", "add the model to PRICES_FILE")


def _state(chain: ModelChain, model: str) -> str:
    state = chain.facts_of(model).state
    return state.value if state else "not in MODELS_FILE"


def _price(service: Service, model: str, now: float) -> str:
    price = service.recorder.price_of(model, now)
    return price.in_words if price else "no price known"


def _ledger(settings: Settings, service: Service) -> CheckLine:
    place = "PostgreSQL" if settings.ledger_location.startswith("postgres") else settings.ledger_location
    if place != "PostgreSQL" and not Path(place).exists():
        return CheckLine("ledger", f"{place}, not there yet: the service makes it")
    try:
        version = service.ledger.schema_version()
    except LedgerUnavailable as problem:
        return CheckLine("ledger", place, problem.message)
    return CheckLine("ledger", f"{place}, schema {version}")


def _redis(service: Service) -> CheckLine:
    assert service.redis is not None  # noqa: S101  # asked for by the caller
    service.redis.open()
    up = service.redis.health().up
    service.redis.close()
    return CheckLine(
        "redis", "answers" if up else "does not answer", "" if up else "look at REDIS_URL, or leave it empty"
    )


def _logs(settings: Settings) -> Iterator[CheckLine]:
    blocked = [name for name in FILES if (path := settings.log_dir / name).exists() and not os.access(path, os.W_OK)]
    advice = "give this user the right to write them" if blocked else ""
    yield CheckLine("logs", ", ".join(blocked) or f"{len(FILES)} files in {settings.log_dir}", advice)


def _clock(endpoint: str, clock: Callable[[], float]) -> CheckLine:
    """Compare the clock with the Date (RFC 9110, section 6.6.1) of whatever the endpoint answers."""
    try:
        told = parsedate_to_datetime(_date_of(endpoint))
    except (OSError, ValueError, TypeError):
        return CheckLine("clock", f"{_time(clock())}; the endpoint tells no time to compare it with")
    drift = clock() - told.timestamp()
    if abs(drift) <= MOST_DRIFT_SECONDS:
        return CheckLine("clock", f"{_time(clock())}, as the endpoint's")
    return CheckLine("clock", f"{_time(clock())}, {drift:+.0f} s off", "set it: days of prices and budgets hang on it")


def _date_of(endpoint: str) -> str:
    request = Request(endpoint, method="HEAD")  # noqa: S310  # http or https, by the settings
    try:
        with urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return str(answer.headers["Date"])
    except HTTPError as refusal:
        return str(refusal.headers["Date"])


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _port(settings: Settings) -> CheckLine:
    place = f"HOST={settings.host} PORT={settings.port}"
    try:
        _bind(socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    except OSError as problem:
        return CheckLine(
            "port", place, f"{problem.strerror or 'cannot be listened on'}; is the service running already?"
        )
    return CheckLine("port", place)


def _bind(addresses: Iterable[tuple[int, int, int, str, tuple[object, ...]]]) -> None:
    """Raise OSError when nothing could be listened on at the first of the addresses."""
    family, kind, protocol, _, address = next(iter(addresses))
    with contextlib.closing(socket.socket(family, kind, protocol)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)
