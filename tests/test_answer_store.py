"""The service's answers in memory: fresh, stale, restored, and what is counted."""

from __future__ import annotations

import pytest

from mtllm.caching.responses import AnswerStore
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage
from tests.support.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def answer(stored_at: float = 1_000_000.0, body: bytes = b'{"generated_text": "hi"}') -> StoredAnswer:
    return StoredAnswer(body, TokenUsage(8, 425), 170_800, "gemini-2.5-flash-lite", "stop", stored_at)


class RecordingJournal:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def append(self, key: bytes, answer: StoredAnswer, expires_at: float) -> None:
        self.events.append(("append", key, answer, expires_at))

    def touch(self, key: bytes) -> None:
        self.events.append(("touch", key))

    def clear(self) -> None:
        self.events.append(("clear",))


class TestAnswerStore:
    @pytest.fixture
    def cache(self, clock: FakeClock) -> AnswerStore:
        return AnswerStore(default_ttl=100, stale_seconds=50, clock=clock, monotonic=clock)

    def test_a_fresh_answer_knows_its_age_and_its_time_left(self, cache: AnswerStore, clock: FakeClock) -> None:
        """A hit carries the stored answer, its age and the seconds of freshness left."""
        cache.store(b"k", answer())
        clock.advance(30)
        assert cache.look_up(b"k") == (answer(), 30, 70)

    def test_max_age(self, cache: AnswerStore, clock: FakeClock) -> None:
        """An answer older than the caller accepts is a miss, yet stays for others."""
        cache.store(b"k", answer())
        clock.advance(30)
        assert cache.look_up(b"k", max_age=29) is None
        assert cache.look_up(b"k", max_age=30) is not None
        assert (cache.get_stats()["hits"], cache.get_stats()["misses"]) == (1, 1)

    def test_a_stale_answer_is_found_only_by_asking_for_it(self, cache: AnswerStore, clock: FakeClock) -> None:
        """Expired, it is a miss for look_up and, for stale_seconds, an answer with negative ttl for look_up_stale."""
        cache.store(b"k", answer())
        clock.advance(100)
        assert cache.look_up(b"k") is None
        assert cache.look_up_stale(b"k") == (answer(), 100, 0)
        clock.advance(49)
        assert cache.look_up_stale(b"k") == (answer(), 149, -49)
        clock.advance(1)
        assert cache.look_up_stale(b"k") is None
        assert (cache.get_stats()["hits"], cache.get_stats()["misses"]) == (0, 1)

    def test_without_stale_seconds_nothing_stale(self, clock: FakeClock) -> None:
        """By default an expired answer is gone."""
        cache = AnswerStore(default_ttl=100, clock=clock, monotonic=clock)
        cache.store(b"k", answer())
        clock.advance(100)
        assert cache.look_up_stale(b"k") is None
        assert (cache.clear(), cache.clear()) == (1, 0)

    @pytest.mark.parametrize("ttl", [0, -5])
    def test_ttl_0_is_not_kept_even_as_stale(self, cache: AnswerStore, ttl: float) -> None:
        """A ttl of 0 means that the answer must not be used again."""
        cache.store(b"k", answer(), ttl)
        assert cache.look_up_stale(b"k") is None

    def test_a_shared_answer_counts_as_a_hit(self, cache: AnswerStore) -> None:
        """The miss of one who then shared an answer in flight becomes a hit."""
        cache.look_up(b"k")
        cache.look_up(b"k")
        cache.count_shared_hit()
        stats = cache.get_stats()
        assert (stats["hits"], stats["misses"], stats["hit_ratio"]) == (1, 1, 0.5)

    def test_bounded_by_the_bytes_of_bodies(self, clock: FakeClock) -> None:
        """Bodies beyond max_bytes push the least recently used out."""
        cache = AnswerStore(max_bytes=100, clock=clock, monotonic=clock)
        for key in (b"a", b"b", b"c"):
            cache.store(key, answer(body=bytes(40)))
        assert cache.look_up(b"a") is None
        assert cache.get_stats()["bytes"] == 80

    def test_the_journal_hears_what_should_outlive_the_process(self, clock: FakeClock) -> None:
        """Stored answers with the end of their freshness, uses and clearing are journalled; ttl 0 is not."""
        journal = RecordingJournal()
        cache = AnswerStore(default_ttl=100, journal=journal, clock=clock, monotonic=clock)
        cache.store(b"k", answer())
        cache.store(b"never", answer(), ttl=0)
        cache.look_up(b"k")
        cache.look_up(b"absent")
        assert cache.clear() == 1
        assert journal.events == [("append", b"k", answer(), clock() + 100), ("touch", b"k"), ("clear",)]

    def test_a_restored_answer_goes_on_ageing(self, cache: AnswerStore, clock: FakeClock) -> None:
        """Age and time left come from the wall clock at the restart, and from the monotonic clock afterwards."""
        stored_at = clock() - 40
        assert cache.restore([(b"k", answer(stored_at), stored_at + 100)]) == 1
        clock.advance(10)
        assert cache.look_up(b"k") == (answer(stored_at), 50, 50)

    def test_a_restored_answer_may_be_stale(self, cache: AnswerStore, clock: FakeClock) -> None:
        """Within stale_seconds an expired answer comes back as a stale one."""
        stored_at = clock() - 120
        cache.restore([(b"k", answer(stored_at), stored_at + 100)])
        assert cache.look_up(b"k") is None
        assert cache.look_up_stale(b"k") == (answer(stored_at), 120, -20)

    @pytest.mark.parametrize("age", [150, 1e9, -1])
    def test_expired_and_future_answers_are_not_restored(
        self, cache: AnswerStore, clock: FakeClock, age: float
    ) -> None:
        """What expired meanwhile, or was stored in the future as a clock set back makes it seem, is left out."""
        stored_at = clock() - age
        assert cache.restore([(b"k", answer(stored_at), stored_at + 100)]) == 0
        assert cache.look_up_stale(b"k") is None

    def test_restoring_keeps_the_order_of_use(self, clock: FakeClock) -> None:
        """The last of the restored were used last, so the first go when there are too many."""
        cache = AnswerStore(2, 100, clock=clock, monotonic=clock)
        cache.restore((key, answer(clock()), clock() + 100) for key in (b"a", b"b", b"c"))
        assert cache.look_up(b"a") is None
        assert cache.look_up(b"c") is not None

    @pytest.mark.parametrize(("ttl", "left"), [(100, 60), (50, 10), (1000, 60)])
    def test_the_present_ttl_holds_for_restored_answers(self, clock: FakeClock, ttl: float, left: float) -> None:
        """A lowered ttl shortens the life of answers stored before; a raised one does not lengthen it."""
        cache = AnswerStore(default_ttl=ttl, clock=clock, monotonic=clock)
        stored_at = clock() - 40
        cache.restore([(b"k", answer(stored_at), stored_at + 100)])
        assert cache.look_up(b"k") == (answer(stored_at), 40, left)

    def test_an_answer_past_the_present_ttl_is_stale(self, clock: FakeClock) -> None:
        """It is as old as it is: within stale_seconds after its present end it may stand in for an error."""
        cache = AnswerStore(default_ttl=30, stale_seconds=20, clock=clock, monotonic=clock)
        stored_at = clock() - 40
        cache.restore([(b"k", answer(stored_at), stored_at + 100)])
        assert cache.look_up(b"k") is None
        assert cache.look_up_stale(b"k") == (answer(stored_at), 40, -10)
        clock.advance(10)
        assert cache.look_up_stale(b"k") is None

    def test_with_a_ttl_of_0_nothing_is_restored(self, clock: FakeClock) -> None:
        """0 = keep none, not even as stale answers."""
        cache = AnswerStore(default_ttl=0, stale_seconds=1000, clock=clock, monotonic=clock)
        assert cache.restore([(b"k", answer(clock()), clock() + 100)]) == 0
        assert cache.look_up_stale(b"k") is None
