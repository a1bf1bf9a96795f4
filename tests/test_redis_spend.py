"""The since-start total of all processes: complete, never falling, nothing counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mtllm.billing.prices import SpendMeter
from mtllm.billing.redis_spend import SharedSpend
from mtllm.redis_link import Arg, Connections, RedisLink, Script
from tests.support.redis_server import PATIENCE_SECONDS, RedisServer, linked, running_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.say("FLUSHALL")
    return server


@pytest.fixture
def line(redis: RedisServer) -> Iterator[Connections]:
    connections = Connections(redis.url, PATIENCE_SECONDS)
    yield connections
    connections.disconnect()


@pytest.fixture
def link(redis: RedisServer) -> RedisLink:
    return RedisLink(redis.url, warn=print)


class Process:
    """One process's meter and its share in the total."""

    def __init__(self, link: RedisLink) -> None:
        self.meter = SpendMeter()
        self.sync = SharedSpend(link, self.meter).sync


def test_all_hear_what_all_have_spent(link: RedisLink, line: Connections) -> None:
    """At once what this process spent, at its next beat what the others did."""
    one, other = Process(link), Process(link)
    assert one.meter.add(100) == 100
    one.sync(line)
    other.sync(line)
    assert other.meter.total() == 100
    assert other.meter.add(7) == 107
    assert one.meter.total() == 100
    for process in (other, one, other, one):
        process.sync(line)
    assert (one.meter.total(), other.meter.total()) == (107, 107)


def test_a_later_process_begins_with_the_total(link: RedisLink, line: Connections) -> None:
    """The total outlives those who made it."""
    one = Process(link)
    one.meter.add(2**52)
    one.sync(line)
    late = Process(link)
    late.sync(line)
    assert late.meter.total() == 2**52


class LosesAnswers:
    """A line on which every question is carried out, and its answer lost."""

    def __init__(self, line: Connections) -> None:
        self._line = line

    def command(self, *args: Arg) -> Any:
        self._line.command(*args)
        raise TimeoutError

    def run(self, script: Script, keys: Sequence[Arg], arguments: Sequence[Arg]) -> Any:
        self._line.run(script, keys, arguments)
        raise TimeoutError


def test_a_push_whose_answer_was_lost_counts_once(link: RedisLink, line: Connections) -> None:
    """It is repeated as it was, so Redis adds nothing."""
    one = Process(link)
    one.meter.add(100)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            one.sync(LosesAnswers(line))
    one.meter.add(1)
    one.sync(line)
    assert one.meter.total() == 101
    assert line.command("GET", "mtllm:1:spend") == b"101"


def test_a_redis_that_forgot_hears_it_again(redis: RedisServer, link: RedisLink, line: Connections) -> None:
    """No process's figure falls, and what the living have spent is in the total again."""
    one, other = Process(link), Process(link)
    one.meter.add(100)
    other.meter.add(10)
    for process in (one, other, one):
        process.sync(line)
    redis.say("FLUSHALL")
    other.sync(line)
    assert other.meter.total() == 110
    one.sync(line)
    other.meter.add(5)
    other.sync(line)
    one.sync(line)
    assert (one.meter.total(), other.meter.total()) == (115, 115)


def test_what_redis_knows_of_a_process_expires(redis: RedisServer, link: RedisLink, line: Connections) -> None:
    """Processes come and go; only the total stays."""
    one = Process(link)
    one.sync(line)
    lifetimes = {key: redis.say("TTL", key) for key in redis.say("KEYS", "*")}
    assert lifetimes.pop(b"mtllm:1:spend") == -1
    assert all(80_000 < seconds <= 86_400 for seconds in lifetimes.values())


def test_the_last_beat_tells_the_rest(redis: RedisServer) -> None:
    """What was spent after the last beat is told when the link closes."""
    meter = SpendMeter()
    with linked(redis, beat_seconds=3600) as link:
        link.on_beat(SharedSpend(link, meter).sync)
        meter.add(42)
    assert redis.say("GET", "mtllm:1:spend") == b"42"
