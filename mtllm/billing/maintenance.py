"""The ledger's maintenance: it writes late settlements and removes rows past their retention."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mtllm.billing.recorder import CostRecorder
from mtllm.domain.errors import LedgerUnavailable
from mtllm.ledger.ledger import Ledger

CHECK_SECONDS = 5.0
"""Seconds between two checks for work: a disk that has space again is found within this time."""
BATCH_PAUSE_SECONDS = 0.05
"""Seconds between two batches of removed rows, so that a settlement waits for one batch at most."""
JUMP_SECONDS = 3600.0
"""Clocks that differ by more have jumped; NTP that sets one, or a nap of the machine, is less."""
_DAY = 86_400


class LedgerMaintenance:
    """Looks after the ledger in a thread of its own, from `start` to `close`.

    Rows older than `retention_days` go at the start and then once a UTC day, in batches of the ledger's size. After a
    jump of the clock that `monotonic` did not see none goes until the clock has gone evenly for a day, or is back.
    `report` is told, in a sentence, when rows went or something is wrong.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: CostRecorder,
        *,
        retention_days: float,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._recorder = recorder
        self._retention_seconds = retention_days * _DAY
        self._report = report
        self._clock = clock
        self._monotonic = monotonic
        self._began = clock() - monotonic()
        self._jumped_to: float | None = None
        self._trust_from = 0.0
        self._check_seconds = check_seconds
        self._pruned_on: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; the first check is after `check_seconds`."""
        # On Python 3.13 a thread object that was made before a fork cannot be started after it, so it is made here.
        self._thread = threading.Thread(target=self._work, name="ledger-maintenance", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop between two batches, and write what the disk takes now."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._settle_late()

    def run_due(self) -> None:
        """Do the work that is due. What the ledger cannot take now stays due."""
        self._settle_late()
        if not self._trusts_clock():
            return
        today = self._clock() // _DAY
        if today != self._pruned_on and self._prune():
            self._pruned_on = today

    def _work(self) -> None:
        while not self._stop.wait(self._check_seconds):
            try:
                self.run_due()
            except Exception as defect:  # tomorrow's rows must go too
                self._report(f"The ledger's maintenance failed ({type(defect).__name__}); it is tried again.")

    def _trusts_clock(self) -> bool:
        """Return whether the clock went as the monotonic one did; a new time is believed after a day of even going."""
        began, now = self._clock() - self._monotonic(), self._monotonic()
        if abs(began - self._began) <= JUMP_SECONDS:
            self._jumped_to = None
            return True
        if self._jumped_to is None or abs(began - self._jumped_to) > JUMP_SECONDS:
            self._jumped_to, self._trust_from = began, now + _DAY
            self._report(
                f"The clock jumped by {began - self._began:+.0f} s. No ledger row is removed until it is back, or has "
                "gone evenly for a day."
            )
        elif now >= self._trust_from:
            self._began, self._jumped_to = began, None
            return True
        return False

    def _settle_late(self) -> None:
        with suppress(LedgerUnavailable):  # readiness tells; the settlements wait for the next check
            self._recorder.settle_late()

    def _prune(self) -> bool:
        """Remove rows past their retention; return whether none is left."""
        try:
            removed = self._ledger.prune(self._clock() - self._retention_seconds, progress=self._pause)
        except (LedgerUnavailable, _Stopped):
            return False
        if removed:
            self._report(f"{removed} ledger rows past USAGE_RETENTION_DAYS were removed; totals keep them.")
        return True

    def _pause(self, _removed: int) -> None:
        if self._stop.wait(BATCH_PAUSE_SECONDS):
            raise _Stopped


class _Stopped(Exception):
    """The service is closing."""
