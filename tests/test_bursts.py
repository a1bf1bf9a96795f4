"""Clients that keep failing."""

from __future__ import annotations

import pytest

from mtllm.domain.findings import Finding
from mtllm.security.bursts import BurstDetector
from mtllm.security.detection import hostile
from tests.support.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def detector(clock: FakeClock) -> BurstDetector:
    return BurstDetector(window=60, max_clients=3, monotonic=clock)


@pytest.mark.parametrize(
    ("status", "kind", "threshold"),
    [(401, "repeated_unauthorized", 5), (404, "not_found_burst", 20), (429, "rate_limit_burst", 20)],
)
def test_a_burst_is_told_once(detector: BurstDetector, status: int, kind: str, threshold: int) -> None:
    """The answer that completes a burst yields the finding, and those after it none."""
    told = [detector.observe("a", status) for _ in range(3 * threshold)]
    assert [index for index, finding in enumerate(told) if finding] == [threshold - 1]
    finding = told[threshold - 1]
    assert isinstance(finding, Finding)
    assert finding.kind == kind
    assert not hostile([finding])


def test_any_window_counts(detector: BurstDetector, clock: FakeClock) -> None:
    """A burst need not begin with a minute: what matters is that its answers lie within one window."""
    detector.observe("a", 401)
    clock.advance(59)
    assert [detector.observe("a", 401) for _ in range(3)] == [None] * 3
    clock.advance(30)
    assert detector.observe("a", 401) is None
    assert detector.observe("a", 401)


def test_a_burst_that_goes_on_is_told_once_a_window(detector: BurstDetector, clock: FakeClock) -> None:
    """An attack of five minutes is five findings, not one and not hundreds."""
    told = 0
    for _ in range(300):
        told += detector.observe("a", 401) is not None
        clock.advance(1)
    assert told == 5


def test_slow_failures_are_no_burst(detector: BurstDetector, clock: FakeClock) -> None:
    """A forgotten key in a job that runs every 15 s is no attack."""
    for _ in range(50):
        assert detector.observe("a", 401) is None
        clock.advance(15)


def test_clients_and_statuses_are_told_apart(detector: BurstDetector) -> None:
    """Failures of one client do not count for another, nor one status for another."""
    for _ in range(4):
        assert detector.observe("a", 401) is None
        assert detector.observe("b", 401) is None
        assert detector.observe("a", 404) is None


def test_success_counts_nothing(detector: BurstDetector) -> None:
    """Other statuses leave no trace, so they cannot push a failing client out."""
    for _ in range(4):
        detector.observe("a", 401)
    for index in range(100):
        assert detector.observe(f"other-{index}", 200) is None
    assert detector.observe("a", 401)


def test_memory_is_bounded(detector: BurstDetector) -> None:
    """The client that was silent longest is forgotten first."""
    for _ in range(4):
        detector.observe("a", 401)
    for other in "bc":
        detector.observe(other, 401)
    detector.observe("a", 404)  # a fourth pair: ("a", 401) goes
    assert detector.observe("a", 401) is None
