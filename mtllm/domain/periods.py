"""The periods of budgets: days and months of a time zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal

Period = Literal["day", "month"]

_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Calendar:
    """Days and months as they begin in `zone`. Days are numbered from 1970-01-01; times are epoch seconds."""

    zone: tzinfo = UTC

    def day(self, at: float) -> int:
        """Return the number of the day that holds `at`."""
        if self.zone is UTC:
            return int(at // 86_400)
        return _number(self._date(at))

    def days(self, period: Period, at: float) -> tuple[int, int]:
        """Return the numbers of the first day of the period that holds `at`, and of the first day after it."""
        first, following = self._bounds(period, at)
        return _number(first), _number(following)

    def end(self, period: Period, at: float) -> float:
        """Return when the period that holds `at` ends."""
        return self._midnight(self._bounds(period, at)[1])

    def start(self, period: Period, at: float) -> float:
        """Return when the period that holds `at` began."""
        return self._midnight(self._bounds(period, at)[0])

    def _midnight(self, day: date) -> float:
        return datetime.combine(day, time.min, self.zone).timestamp()

    def _bounds(self, period: Period, at: float) -> tuple[date, date]:
        day = self._date(at)
        if period == "day":
            return day, day + timedelta(days=1)
        first = day.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)

    def _date(self, at: float) -> date:
        return datetime.fromtimestamp(at, self.zone).date()


def _number(day: date) -> int:
    return day.toordinal() - _EPOCH


UTC_CALENDAR = Calendar()
