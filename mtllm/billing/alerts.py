"""Budget alerts: once a period and percentage, a line in the log, a count, and a POST retried until it is taken.

Everything happens in a thread of its own, never in a request's way. What was told is kept in the ledger, so that no
restart and no second process tells it again, and a POST that nobody took is tried after a restart too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mtllm.domain.caller import KEY_SCOPE_PREFIX, SERVICE_SCOPE, Budget
from mtllm.domain.errors import LedgerUnavailable
from mtllm.domain.money import dollars, exact_usd
from mtllm.domain.times import rfc3339
from mtllm.ledger.ledger import BudgetAlert, Ledger

CHECK_SECONDS = 10.0
"""How long after it is reached a percentage is told at most."""
POST_SECONDS = 10.0
RETRY_SECONDS = 60.0
"""How long after a POST that was not taken it is sent again, by whichever process comes first."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are sent, and the secret that signs them (X-Signature: hex HMAC-SHA256 of the body)."""

    url: str
    secret: str = ""

    def post(self, body: bytes) -> None:
        """Send one alert. Raises OSError where it is not taken with a 2xx."""
        headers = {"Content-Type": "application/json", "User-Agent": "mtllm"}
        if self.secret:
            headers["X-Signature"] = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        request = Request(self.url, body, headers, method="POST")  # noqa: S310  # http or https, by the settings
        with _OPENER.open(request, timeout=POST_SECONDS) as answer:
            if not 200 <= answer.status < 300:
                raise URLError(f"status {answer.status}")


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is not followed: it would carry the figures to another place."""

    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


class BudgetAlerts:
    """Watches budgets from `start` to `close`. `budgets` names those there are now; `report` gets the sentences."""

    def __init__(
        self,
        ledger: Ledger,
        budgets: Callable[[], Iterable[Budget]],
        *,
        percents: tuple[int, ...],
        webhook: Webhook | None,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.told = 0
        """Alerts since the start."""
        self.failed_posts = 0
        """POSTs that were not taken since the start."""
        self._ledger = ledger
        self._budgets = budgets
        self._percents = sorted(percents)
        self._webhook = webhook
        self._report = report
        self._clock = clock
        self._check_seconds = check_seconds
        self._closing = threading.Event()

    def start(self, _threads: int = 0) -> None:
        """Begin; do nothing where no percentage is to be told."""
        if self._percents:
            threading.Thread(target=self._work, name="budget-alerts", daemon=True).start()

    def close(self) -> None:
        """Watch no more; what was not sent is sent after the next start."""
        self._closing.set()

    def _work(self) -> None:
        while not self._closing.wait(self._check_seconds):
            try:
                self.check()
            except LedgerUnavailable:
                continue  # readiness tells of it

    def check(self) -> None:
        """Tell what is reached and was not told, and send what was not taken. Raises LedgerUnavailable."""
        now = self._clock()
        for budget in self._budgets():
            self._check(budget, now)
        if self._webhook is not None:
            for alert in self._ledger.lease_alerts(now, RETRY_SECONDS):
                self._send(self._webhook, alert)

    def _check(self, budget: Budget, now: float) -> None:
        spent = self._ledger.budget_state(budget.scope, now, budget.period).spent
        day, _ = self._ledger.calendar.days(budget.period, now)
        for percent in self._percents:
            if spent * 100 < budget.limit * percent:
                return
            alert = BudgetAlert(budget.scope, budget.period, day, percent, now, spent, budget.limit)
            if self._ledger.record_alert(alert, posts=self._webhook is not None):
                self.told += 1
                self._report(_sentence(alert))

    def _send(self, webhook: Webhook, alert: BudgetAlert) -> None:
        try:
            webhook.post(render_alert(alert))
        except OSError:
            self.failed_posts += 1
        else:
            self._ledger.mark_alert_taken(alert)


def _sentence(alert: BudgetAlert) -> str:
    whose = "the service" if alert.scope == SERVICE_SCOPE else f"key {alert.scope.removeprefix(KEY_SCOPE_PREFIX)}"
    spent, limit = exact_usd(alert.spent), exact_usd(alert.limit)
    return f"{alert.percent} % of the budget of {whose} for the {alert.period} is spent: ${spent} of ${limit}."


def render_alert(alert: BudgetAlert) -> bytes:
    """Return the body of the POST."""
    is_service = alert.scope == SERVICE_SCOPE
    return json.dumps(
        {
            "event": "budget_alert",
            "scope": "service" if is_service else "key",
            "key": None if is_service else alert.scope.removeprefix(KEY_SCOPE_PREFIX),
            "period": alert.period,
            "percent": alert.percent,
            "limit": dollars(alert.limit),
            "spent": dollars(alert.spent),
            "timestamp": rfc3339(alert.at),
        }
    ).encode()
