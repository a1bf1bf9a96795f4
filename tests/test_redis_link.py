"""The link to Redis: asked while it answers, left alone while it does not, and back by itself."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from threading import Thread

import pytest

from mtllm.redis_link import (
    MAX_CONCURRENT,
    SCRIPT_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
    WARN_SECONDS,
    RedisCommands,
    RedisHealth,
    RedisLink,
    RedisUnavailable,
    Script,
)
from tests.support.fakes import FakeClock
from tests.support.redis_server import PATIENCE_SECONDS, RedisServer, linked, running_redis, wait_until


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def refused(link: RedisLink) -> bool:
    try:
        link.command("PING")
    except RedisUnavailable:
        return True
    return False


def test_questions_are_answered(redis: RedisServer) -> None:
    """Commands and scripts, by a connection that is used again."""
    with linked(redis) as link:
        assert link.command("SET", "a", b"\x00\xff") == b"OK"
        assert link.command("GET", "a") == b"\x00\xff"
        assert link.run(Script("return KEYS[1] .. ARGV[1]"), ["k"], ["v"]) == b"kv"
        assert link.command("GET", "a") == b"\x00\xff"
        # one each for commands, scripts and the beat, and this one
        assert redis.say("INFO", "clients")["connected_clients"] == 4
        assert link.health() == RedisHealth(up=True, failures=0, refused=0)


def test_a_connection_that_redis_closed_is_replaced(redis: RedisServer) -> None:
    """Redis may close what is idle; that is no failure."""
    with linked(redis, beat_seconds=3600) as link:
        link.command("PING")
        redis.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert link.command("PING") == b"PONG"
        assert link.health().failures == 0


def test_one_refusal_is_one_questions_trouble(redis: RedisServer) -> None:
    """What Redis refuses is as good as no answer, and makes the link probe it; the others go on asking."""
    beats: list[object] = []
    with linked(redis, beats.append, beat_seconds=3600) as link:
        link.command("SET", "a", "word")
        assert len(beats) == 1
        with pytest.raises(RedisUnavailable):
            link.command("INCR", "a")
        wait_until(lambda: len(beats) == 2)
        assert link.command("GET", "a") == b"word"
        assert link.health() == RedisHealth(up=True, failures=1, refused=0)


def test_a_redis_that_takes_no_writes_is_down(redis: RedisServer) -> None:
    """The beat does what requests need, so it finds out that memory is full, and that it is not any more."""

    def write(line: RedisCommands) -> None:
        line.command("SET", "a", "b")

    with linked(redis, write, beat_seconds=0.01) as link:
        redis.say("CONFIG", "SET", "maxmemory", 1)
        wait_until(lambda: not link.health().up)
        redis.say("CONFIG", "SET", "maxmemory", 0)
        wait_until(lambda: link.health().up)


def test_a_frozen_redis_is_waited_for_once(redis: RedisServer) -> None:
    """The first questions wait for their time-out; those after them are refused without being asked."""
    told: list[str] = []
    with linked(redis, timeout=TIMEOUT_SECONDS, warn=told.append) as link:
        redis.freeze()
        wait_until(lambda: refused(link) and not link.health().up)
        before = link.health()
        began = time.perf_counter()
        assert all(refused(link) for _ in range(1000))
        assert time.perf_counter() - began < 1000 * TIMEOUT_SECONDS / 4
        assert link.health().refused - before.refused == 1000
        redis.thaw()
        wait_until(lambda: link.health().up)
    assert [message.partition(";")[0] for message in told[-2:]] == ["Redis cannot be used", "Redis is used again"]


def test_the_time_out_is_kept(redis: RedisServer) -> None:
    """20 ms, and what a busy machine adds."""
    assert TIMEOUT_SECONDS == 0.02
    with linked(redis, timeout=TIMEOUT_SECONDS, beat_seconds=3600) as link:
        wait_until(lambda: link.health().up)
        redis.freeze()
        began = time.perf_counter()
        assert refused(link)
        assert time.perf_counter() - began < 0.5
        redis.thaw()


def test_a_link_comes_back_with_a_new_redis(redis: RedisServer) -> None:
    """A Redis that was stopped and started again is used again, with no connection of before."""
    with linked(redis) as link:
        redis.stop()
        wait_until(lambda: refused(link))
        redis.start()
        wait_until(lambda: link.health().up)
        assert link.command("PING") == b"PONG"


def test_a_link_starts_without_redis(redis: RedisServer) -> None:
    """Told once; and it is used as soon as it is there."""
    redis.stop()
    told: list[str] = []
    link = RedisLink(redis.url, warn=told.append)
    try:
        link.open()
        wait_until(lambda: link.health().failures >= 3)
        assert refused(link)
        assert len(told) == 1
        redis.start()
        wait_until(lambda: link.health().up)
    finally:
        link.close()
    assert refused(link)


def test_a_flapping_redis_is_told_once_a_minute(redis: RedisServer) -> None:
    """Going down again within the minute is counted, not told; still down when it is over, it is."""
    told: list[str] = []
    clock = FakeClock()
    troubles = deque[int]()

    def stumble(_: RedisCommands) -> None:
        if troubles:
            troubles.pop()
            raise ConnectionResetError

    with linked(redis, stumble, warn=told.append, monotonic=clock, beat_seconds=0.01) as link:
        for number in range(1, 6):
            troubles.append(number)
            wait_until(lambda: link.health().failures == number and link.health().up)  # noqa: B023 - called here
        assert len(told) == 2
        redis.stop()
        wait_until(lambda: not link.health().up)
        assert len(told) == 2
        clock.advance(WARN_SECONDS)
        wait_until(lambda: len(told) == 3)


def test_the_beat_keeps_time_and_outlives_failures(redis: RedisServer) -> None:
    """Parts are called again and again, and before the link goes up."""
    beats: list[object] = []
    with linked(redis, beats.append, beat_seconds=0.01) as link:
        assert beats
        redis.stop()
        wait_until(lambda: refused(link))
        redis.start()
        wait_until(lambda: link.health().up)
        seen = len(beats)
        wait_until(lambda: len(beats) > seen)


def test_who_is_no_redis_is_no_redis() -> None:
    """A server that speaks something else is one that cannot be used."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        pytest.importorskip("redis")
        link = RedisLink(f"redis://127.0.0.1:{server.getsockname()[1]}", warn=told.append, timeout=0.05)
        link.open()
        try:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                wait_until(lambda: link.health().failures > 0)
        finally:
            link.close()
    assert refused(link)
    assert len(told) == 1


@pytest.mark.parametrize("url", ["redis://host:port", "http://127.0.0.1"])
def test_a_bad_url_is_a_value_error(url: str) -> None:
    """At once, not at the first question."""
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match=r"."):
        RedisLink(url, warn=print)


def test_scripts_do_not_queue_behind_commands(redis: RedisServer) -> None:
    """Commands that all wait for Redis leave connection and slot to a script."""
    with linked(redis, beat_seconds=3600) as link:
        threads = [Thread(target=link.command, args=("BLPOP", "nothing", 0)) for _ in range(3 * MAX_CONCURRENT)]
        for thread in threads:
            thread.start()
        wait_until(lambda: redis.say("INFO", "clients")["blocked_clients"] == MAX_CONCURRENT)
        assert link.run(Script("return 7"), [], []) == 7
        for _ in threads:
            redis.say("RPUSH", "nothing", "x")
        for thread in threads:
            thread.join()


def test_a_script_has_more_time_than_a_command(redis: RedisServer) -> None:
    """A Redis that takes longer than 20 ms is too slow for the cache, and in time for a rate check."""
    assert SCRIPT_TIMEOUT_SECONDS == 0.1
    with linked(redis, timeout=TIMEOUT_SECONDS, script_timeout=PATIENCE_SECONDS, beat_seconds=3600) as link:
        busy = Script("local n = 0 repeat n = n + 1 until n > 2e7 return n > 0")
        asked = Thread(target=lambda: answers.append(link.run(busy, [], [])))
        answers: list[object] = []
        asked.start()
        wait_until(lambda: refused(link))
        asked.join()
        assert answers == [1]


def test_a_redis_that_answers_late_is_not_down(redis: RedisServer) -> None:
    """A command that got no answer in time is refused, and the link stays up for the next."""
    with linked(redis, timeout=TIMEOUT_SECONDS, beat_seconds=3600) as link:
        redis.freeze()
        assert refused(link)
        redis.thaw()
        wait_until(lambda: not refused(link))
        assert link.health() == RedisHealth(up=True, failures=link.health().failures, refused=0)
