"""How the ledger is written: its tables, and what each write does to them inside one transaction.

Rows, roll-ups and budget days change together or not at all:

    entries       one row per attempt and per hit; `bound` is the reservation made, `reserved` what of it still counts
    rollups       sums by (span, start): all time (0, 0), minutes (60, t), hours (3600, t)
    usage_hours   sums by hour, task, client, model, requested model, API key and tag
    budget_days   spent and reserved by day (of the calendar's zone) and scope

Everything is filed under the row's own timestamp, never under the time of settling, so windows, usage and export agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

from mtllm.domain.caller import KEY_SCOPE_PREFIX, SERVICE_SCOPE, Budget
from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.periods import UTC_CALENDAR, Calendar
from mtllm.ledger.budgets import refuse_call
from mtllm.ledger.engine import Connection, Engine, Row, Value
from mtllm.ledger.records import OK, OPEN, Attempt, BudgetAlert, BudgetState, Hit, Settlement, scopes_of

MICROSECONDS = 1_000_000
MINUTE = 60
HOUR = 3600
DAY = 86_400
MINUTES_KEPT_SECONDS = 31 * DAY
"""Minute sums serve windows of up to 30 days; older ones may go."""


class Counts(NamedTuple):
    """What rows add up to. The fields are the columns of every table of sums."""

    requests: int = 0
    cached_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    saved: int = 0
    unpriced_requests: int = 0

    def plus(self, other: Counts) -> Counts:
        """Return both together."""
        return Counts._make(map(add, self, other))


NO_COUNTS = Counts()


class Bucket(NamedTuple):
    """Where counts are filed. `start` is the beginning of a minute or an hour in epoch seconds."""

    start: int
    task: str
    client: str
    model: str
    requested_model: str
    key_name: str
    tag: str


COUNT_NAMES = ", ".join(Counts._fields)
_COUNT_COLUMNS = ", ".join(f"{name} BIGINT NOT NULL" for name in Counts._fields)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE entries (
            id {serial_key},
            at BIGINT NOT NULL,
            deadline BIGINT NOT NULL,
            request_id TEXT NOT NULL,
            attempt BIGINT NOT NULL,
            task TEXT NOT NULL,
            client TEXT NOT NULL,
            key_name TEXT,
            model TEXT NOT NULL,
            status TEXT NOT NULL,
            shared BIGINT NOT NULL DEFAULT 0,
            input_tokens BIGINT NOT NULL DEFAULT 0,
            cached_input_tokens BIGINT NOT NULL DEFAULT 0,
            output_tokens BIGINT NOT NULL DEFAULT 0,
            input_cost BIGINT NOT NULL DEFAULT 0,
            output_cost BIGINT NOT NULL DEFAULT 0,
            total_cost BIGINT NOT NULL DEFAULT 0,
            saved BIGINT NOT NULL DEFAULT 0,
            bound BIGINT NOT NULL DEFAULT 0,
            reserved BIGINT NOT NULL DEFAULT 0,
            estimated BIGINT NOT NULL DEFAULT 0,
            unpriced BIGINT NOT NULL DEFAULT 0,
            input_price BIGINT,
            cached_input_price BIGINT,
            output_price BIGINT
        )""",
        "CREATE INDEX entries_by_time ON entries (at, id)",
        "CREATE INDEX entries_open ON entries (deadline) WHERE status = 'open'",
        f"CREATE TABLE rollups (span BIGINT, start BIGINT, {_COUNT_COLUMNS}, PRIMARY KEY (span, start))",
        f"""CREATE TABLE usage_hours (
            start BIGINT, task TEXT, client TEXT, model TEXT, {_COUNT_COLUMNS},
            PRIMARY KEY (start, task, client, model)
        )""",
        """CREATE TABLE budget_days (
            day BIGINT, scope TEXT, spent BIGINT NOT NULL, reserved BIGINT NOT NULL, PRIMARY KEY (day, scope)
        )""",
    ),
    (  # 2: which model was asked for and why another answered, the key and the tag of each sum
        "ALTER TABLE entries ADD COLUMN requested_model TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN fallback TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE entries ADD COLUMN tag TEXT NOT NULL DEFAULT ''",
        "UPDATE entries SET requested_model = model",
        "ALTER TABLE usage_hours RENAME TO usage_hours_1",
        f"""CREATE TABLE usage_hours (
            start BIGINT, task TEXT, client TEXT, model TEXT, requested_model TEXT, key_name TEXT, tag TEXT,
            {_COUNT_COLUMNS}, PRIMARY KEY (start, task, client, model, requested_model, key_name, tag)
        )""",
        f"""INSERT INTO usage_hours (start, task, client, model, requested_model, key_name, tag, {COUNT_NAMES})
            SELECT start, task, sums.client, model, model, COALESCE(keys.key_name, ''), '', {COUNT_NAMES}
            FROM usage_hours_1 AS sums LEFT JOIN (
                SELECT client, MAX(key_name) AS key_name FROM entries GROUP BY client
            ) AS keys ON keys.client = sums.client""",  # noqa: S608 - names of ours
        "DROP TABLE usage_hours_1",
        "CREATE INDEX entries_of_request ON entries (request_id)",
        "CREATE INDEX usage_hours_of_key ON usage_hours (key_name, start)",
    ),
    (  # 3: what was told of budgets; `next_post` is when a POST that was not taken is sent again, null when none is
        """CREATE TABLE budget_alerts (
            scope TEXT, period TEXT, day BIGINT, percent BIGINT,
            at BIGINT NOT NULL, spent BIGINT NOT NULL, limit_ BIGINT NOT NULL, next_post BIGINT,
            PRIMARY KEY (scope, period, day, percent)
        )""",
    ),
)
"""The statements that lead from each version of the schema to the next; the first makes version 1 of nothing."""


class LedgerTooNew(LedgerUnavailable):
    """A newer version of this program has written the ledger; this one would get it wrong."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"The ledger has schema version {found}, this program knows {known} at most: "
            "run the version that wrote it, or point DATA_DIR or DATABASE_URL at another ledger.",
            retry_after=60.0,
        )


def migrate(engine: Engine, connection: Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring the schema to the version of `migrations`, whole or not at all. Raises LedgerTooNew if it is past it."""
    connection.begin(schema=True)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        found = find_version(connection, known=len(migrations))
        for statement in (statement for migration in migrations[found:] for statement in migration):
            connection.execute(statement.format(serial_key=engine.serial_key))
        if found < len(migrations):
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version (version) VALUES (?)", (len(migrations),))
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def find_version(connection: Connection, *, known: int = len(MIGRATIONS)) -> int:
    """Return the schema's version. Raises LedgerTooNew if it is past the one that this program knows."""
    [(found,)] = connection.execute("SELECT COALESCE(MAX(version), 0) FROM schema_version")
    if found > known:
        raise LedgerTooNew(found, known)
    return int(found)


def micros(timestamp: float) -> int:
    """Return epoch seconds as the integer microseconds that are stored."""
    return round(timestamp * MICROSECONDS)


def _upsert(table: str, keys: Sequence[str], sums: Sequence[str]) -> str:
    columns = ", ".join((*keys, *sums))
    places = ", ".join("?" * (len(keys) + len(sums)))
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
    return f"INSERT INTO {table} ({columns}) VALUES ({places}) ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"  # noqa: S608 - names of ours


_OPEN_COLUMNS = (
    "at",
    "deadline",
    "request_id",
    "attempt",
    "task",
    "client",
    "key_name",
    "model",
    "status",
    "bound",
    "reserved",
    "requested_model",
    "fallback",
    "tag",
)
_INSERT_OPEN = f"""
    INSERT INTO entries ({", ".join(_OPEN_COLUMNS)})
    VALUES ({", ".join("?" * len(_OPEN_COLUMNS))}) RETURNING id"""  # noqa: S608 - names of ours
_SETTLE = """
    UPDATE entries SET status = ?, model = ?, input_tokens = ?, cached_input_tokens = ?, output_tokens = ?,
        input_cost = ?, output_cost = ?, total_cost = ?, estimated = ?, unpriced = ?,
        input_price = ?, cached_input_price = ?, output_price = ?,
        fallback = CASE WHEN ? <> '' THEN ? ELSE fallback END,
        reserved = CASE WHEN bound > ? THEN (bound - ?) * ? ELSE 0 END
    WHERE id = ? AND status IN ('open', 'unsettled')
    RETURNING at, task, client, key_name, requested_model, tag, bound, reserved"""
RESERVED_BY_OPEN = "SELECT COALESCE(SUM(reserved), 0) FROM entries WHERE status = 'open' AND +at >= ?"
"""The plus keeps SQLite from the index by time: the open rows are few, those of a day are not."""
_HIT = "(?, 0, ?, 0, ?, ?, ?, ?, 'hit', ?, ?, ?, ?, ?, ?, ?)"
_INSERT_HIT = f"""
    INSERT INTO entries (at, deadline, request_id, attempt, task, client, key_name, model, status, shared,
        input_tokens, output_tokens, saved, requested_model, fallback, tag)
    VALUES {_HIT}"""  # noqa: S608 - places only
HITS_A_STATEMENT = 50
_INSERT_HITS = _INSERT_HIT + f", {_HIT}" * (HITS_A_STATEMENT - 1)
_MARK_UNSETTLED = "UPDATE entries SET status = 'unsettled' WHERE status = 'open' AND deadline < ? RETURNING id"
_PRUNE = """
    DELETE FROM entries WHERE id IN
        (SELECT id FROM entries WHERE at < ? AND status <> 'open' ORDER BY at, id LIMIT ?) RETURNING id"""
_PRUNE_MINUTES = f"DELETE FROM rollups WHERE span = {MINUTE} AND start < ?"  # noqa: S608 - a constant
_INSERT_ALERT = """
    INSERT INTO budget_alerts (scope, period, day, percent, at, spent, limit_, next_post)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING percent"""
_LEASE_ALERTS = """
    UPDATE budget_alerts SET next_post = ? WHERE next_post <= ?
    RETURNING scope, period, day, percent, at, spent, limit_"""
_ALERT_TAKEN = """
    UPDATE budget_alerts SET next_post = NULL WHERE scope = ? AND period = ? AND day = ? AND percent = ?"""
_ADD_ROLLUP = _upsert("rollups", ("span", "start"), Counts._fields)
_ADD_USAGE_HOUR = _upsert("usage_hours", Bucket._fields, Counts._fields)
_ADD_BUDGET_DAY = _upsert("budget_days", ("day", "scope"), ("spent", "reserved"))
SUM_BUDGET_DAYS = """
    SELECT CAST(COALESCE(SUM(spent), 0) AS BIGINT), CAST(COALESCE(SUM(reserved), 0) AS BIGINT)
    FROM budget_days WHERE day >= ? AND day < ? AND scope = ?"""


_UNCHANGED = BudgetState(0, 0)


@dataclass(frozen=True, slots=True)
class InsertedRow:
    """A row just inserted. Its id is there once the transaction is committed (see `Connection.execute`)."""

    returned: Sequence[Row]

    @property
    def id(self) -> int:
        """The number of the row."""
        return int(self.returned[0][0])


class LedgerTransaction:
    """Writes rows inside one transaction. Sums are gathered in memory and written once, by `finish`.

    A write that raises one of our own errors (BudgetExceeded) has written nothing; the others may go on.
    """

    def __init__(self, connection: Connection, calendar: Calendar = UTC_CALENDAR) -> None:
        self._connection = connection
        self._calendar = calendar
        self._counts: dict[Bucket, Counts] = {}
        self._budgets: dict[tuple[int, int, str], BudgetState] = {}
        self._budget_changes: dict[tuple[int, str], BudgetState] = {}
        self._settled: list[tuple[Settlement, Sequence[Row]]] = []

    def open(self, attempt: Attempt, budgets: tuple[Budget, ...]) -> InsertedRow:
        """Insert the row of `attempt` with its reservation. Raises BudgetExceeded."""
        at = micros(attempt.timestamp)
        for budget in budgets:
            self._check(budget, at, attempt.reserved)
        row: dict[str, Value] = {
            "at": at,
            "deadline": micros(attempt.deadline),
            "request_id": attempt.request_id,
            "attempt": attempt.number,
            "task": attempt.task,
            "client": attempt.client,
            "key_name": attempt.key,
            "model": attempt.model,
            "status": OPEN,
            "bound": attempt.reserved,
            "reserved": attempt.reserved,
            "requested_model": attempt.requested_model or attempt.model,
            "fallback": attempt.fallback,
            "tag": attempt.tag,
        }
        returned = self._connection.execute(_INSERT_OPEN, [row[column] for column in _OPEN_COLUMNS])
        self._spend(at, attempt.key, 0, attempt.reserved)
        return InsertedRow(returned)

    def settle(self, row_id: int, end: Settlement) -> None:
        """Write how the attempt ended, unless that is written already."""
        usage, cost, charge = end.amount.usage, end.amount.cost, end.charge
        price = None if charge is None else charge.price
        rows = self._connection.execute(
            _SETTLE,
            (
                end.status,
                end.model,
                usage.input,
                usage.cached_input,
                usage.output,
                cost.input,
                cost.output,
                cost.total,
                int(charge is not None and charge.estimated),
                int(end.unpriced),
                None if price is None else price.input,
                None if price is None else price.cached_input,
                None if price is None else price.output,
                end.fallback,
                end.fallback,
                cost.total,
                cost.total,
                int(end.keep_reservation),
                row_id,
            ),
        )
        self._settled.append((end, rows))

    def add_hits(self, hits: Sequence[Hit]) -> None:
        """Insert the rows of `hits`. Statements of many rows, since each one lets go of the interpreter's lock."""
        rows: list[tuple[Value, ...]] = []
        savings: dict[Bucket, list[int]] = {}
        for hit in hits:
            at, asked = micros(hit.timestamp), hit.requested_model or hit.model
            rows.append(
                (
                    at,
                    hit.request_id,
                    hit.task,
                    hit.client,
                    hit.key,
                    hit.model,
                    int(hit.shared),
                    hit.input_tokens,
                    hit.output_tokens,
                    hit.saved,
                    asked,
                    hit.fallback,
                    hit.tag,
                )
            )
            bucket = Bucket(_minute_of(at), hit.task, hit.client, hit.model, asked, hit.key or "", hit.tag)
            savings.setdefault(bucket, []).append(hit.saved)
        whole = len(rows) - len(rows) % HITS_A_STATEMENT
        for start in range(0, whole, HITS_A_STATEMENT):
            chunk = rows[start : start + HITS_A_STATEMENT]
            self._connection.execute(_INSERT_HITS, [value for row in chunk for value in row])
        if rows[whole:]:
            self._connection.executemany(_INSERT_HIT, rows[whole:])
        for bucket, amounts in savings.items():
            counts = Counts(requests=len(amounts), cached_requests=len(amounts), saved=sum(amounts))
            self._count(bucket, counts)

    def mark_unsettled(self, now: float) -> int:
        """Mark the rows still open after their deadline and return how many. Their bounds stay reserved."""
        return len(self._connection.execute(_MARK_UNSETTLED, (micros(now),)))

    def record_alert(self, alert: BudgetAlert, *, posts: bool) -> bool:
        """Keep an alert; return False where it was told already. `posts`: it is to be sent, too."""
        next_post = 0 if posts else None
        values = (*alert[:4], micros(alert.at), alert.spent, alert.limit, next_post)
        return len(self._connection.execute(_INSERT_ALERT, values)) == 1

    def lease_alerts(self, now: float, seconds: float) -> list[BudgetAlert]:
        """Return the alerts that are to be sent now; nobody else sends them for so many seconds."""
        rows = self._connection.execute(_LEASE_ALERTS, (micros(now + seconds), micros(now)))
        return [
            BudgetAlert(scope, period, day, percent, at / MICROSECONDS, spent, limit)
            for scope, period, day, percent, at, spent, limit in rows
        ]

    def mark_alert_taken(self, alert: BudgetAlert) -> None:
        """Send it no more."""
        self._connection.execute(_ALERT_TAKEN, alert[:4])

    def prune(self, before: float, batch: int) -> int:
        """Remove up to `batch` rows older than `before` and return how many. Open ones and all sums stay."""
        return len(self._connection.execute(_PRUNE, (micros(before), batch)))

    def prune_minutes(self, before: float) -> None:
        """Remove the minute sums older than `before`."""
        self._connection.execute(_PRUNE_MINUTES, (int(before),))

    def touch(self) -> None:
        """Write something that changes nothing, to learn whether writing works."""
        self._connection.executemany(_ADD_ROLLUP, [(0, 0, *NO_COUNTS)])

    def finish(self) -> None:
        """Write the sums. In a fixed order, so that two processes never wait for each other's rows crosswise."""
        self._count_settled()
        rollups: dict[tuple[int, int], Counts] = {}
        hours: dict[Bucket, Counts] = {}
        for bucket, counts in self._counts.items():
            hour = bucket._replace(start=bucket.start - bucket.start % HOUR)
            for span in ((0, 0), (MINUTE, bucket.start), (HOUR, hour.start)):
                rollups[span] = rollups.get(span, NO_COUNTS).plus(counts)
            hours[hour] = hours.get(hour, NO_COUNTS).plus(counts)
        write = self._connection.executemany
        if self._budget_changes:
            write(_ADD_BUDGET_DAY, sorted((*key, *change) for key, change in self._budget_changes.items()))
        if hours:
            write(_ADD_USAGE_HOUR, sorted((*key, *counts) for key, counts in hours.items()))
            write(_ADD_ROLLUP, sorted((*key, *counts) for key, counts in rollups.items()))

    def _check(self, budget: Budget, at: int, amount: int) -> None:
        """Raises BudgetExceeded if `amount` does not fit. Nobody else writes until the commit: what is read holds."""
        self._count_settled()
        first, following = self._calendar.days(budget.period, at / MICROSECONDS)
        days = (first, following, budget.scope)
        if days not in self._budgets:
            [row] = self._connection.execute(SUM_BUDGET_DAYS, days)
            self._budgets[days] = BudgetState(*row)
        state = self._budgets[days]
        for (day, scope), change in self._budget_changes.items():
            if scope == budget.scope and first <= day < following:
                state = state.plus(change)
        if state.spent + state.reserved + amount > budget.limit:
            reserved = self._reserved_by_open(budget, at)
            raise refuse_call(budget, state, amount, reserved, at / MICROSECONDS, self._calendar)

    def _reserved_by_open(self, budget: Budget, at: int) -> int:
        """Return the part of a budget's reservations that goes back when the calls under way have ended."""
        begin = micros(self._calendar.start(budget.period, at / MICROSECONDS))
        key = budget.scope.removeprefix(KEY_SCOPE_PREFIX)
        wanted, values = ("", (begin,)) if budget.scope == SERVICE_SCOPE else (" AND key_name = ?", (begin, key))
        [row] = self._connection.execute(RESERVED_BY_OPEN + wanted, values)
        return int(row[0])

    def _count_settled(self) -> None:
        """Count what was settled so far: which rows those were is known only when they have come."""
        settled, self._settled = self._settled, []
        for end, rows in settled:
            usage, cost = end.amount.usage, end.amount.cost.total
            counts = Counts(
                requests=int(end.status == OK),
                input_tokens=usage.input,
                output_tokens=usage.output,
                cost=cost,
                unpriced_requests=int(end.unpriced),
            )
            for at, task, client, key, asked, tag, bound, reserved in rows:
                self._spend(at, key, cost, reserved - bound)
                self._count(Bucket(_minute_of(at), task, client, end.model, asked, key or "", tag), counts)

    def _spend(self, at: int, key: str | None, spent: int, reserved: int) -> None:
        for scope in scopes_of(key):
            day = (self._day(at), scope)
            change = self._budget_changes.get(day, _UNCHANGED)
            self._budget_changes[day] = change.plus(BudgetState(spent, reserved))

    def _day(self, at: int) -> int:
        return self._calendar.day(at / MICROSECONDS)

    def _count(self, bucket: Bucket, counts: Counts) -> None:
        if any(counts):
            known = self._counts.get(bucket)
            self._counts[bucket] = counts if known is None else known.plus(counts)


def _minute_of(at: int) -> int:
    return at // (MINUTE * MICROSECONDS) * MINUTE
