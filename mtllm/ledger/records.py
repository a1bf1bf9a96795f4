"""The ledger's values: what goes in, what comes out. Money is integers of nano-dollars, time is epoch seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from mtllm.domain.caller import SERVICE_SCOPE, key_scope
from mtllm.domain.money import NO_AMOUNT, Amount, Charge
from mtllm.domain.periods import Period

OK = "ok"
HIT = "hit"
OPEN = "open"
UNSETTLED = "unsettled"
ABANDONED = "abandoned"


GroupBy = Literal["day", "hour", "minute", "month", "task", "client", "key", "model", "requested_model", "tag"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to Gemini about to be made.

    `deadline`: when the call is over for certain; a row still open after it counts as unsettled. `reserved`: an upper
    bound of the cost in nano-dollars. `key`: the name of the API key, None without keys. `number`: 1 for the first
    attempt of this request. `requested_model`: the one that was asked for; `fallback` says why `model` is another.
    `tag`: the caller's X-Tag.
    """

    request_id: str
    task: str
    client: str
    model: str
    timestamp: float
    deadline: float
    reserved: int
    key: str | None = None
    number: int = 1
    requested_model: str = ""
    fallback: str = ""
    tag: str = ""

    @property
    def scopes(self) -> tuple[str, ...]:
        """The budget scopes that this attempt's cost counts in."""
        return scopes_of(self.key)


def scopes_of(key: str | None) -> tuple[str, ...]:
    """Return the budget scopes of a call made with the API key named `key`; the service always comes first."""
    return (SERVICE_SCOPE,) if key is None else (SERVICE_SCOPE, key_scope(key))


class BudgetAlert(NamedTuple):
    """A percentage of a budget that was reached. `day`: the first day of its period; money in nano-dollars."""

    scope: str
    period: Period
    day: int
    percent: int
    at: float
    spent: int
    limit: int


class BudgetState(NamedTuple):
    """One scope on one UTC day, in nano-dollars: settled costs, and the reservations that still count beside them."""

    spent: int
    reserved: int

    def plus(self, other: BudgetState) -> BudgetState:
        """Return both together."""
        return BudgetState(self.spent + other.spent, self.reserved + other.reserved)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a call ended.

    `status`: "ok", an error code, or "abandoned". `model`: the one that answered, `fallback` why that is not the one
    asked for. `charge`: None where nothing came.
    `keep_reservation`: Gemini may have billed more than is known, so the reservation keeps counting against the day's
    budget.
    """

    status: str
    model: str
    charge: Charge | None = None
    keep_reservation: bool = False
    fallback: str = ""

    @property
    def amount(self) -> Amount:
        """Return what came and what it cost; nothing where no answer came."""
        return NO_AMOUNT if self.charge is None else self.charge.amount

    @property
    def unpriced(self) -> bool:
        """Return whether an answer came for which no price is known."""
        return self.charge is not None and self.charge.unpriced


class Hit(NamedTuple):
    """An answer that cost nothing: from the cache, or (`shared`) from an identical request in flight.

    `saved`: what the call would have cost, in nano-dollars. A named tuple, because making a frozen dataclass of this
    size takes longer than all else that recording a hit does on the request's thread.
    """

    request_id: str
    timestamp: float
    task: str
    client: str
    model: str
    input_tokens: int
    output_tokens: int
    saved: int
    shared: bool = False
    key: str | None = None
    requested_model: str = ""
    fallback: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over rows. `requests` counts completions, hits included; tokens and `cost` are those of paid calls."""

    requests: int = 0
    cached_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    saved: int = 0
    unpriced_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowUsage(Totals):
    """The totals of the last `hours` hours, in whole minutes, at most one too many."""

    hours: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup(Totals):
    """The totals of one task, client, model and so on, or of one day, month, hour or minute (see `label_time`)."""

    key: str


class Selection(NamedTuple):
    """Which usage is summed: of one API key, model, task or tag, or of several of these together; None = of all."""

    key: str | None = None
    model: str | None = None
    task: str | None = None
    tag: str | None = None


ALL_USAGE = Selection()


class ExportRow(NamedTuple):
    """One attempt or hit as exported. Costs in nano-dollars, prices in nano-dollars per million tokens."""

    request_id: str
    timestamp: float
    task: str
    client: str
    model: str
    status: str
    cached: bool
    input_tokens: int
    output_tokens: int
    input_cost: int
    output_cost: int
    total_cost: int
    saved: int
    attempt: int
    cached_input_tokens: int
    reserved: int
    """What still counts against the day's budget beside `total_cost`."""
    shared: bool
    estimated: bool
    unpriced: bool
    input_price: int | None
    cached_input_price: int | None
    output_price: int | None
    key: str | None
    requested_model: str
    fallback: str
    """Why `model` is not the requested one; empty where it is."""
    tag: str


@dataclass(frozen=True, slots=True)
class LedgerHealth:
    """Whether the ledger can be written, and how far the hits are behind.

    `error`: the kind of the last failure while it lasts, None when all is well. `lag_seconds`: for how long the oldest
    hit has been waiting for the disk. `dropped_hits`: hits lost because the disk was gone for too long.
    """

    writable: bool
    error: str | None
    queued_hits: int
    lag_seconds: float
    dropped_hits: int
