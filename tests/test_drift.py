"""How far off our estimates are: what is compared, when, and by whom."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from mtllm.billing.counting import estimate_apart
from mtllm.billing.drift import CountingFailedError, Drift, DriftMeter
from mtllm.billing.tokens import TokenCounter
from tests.support.serving import eventually

NEVER = 3600.0
NO_REST = 0.0


def count_letters(texts: Sequence[str]) -> list[int]:
    return list(map(len, texts))


class GuardedCount:
    """Counts letters once it is told to go on."""

    def __init__(self) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.batches.append(len(texts) // 2)
        self.started.set()
        assert self.go_on.wait(10)
        return count_letters(texts)


@pytest.fixture
def meters() -> Iterator[Callable[..., DriftMeter]]:
    """Makes meters that are closed in the end."""
    made: list[DriftMeter] = []

    def make(
        estimate: Callable[[Sequence[str]], Sequence[int]] = count_letters,
        gather_seconds: float = NO_REST,
        rest_seconds: float = NO_REST,
        **most: int,
    ) -> DriftMeter:
        made.append(DriftMeter(estimate, gather_seconds=gather_seconds, rest_seconds=rest_seconds, **most))
        return made[-1]

    yield make
    for meter in made:
        meter.close()


def test_both_counts_are_added_up(meters: Callable[..., DriftMeter]) -> None:
    """The ratio is our count over Gemini's; there is none before the first call."""
    meter = meters()
    assert (meter.snapshot().input_ratio, meter.snapshot().output_ratio) == (None, None)
    meter.observe("12345678", "1234", 10, 2)
    meter.observe("12", "", 10, 2)
    assert eventually(lambda: meter.snapshot() == Drift(2, 20, 10, 4, 4))
    assert (meter.snapshot().input_ratio, meter.snapshot().output_ratio) == (0.5, 1.0)


def test_what_a_batch_has_no_room_for_is_dropped_at_once(meters: Callable[..., DriftMeter]) -> None:
    """By calls and by characters; no request waits for a count."""
    count = GuardedCount()
    meter = meters(count, most_calls=2, most_characters=100)
    meter.observe("a", "a", 1, 1)
    assert count.started.wait(10)
    for prompt in ("b", "c" * 100, "d", "e"):
        meter.observe(prompt, "", 1, 1)
    assert meter.snapshot().dropped == 2
    count.go_on.set()
    assert eventually(lambda: meter.snapshot().samples == 3)
    assert count.batches == [1, 2]


def test_calls_wait_for_their_batch(meters: Callable[..., DriftMeter]) -> None:
    """The second one comes after a rest, however many calls there are."""
    count = GuardedCount()
    count.go_on.set()
    meter = meters(count, rest_seconds=NEVER)
    meter.observe("a", "a", 1, 1)
    assert eventually(lambda: meter.snapshot().samples == 1)
    meter.observe("b", "b", 1, 1)
    assert count.batches == [1]


def test_without_calls_there_is_no_thread(meters: Callable[..., DriftMeter]) -> None:
    """It ends when a rest brought none, and the next call starts another."""
    meter, before = meters(), threading.active_count()
    for samples in (1, 2):
        meter.observe("a", "a", 1, 1)
        assert eventually(lambda: (meter.snapshot().samples, threading.active_count()) == (samples, before))  # noqa: B023


def test_a_failed_count_is_dropped_and_told_once(
    meters: Callable[..., DriftMeter], caplog: pytest.LogCaptureFixture
) -> None:
    """A figure is missing then, and nothing else."""

    def fail(_: Sequence[str]) -> list[int]:
        raise CountingFailedError("no process")

    meter = meters(fail)
    for dropped in (1, 2):
        meter.observe("a secret", "a", 1, 1)
        assert eventually(lambda: meter.snapshot().dropped == dropped)  # noqa: B023
    assert [record.getMessage() for record in caplog.records] == [
        "Estimates are not compared with Gemini's counts: no process."
    ]


def test_closing_does_not_wait_for_a_rest(meters: Callable[..., DriftMeter]) -> None:
    """Calls that wait are forgotten, later ones ignored."""
    meter, before = meters(gather_seconds=NEVER), threading.active_count()
    meter.observe("a", "a", 1, 1)
    meter.close()
    meter.observe("a", "a", 1, 1)
    assert (meter.snapshot(), threading.active_count()) == (Drift(), before)


class TestTheProcessApart:
    def test_the_process_apart_counts_as_this_one_does(self) -> None:
        """Any string, lone surrogates too."""
        texts = ["", "hello world", "on 27 November 2026: 12345", "汉字 \U0001f600", "\ud800", "<|endoftext|>"]
        counter = TokenCounter()
        assert estimate_apart(texts) == [counter.estimate_tokens(text) for text in texts]

    @pytest.mark.parametrize("executable", ["", "/nonexistent/python", "/bin/false"])
    def test_one_that_cannot_start_is_told_in_words(self, monkeypatch: pytest.MonkeyPatch, executable: str) -> None:
        """A server that embeds Python may have none to start."""
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(CountingFailedError, match="process"):
            estimate_apart(["a"])
