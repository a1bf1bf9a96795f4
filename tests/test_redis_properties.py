"""The shared limiter against the one of a single process, over random calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtllm.domain.limits import Limit
from mtllm.ratelimit.redis_limiter import SharedRateLimiter
from mtllm.redis_link import RedisLink
from tests.support.fakes import FakeClock
from tests.support.redis_server import RedisServer, linked, running_redis
from tests.test_redis_limiter import age, own_limiter

LIMITS = st.lists(st.builds(Limit, st.integers(1, 9), st.integers(20, 90)), min_size=1, max_size=3).map(tuple)
CALLS = st.lists(st.tuples(st.sampled_from([0, 0, 0, 10, 30]), st.sampled_from("ab")), max_size=30)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def link(redis: RedisServer) -> Iterator[RedisLink]:
    with linked(redis) as link:
        yield link


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=LIMITS.map(lambda limits: tuple(Limit(one.amount, one.window_seconds * 10) for one in limits)), calls=CALLS
)
def test_both_limiters_agree(
    redis: RedisServer, link: RedisLink, limits: tuple[Limit, ...], calls: list[tuple[int, str]]
) -> None:
    """The same calls are admitted, and leave the same number."""
    redis.say("FLUSHALL")
    clock = FakeClock()
    one, shared = own_limiter(clock), SharedRateLimiter(link, own_limiter(FakeClock()), monotonic=clock)
    for pause, client in calls:
        clock.advance(pause * 10)
        age(redis, pause * 10)
        expected, found = one.hit(client, limits), shared.hit(client, limits)
        assert expected is not None
        assert found is not None
        assert (found.admitted, found.remaining) == (expected.admitted, expected.remaining)
