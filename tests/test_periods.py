"""Days and months of a time zone, as budgets count them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtllm.domain.periods import UTC_CALENDAR, Calendar, Period

MOMENTS = st.floats(0, 4e9, allow_nan=False)
ZONES = ("Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Kiritimati")
CALENDARS = st.sampled_from([UTC_CALENDAR, *(Calendar(ZoneInfo(name)) for name in ZONES)])
PERIODS = st.sampled_from(["day", "month"])


@given(MOMENTS, CALENDARS, PERIODS)
def test_a_moment_lies_in_its_period(at: float, calendar: Calendar, period: Period) -> None:
    """From its first moment to its last, by times as by days."""
    assert calendar.start(period, at) <= at < calendar.end(period, at)
    first, following = calendar.days(period, at)
    assert first <= calendar.day(at) < following
    assert calendar.day(calendar.start(period, at)) == first
    assert calendar.day(calendar.end(period, at)) == following


@given(MOMENTS)
def test_utc_days_are_counted_from_the_epoch(at: float) -> None:
    """As the ledger has always counted them."""
    assert UTC_CALENDAR.day(at) == int(at // 86_400)


@pytest.mark.parametrize(
    ("zone", "moment", "ends"),
    [
        ("UTC", "2026-11-27T15:00:00Z", "2026-12-01T00:00:00Z"),
        ("Europe/Berlin", "2026-11-30T22:59:00Z", "2026-11-30T23:00:00Z"),
        ("Europe/Berlin", "2026-11-30T23:00:00Z", "2026-12-31T23:00:00Z"),
        ("America/Los_Angeles", "2026-12-01T07:59:00Z", "2026-12-01T08:00:00Z"),
    ],
)
def test_a_month_ends_at_midnight_there(zone: str, moment: str, ends: str) -> None:
    """On the first of the next."""
    at, end = (datetime.fromisoformat(text).timestamp() for text in (moment, ends))
    assert Calendar(ZoneInfo(zone)).end("month", at) == end


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-27", 24)])
def test_a_day_is_as_long_as_the_clock_makes_it(day: str, hours: int) -> None:
    """Berlin changes its clocks in March and October."""
    berlin = Calendar(ZoneInfo("Europe/Berlin"))
    noon = datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=UTC).timestamp()
    assert timedelta(seconds=berlin.end("day", noon) - berlin.start("day", noon)) == timedelta(hours=hours)
