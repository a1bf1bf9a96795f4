"""Stand-ins that the tests pass in: a clock that moves only when told."""

from __future__ import annotations


class FakeClock:
    """Call it for the time in seconds; `advance` moves it. Serves as `clock`, `monotonic` and (advancing) `sleep`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    sleep = advance
