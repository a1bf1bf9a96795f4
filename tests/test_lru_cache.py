"""The caches: what is found, what is forgotten and when, what is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lru_cache import LRUCache, RateLimitCache, ResponseCache
from tests.support.fakes import FakeClock
from tests.support.threads import run_threads

Request = tuple[str, str, dict[str, Any]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class TestLRUCache:
    def test_what_was_put_is_found(self) -> None:
        """A value comes back under its key; an unknown key gives None or the default."""
        cache = LRUCache[str, int]()
        cache.put("a", 1)
        assert cache.get("a") == 1
        assert cache.get("b") is None
        assert cache.get("b", 7) == 7

    @pytest.mark.parametrize("value", [None, 0, "", False])
    def test_falsy_values_are_values(self, value: object) -> None:
        """A stored None, 0, "" or False is a hit, told apart from a miss by the default."""
        cache = LRUCache[str, object]()
        cache.put("a", value)
        assert cache.get("a", "absent") is value
        assert cache.get_stats()["hits"] == 1

    def test_the_least_recently_used_goes_first(self) -> None:
        """Beyond max_size the entry goes that was neither put nor found for the longest time."""
        cache = LRUCache[str, int](2)
        cache.put("a", 1)
        cache.put("b", 2)
        cache.get("a")
        cache.put("c", 3)
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
        assert cache.get_stats()["evictions"] == 1

    def test_a_cache_of_size_0_keeps_nothing(self) -> None:
        """max_size=0 is a cache switched off."""
        cache = LRUCache[str, int](0)
        cache.put("a", 1)
        assert cache.get("a") is None

    def test_expired_at_the_boundary(self, clock: FakeClock) -> None:
        """An entry lives while now < expires, and not at that moment any more."""
        cache = LRUCache[str, int](default_ttl=10, monotonic=clock)
        cache.put("a", 1)
        clock.advance(9.999)
        assert cache.get("a") == 1
        clock.advance(0.001)
        assert cache.get("a") is None
        assert (cache.size(), cache.get_stats()["expirations"]) == (0, 1)

    def test_a_ttl_of_its_own(self, clock: FakeClock) -> None:
        """The ttl given at put is that entry's, None means the default."""
        cache = LRUCache[str, int](default_ttl=10, monotonic=clock)
        cache.put("long", 1, ttl=100)
        cache.put("default", 1, ttl=None)
        clock.advance(10)
        assert (cache.get("long"), cache.get("default")) == (1, None)

    @pytest.mark.parametrize("ttl", [0, -1, 0.0, float("nan")])
    def test_ttl_0_is_not_the_default(self, ttl: float) -> None:
        """What expires at once is not kept, and the value it replaces is gone."""
        cache = LRUCache[str, int]()
        cache.put("a", 1)
        cache.put("a", 2, ttl=ttl)
        assert cache.get("a") is None
        assert cache.size() == 0

    def test_without_a_default_ttl_entries_stay(self, clock: FakeClock) -> None:
        """default_ttl=None never expires."""
        cache = LRUCache[str, int](default_ttl=None, monotonic=clock)
        cache.put("a", 1)
        clock.advance(1e9)
        assert cache.get("a") == 1

    def test_bounded_by_bytes(self) -> None:
        """The oldest go until the sum of weights fits; replacing a value replaces its weight."""
        cache = LRUCache[str, bytes](max_bytes=10, weigh=len)
        cache.put("a", b"1234")
        cache.put("b", b"1234")
        cache.put("b", b"123456")
        assert cache.get_stats()["bytes"] == 10
        cache.put("c", b"1")
        assert cache.get("a") is None
        assert cache.get_stats()["bytes"] == 7

    def test_what_is_too_heavy_is_not_kept(self) -> None:
        """A value heavier than the whole cache evicts nobody; the value it replaces is gone."""
        cache = LRUCache[str, bytes](max_bytes=10, weigh=len)
        cache.put("a", b"1")
        cache.put("b", b"1")
        cache.put("a", bytes(11))
        assert (cache.get("a"), cache.get("b")) == (None, b"1")

    def test_delete_and_clear(self) -> None:
        """Both say what they removed, and the weights go with the entries."""
        cache = LRUCache[str, bytes](max_bytes=10, weigh=len)
        cache.put("a", b"12")
        cache.put("b", b"12")
        assert (cache.delete("a"), cache.delete("a")) == (True, False)
        assert (cache.clear(), cache.clear()) == (1, 0)
        assert cache.get_stats()["bytes"] == 0

    def test_peek_moves_and_counts_nothing(self, clock: FakeClock) -> None:
        """A peek leaves order and statistics alone, and does not see what expired."""
        cache = LRUCache[str, int](2, 10, monotonic=clock)
        cache.put("a", 1)
        cache.put("b", 2)
        assert cache.peek("a") == 1
        cache.put("c", 3)
        clock.advance(10)
        assert (cache.peek("a"), cache.peek("c")) == (None, None)
        assert cache.get_stats()["hits"] == cache.get_stats()["misses"] == 0

    def test_statistics(self) -> None:
        """The hit ratio is hits over look-ups, 0.0 before the first."""
        cache = LRUCache[str, int](5)
        assert cache.get_stats()["hit_ratio"] == 0.0
        cache.put("a", 1)
        for key in "aaab":
            cache.get(key)
        assert cache.get_stats() == {
            "size": 1,
            "max_size": 5,
            "bytes": 0,
            "max_bytes": None,
            "hits": 3,
            "misses": 1,
            "evictions": 0,
            "expirations": 0,
            "hit_ratio": 0.75,
        }

    @pytest.mark.parametrize("arguments", [{"max_size": -1}, {"max_bytes": 10}])
    def test_impossible_bounds_are_refused(self, arguments: dict[str, Any]) -> None:
        """A negative size, or bytes without a way to weigh, is a ValueError."""
        with pytest.raises(ValueError, match="max_"):
            LRUCache(**arguments)

    def test_sixteen_threads(self) -> None:
        """Under contention no operation fails, the bounds hold, and every look-up is counted once."""
        cache = LRUCache[int, bytes](50, max_bytes=300, weigh=len)

        def work(number: int) -> None:
            for step in range(500):
                key = (number * step) % 80
                cache.put(key, bytes(key % 12))
                value = cache.get((key * 7) % 80)
                assert value is None or len(value) == (key * 7) % 80 % 12
                if step % 50 == 0:
                    cache.delete(key)

        run_threads(16, work)
        stats = cache.get_stats()
        assert stats["hits"] + stats["misses"] == 16 * 500
        assert stats["size"] <= 50
        assert stats["bytes"] <= 300
        cache.clear()
        assert cache.get_stats()["bytes"] == 0

    def test_what_goes_while_it_is_looked_up_was_there(self) -> None:
        """A look-up takes no lock: an entry deleted between finding and returning it is still the answer, and a hit."""

        interruptions: list[Callable[[], object]] = []

        def interrupted() -> float:
            while interruptions:
                interruptions.pop()()
            return 0.0

        cache = LRUCache[str, int](monotonic=interrupted)
        cache.put("a", 1)
        interruptions.append(lambda: cache.delete("a"))
        assert cache.get("a") == 1
        assert cache.get("a") is None
        assert (cache.get_stats()["hits"], cache.get_stats()["misses"]) == (1, 1)

    def test_what_replaces_an_expired_entry_stays(self, clock: FakeClock) -> None:
        """Whoever meets an entry past its time does not take away the new one that another thread has just put."""

        interruptions: list[Callable[[], object]] = []

        def interrupted() -> float:
            now = clock.now
            while interruptions:
                interruptions.pop()()
            return now

        cache = LRUCache[str, int](default_ttl=10, monotonic=interrupted)
        cache.put("a", 1)
        clock.advance(10)
        interruptions.append(lambda: cache.put("a", 2))
        assert cache.get("a") is None
        assert cache.get("a") == 2
        assert cache.get_stats()["expirations"] == 0

    def test_a_key_is_there_while_its_value_is_replaced(self) -> None:
        """A look-up in the midst of a put finds the former value or the new one."""
        seen: list[int | None] = []

        class Key(str):
            def __hash__(self) -> int:
                if looking:
                    seen.append(cache.get("a"))
                return super().__hash__()

        looking = False
        cache = LRUCache[str, int](2)
        cache.put("a", 1)
        cache.put("b", 1)
        looking = True
        cache.put(Key("a"), 2)
        looking = False
        assert set(seen) <= {1, 2}
        assert len(seen) > 1
        assert (cache.get("a"), cache.get("b"), cache.size()) == (2, 1, 2)

    def test_keys_that_bring_code_of_their_own(self) -> None:
        """Threads may change places within a key's own comparison: nothing fails, nothing is lost or counted twice."""

        @dataclass(frozen=True)
        class Key:
            name: int

            def __eq__(self, other: object) -> bool:
                time.sleep(0)
                return isinstance(other, Key) and other.name == self.name

            def __hash__(self) -> int:
                return self.name % 5

        cache = LRUCache[Key, int](8)

        def work(number: int) -> None:
            for step in range(100):
                name = number * step % 12
                cache.put(Key(name), name)
                assert cache.get(Key(name), name) == name

        run_threads(8, work)
        assert cache.size() == 8
        assert cache.get_stats()["hits"] + cache.get_stats()["misses"] == 800


class TestResponseCache:
    @pytest.fixture
    def cache(self, clock: FakeClock) -> ResponseCache:
        return ResponseCache(default_ttl=100, clock=clock, monotonic=clock)

    def test_the_python_face(self, cache: ResponseCache, clock: FakeClock) -> None:
        """What was cached under a prompt and a task comes back with tokens, dollars and time."""
        cache.cache_response("hi", "text", "hello", 8, 425, 0.0001708, model="m")
        assert cache.get_cached_response("hi", "text", model="m") == {
            "response": "hello",
            "input_tokens": 8,
            "output_tokens": 425,
            "cost": 0.0001708,
            "cached_at": clock(),
        }
        clock.advance(100)
        assert cache.get_cached_response("hi", "text", model="m") is None

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("x", "classify", {"categories": ["a,b"]}), ("x", "classify", {"categories": ["a", "b"]})),
            (("x", "text", {}), ("x", "code", {})),
            (("x", "text", {}), ("x", "text", {"temperature": 0})),
            (("x", "text", {"model": "a"}), ("x", "text", {"model": "b"})),
            (("a", "b c", {}), ("a b", "c", {})),
            (("1", "text", {}), ("x", "text", {"prompt_": 1})),
        ],
    )
    def test_different_requests_never_share_an_answer(self, cache: ResponseCache, one: Request, other: Request) -> None:
        """Prompt, task and whatever else changes the answer are told apart, however they are written."""
        cache.cache_response(one[0], one[1], "hello", 1, 1, 0.0, **one[2])
        assert cache.get_cached_response(other[0], other[1], **other[2]) is None
        assert cache.get_cached_response(one[0], one[1], **one[2]) is not None

    def test_the_order_of_names_does_not_matter(self, cache: ResponseCache) -> None:
        """The same facts named in another order are the same request."""
        cache.cache_response("x", "text", "hello", 1, 1, 0.0, model="m", temperature=1)
        assert cache.get_cached_response("x", "text", temperature=1, model="m") is not None

    @pytest.mark.parametrize(("one", "other"), [(0, -0.0), (0.0, -0.0), (1, 1.0), ([2.0], [2]), ({"a": 3}, {"a": 3.0})])
    def test_equal_numbers_are_one_request(self, cache: ResponseCache, one: Any, other: Any) -> None:
        """However a number is written, wherever it stands."""
        cache.cache_response("x", "text", "hello", 1, 1, 0.0, option=one)
        assert cache.get_cached_response("x", "text", option=other) is not None

    def test_what_json_cannot_say_is_refused(self, cache: ResponseCache) -> None:
        """A response that could not be kept is a TypeError, not a surprise later."""
        with pytest.raises(TypeError):
            cache.cache_response("x", "text", object(), 1, 1, 0.0)


class TestRateLimitCache:
    @pytest.fixture
    def table(self, clock: FakeClock) -> RateLimitCache:
        return RateLimitCache(3, monotonic=clock)

    def test_counts_within_a_sliding_window(self, table: RateLimitCache, clock: FakeClock) -> None:
        """A call counts for window_size seconds from when it was made, not per clock minute."""
        assert [table.increment_count("a", 60), table.increment_count("a", 60)] == [1, 2]
        clock.advance(59)
        assert table.increment_count("a", 60) == 3
        clock.advance(1)
        assert (table.get_count("a"), table.increment_count("a", 60)) == (1, 2)

    def test_get_count_changes_nothing(self, table: RateLimitCache, clock: FakeClock) -> None:
        """Reading the count neither counts nor moves a client; an unknown one has none."""
        table.increment_count("a")
        assert (table.get_count("a"), table.get_count("a"), table.get_count("b")) == (1, 1, 0)
        assert table.size() == 1

    def test_many_calls_are_all_counted(self, table: RateLimitCache, clock: FakeClock) -> None:
        """The ring grows with the calls in the window, and calls that left it are not counted."""
        for number in range(1, 1001):
            assert table.increment_count("a", 60) == number
        clock.advance(30)
        table.increment_count("a", 60)
        clock.advance(30)
        assert (table.get_count("a", 60), table.get_count("a", 20)) == (1, 0)

    def test_bounded_and_least_recently_seen_first(self, table: RateLimitCache) -> None:
        """Beyond max_size the client longest not seen is forgotten."""
        for client in ("a", "b", "c", "a", "d"):
            table.increment_count(client)
        assert [table.get_count(client) for client in "abcd"] == [2, 0, 1, 1]
        assert table.get_stats() == {"size": 3, "max_size": 3, "evictions": 1}
        assert (table.clear(), table.size()) == (3, 0)

    def test_a_table_needs_room(self) -> None:
        """A table for nobody would admit everybody, so it is refused."""
        with pytest.raises(ValueError, match="max_size"):
            RateLimitCache(0)

    def test_sixteen_threads(self) -> None:
        """No call is lost when many count the same client at once."""
        table = RateLimitCache()
        run_threads(16, lambda _: [table.increment_count("a", 3600) for _ in range(200)])
        assert table.get_count("a", 3600) == 3200
