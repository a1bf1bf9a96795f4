"""Answers in two tiers: what both hold, what each process may rely on, and what deletion means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from mtllm.caching.redis_tier import TieredCache, decode, encode
from mtllm.caching.responses import AnswerStore
from mtllm.completions.ports import AnswerCache
from mtllm.domain.completion import StoredAnswer
from mtllm.domain.money import TokenUsage
from mtllm.redis_link import Connections, RedisLink
from tests.support.fakes import FakeClock
from tests.support.redis_server import PATIENCE_SECONDS, RedisServer, linked, running_redis

KEY = bytes(range(20))
ANSWER = StoredAnswer(b'{"generated_text": "h\xc3\xa4?\\n"}', TokenUsage(8, 425), 170_800, "gemini", "stop", 0.0)
NEVER = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.say("FLUSHALL")
    return server


@pytest.fixture
def link(redis: RedisServer) -> Iterator[RedisLink]:
    with linked(redis, beat_seconds=NEVER) as link:
        yield link


@pytest.fixture
def line(redis: RedisServer) -> Iterator[Connections]:
    connections = Connections(redis.url, PATIENCE_SECONDS)
    yield connections
    connections.disconnect()


def own_cache(clock: FakeClock, max_size: int = 500) -> AnswerStore:
    return AnswerStore(max_size, 100, stale_seconds=50, clock=clock, monotonic=clock)


@pytest.fixture
def process(link: RedisLink, clock: FakeClock) -> Callable[[], TieredCache]:
    """Makes the cache of one more process."""
    return lambda: TieredCache(link, own_cache(clock), ttl=100, stale_seconds=50, clock=clock)


class TestContract:
    """What holds for the cache of one process and for the one in two tiers."""

    @pytest.fixture(params=["process", "tiered", "second process"])
    def caches(self, request: pytest.FixtureRequest, clock: FakeClock) -> tuple[AnswerCache, AnswerCache]:
        """Where answers are stored, and where they are looked up."""
        if request.param == "process":
            cache = own_cache(clock)
            return cache, cache
        make = request.getfixturevalue("process")
        first = make()
        return first, (first if request.param == "tiered" else make())

    def test_what_was_stored_is_found_with_age_and_time_left(
        self, caches: tuple[AnswerCache, AnswerCache], clock: FakeClock
    ) -> None:
        """Byte for byte, and it goes on ageing where it was."""
        answer = replace(ANSWER, stored_at=clock())
        caches[0].store(KEY, answer)
        clock.advance(30)
        assert caches[1].look_up(KEY) == (answer, 30, 70)
        clock.advance(30)
        assert caches[1].look_up(KEY) == (answer, 60, 40)
        assert caches[1].look_up(b"other") is None

    def test_max_age(self, caches: tuple[AnswerCache, AnswerCache], clock: FakeClock) -> None:
        """An answer older than the caller accepts is a miss, yet stays for others."""
        caches[0].store(KEY, replace(ANSWER, stored_at=clock()))
        clock.advance(30)
        assert caches[1].look_up(KEY, max_age=29) is None
        assert caches[1].look_up(KEY, max_age=30) is not None

    def test_a_stale_answer_is_found_only_by_asking_for_it(
        self, caches: tuple[AnswerCache, AnswerCache], clock: FakeClock
    ) -> None:
        """Expired, it is a miss for look_up and, for stale_seconds, an answer with negative ttl for look_up_stale."""
        answer = replace(ANSWER, stored_at=clock())
        caches[0].store(KEY, answer)
        clock.advance(110)
        assert caches[1].look_up(KEY) is None
        assert caches[1].look_up_stale(KEY) == (answer, 110, -10)


def test_hits_and_misses_are_counted_once(process: Callable[[], TieredCache], clock: FakeClock) -> None:
    """An answer from Redis is a hit, found or not in this process."""
    one, other = process(), process()
    one.store(KEY, replace(ANSWER, stored_at=clock()))
    for _ in range(2):
        other.look_up(KEY)
    other.look_up(b"absent")
    other.look_up(b"in flight")
    other.count_shared_hit()
    stats = other.get_stats()
    assert (stats["hits"], stats["misses"], stats["size"]) == (3, 1, 1)


def test_a_repeated_hit_asks_nobody(
    redis: RedisServer, link: RedisLink, process: Callable[[], TieredCache], clock: FakeClock
) -> None:
    """An answer that came from Redis once is found in this process afterwards."""
    one, other = process(), process()
    one.store(KEY, replace(ANSWER, stored_at=clock()))
    other.look_up(KEY)
    asked = redis.say("INFO", "commandstats")["cmdstat_get"]["calls"]
    for _ in range(10):
        assert other.look_up(KEY) is not None
    assert redis.say("INFO", "commandstats")["cmdstat_get"]["calls"] == asked


def test_a_newer_answer_elsewhere_goes_before_a_stale_one_here(
    process: Callable[[], TieredCache], clock: FakeClock
) -> None:
    """When Gemini fails here, what another process bought meanwhile is served."""
    one, other = process(), process()
    other.store(KEY, replace(ANSWER, stored_at=clock()))
    clock.advance(110)
    newer = replace(ANSWER, body=b"{}", stored_at=clock())
    one.store(KEY, newer)
    assert other.look_up_stale(KEY) == (newer, 0, 100)


def test_a_clock_that_is_behind_does_not_hide_answers(link: RedisLink, clock: FakeClock) -> None:
    """Machines' clocks differ a little: an answer from the near future is one of now."""
    ahead = FakeClock(clock() + 0.5)
    TieredCache(link, own_cache(ahead), ttl=100, clock=ahead).store(KEY, replace(ANSWER, stored_at=ahead()))
    behind = TieredCache(link, own_cache(clock), ttl=100, clock=clock)
    for _ in range(2):
        assert behind.look_up(KEY) == (replace(ANSWER, stored_at=clock()), 0, 100)


def test_deletion_empties_all_tiers(
    redis: RedisServer, process: Callable[[], TieredCache], line: Connections, clock: FakeClock
) -> None:
    """Redis' at once, other processes' at their next beat; other people's keys stay."""
    one, other, third = process(), process(), process()
    for number in range(1500):
        one.store(number.to_bytes(20), replace(ANSWER, stored_at=clock()))
    key = (1499).to_bytes(20)
    other.look_up(key)
    redis.say("SET", "theirs", "1")
    assert one.clear() == 1500
    assert one.look_up(key) is None
    assert third.look_up(key) is None
    other.sync(line)
    assert other.look_up(key) is None
    assert redis.say("KEYS", "*answer*") == []
    assert redis.say("GET", "theirs") == b"1"
    one.store(key, ANSWER)
    other.sync(line)
    assert other.get_stats()["size"] == 0


def test_an_answer_on_its_way_here_is_deleted_too(
    link: RedisLink, process: Callable[[], TieredCache], line: Connections, clock: FakeClock
) -> None:
    """Deleted between the look into Redis and its keeping here, it is not kept."""

    class Late(AnswerStore):
        def restore(self, entries: object) -> int:
            one.clear()
            other.sync(line)
            return super().restore(entries)  # type: ignore[arg-type]  # passed on as it came

    one = process()
    one.store(KEY, replace(ANSWER, stored_at=clock()))
    other = TieredCache(link, Late(500, 100, clock=clock, monotonic=clock), ttl=100, clock=clock)
    other.look_up(KEY)
    assert other.look_up(KEY) is None


def test_without_redis_each_process_has_its_own(link: RedisLink, clock: FakeClock) -> None:
    """Nothing fails; what is stored is found here."""
    cache = TieredCache(link, own_cache(clock), ttl=100, clock=clock)
    link.close()
    cache.store(KEY, replace(ANSWER, stored_at=clock()))
    assert cache.look_up(KEY) is not None
    assert cache.look_up(b"absent") is None
    assert cache.look_up_stale(b"absent") is None
    assert cache.clear() == 1
    assert cache.look_up(KEY) is None


def test_a_deletion_that_redis_missed_is_made_good(redis: RedisServer, line: Connections, clock: FakeClock) -> None:
    """Before Redis is used again, and once."""
    with linked(redis) as link:
        cache = TieredCache(link, own_cache(clock), ttl=100, clock=clock)
        cache.store(KEY, replace(ANSWER, stored_at=clock()))
    cache.clear()
    assert len(redis.say("KEYS", "*answer*")) == 1
    cache.sync(line)
    assert redis.say("KEYS", "*answer*") == []
    token = redis.say("GET", "mtllm:1:deleted")
    cache.sync(line)
    assert redis.say("GET", "mtllm:1:deleted") == token


def test_a_deletion_stays_owed_until_it_succeeds(redis: RedisServer, clock: FakeClock) -> None:
    """A beat that fails half-way leaves it to the next."""

    class Broken:
        def command(self, *args: object) -> None:
            raise ConnectionResetError

        run = command

    with linked(redis) as link:
        cache = TieredCache(link, own_cache(clock), ttl=100, clock=clock)
        cache.store(KEY, replace(ANSWER, stored_at=clock()))
    cache.clear()
    with pytest.raises(ConnectionResetError):
        cache.sync(Broken())
    connections = Connections(redis.url, PATIENCE_SECONDS)
    cache.sync(connections)
    connections.disconnect()
    assert redis.say("KEYS", "*answer*") == []


@pytest.mark.parametrize("ttl", [0.0, 100.0, 1e300])
def test_redis_drops_what_is_over(redis: RedisServer, link: RedisLink, clock: FakeClock, ttl: float) -> None:
    """After freshness and staleness; a ttl of 0 is not kept at all, and an endless one is long."""
    TieredCache(link, own_cache(clock), ttl=ttl, stale_seconds=50, clock=clock).store(KEY, ANSWER)
    lifetime = redis.say("PTTL", b"mtllm:1:answer:" + KEY)
    assert {0.0: lifetime == -2, 100.0: 140_000 < lifetime <= 150_000}.get(ttl, lifetime > 10**11)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: b"",
        lambda value: b"word",
        lambda value: value[:-1],
        lambda value: value[:20] + bytes([value[20] ^ 1]) + value[21:],
        lambda value: value[:-3] + b"x" + value[-2:],
    ],
)
def test_a_damaged_value_is_a_miss(
    redis: RedisServer, process: Callable[[], TieredCache], clock: FakeClock, damage: Callable[[bytes], bytes]
) -> None:
    """Cut, changed or another's: it is not served."""
    one, other = process(), process()
    one.store(KEY, replace(ANSWER, stored_at=clock()))
    name = b"mtllm:1:answer:" + KEY
    redis.say("SET", name, damage(redis.say("GET", name)))
    assert other.look_up(KEY) is None


def test_a_value_belongs_to_its_key() -> None:
    """What stands under another key is not an answer to this one."""
    value = encode(KEY, ANSWER, 12.5)
    assert decode(KEY, value) == (ANSWER, 12.5)
    assert decode(b"other", value) is None


def test_a_value_of_another_type_is_not_an_answer(
    redis: RedisServer, link: RedisLink, process: Callable[[], TieredCache]
) -> None:
    """A list where an answer should be is Redis' refusal, and a miss."""
    redis.say("RPUSH", b"mtllm:1:answer:" + KEY, "x")
    assert process().look_up(KEY) is None
    assert link.health().failures == 1


def test_an_answer_of_the_first_version_is_read() -> None:
    """Processes of two versions may share one Redis: the format did not change with the classes."""
    first = (
        b'mtllm answer 1\n\x84,i\xb2uj\xd3K\x18\xd7\xf9J\xc9\xd7\xd5\xa2{"input_tokens": 8, "output_tokens": 425, '
        b'"cost": 170800, "model": "gemini", "finish_reason": "stop", "stored_at": 0.0, "fresh_until": 100.0}\n'
        b'{"generated_text": "h\xc3\xa4?\\n"}'
    )
    assert decode(KEY, first) == (ANSWER, 100.0)
    assert decode(KEY, encode(KEY, ANSWER, 100.0)) == (ANSWER, 100.0)


@pytest.mark.parametrize(("ttl", "left"), [(100.0, 60), (50.0, 10), (1000.0, 60)])
def test_the_present_ttl_holds_for_what_redis_has(link: RedisLink, clock: FakeClock, ttl: float, left: float) -> None:
    """A process with a lower ttl serves no older answers; one with a higher ttl makes none live longer."""
    TieredCache(link, own_cache(clock), ttl=100, clock=clock).store(KEY, replace(ANSWER, stored_at=clock()))
    clock.advance(40)
    own = AnswerStore(500, ttl, clock=clock, monotonic=clock)
    other = TieredCache(link, own, ttl=ttl, clock=clock)
    for _ in range(2):  # from Redis, then from its own tier
        found = other.look_up(KEY)
        assert found is not None
        assert (found.age, found.ttl) == (40, left)


@pytest.mark.parametrize(("ttl", "stale_seconds"), [(0.0, 0.0), (0.0, 1000.0), (30.0, 10.0)])
def test_what_the_present_settings_end_is_not_served_from_redis(
    link: RedisLink, clock: FakeClock, ttl: float, stale_seconds: float
) -> None:
    """Neither fresh nor stale: a ttl of 0 is none at all, and lowered stale_seconds hold for older answers too."""
    before = TieredCache(link, own_cache(clock), ttl=100, stale_seconds=100, clock=clock)
    before.store(KEY, replace(ANSWER, stored_at=clock()))
    clock.advance(40)
    own = AnswerStore(500, ttl, stale_seconds=stale_seconds, clock=clock, monotonic=clock)
    now = TieredCache(link, own, ttl=ttl, stale_seconds=stale_seconds, clock=clock)
    assert now.look_up(KEY) is None
    assert now.look_up_stale(KEY) is None
