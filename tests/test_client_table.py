"""The table of clients under many threads: the numbered rules of `mtllm/ratelimit/window.py`, and who is evicted."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from threading import Lock, Thread
from typing import Any

import pytest

from lru_cache import LRUCache, RateLimitCache
from mtllm.domain.limits import Limit
from mtllm.ratelimit.clients import ClientTable
from mtllm.ratelimit.limiter import RateLimiter
from tests.support.fakes import FakeClock
from tests.support.threads import run_threads

THREADS = 16


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Threads change places a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


class Admitted:
    """Counts the admitted calls of each client, by many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.of = Counter[str]()

    def note(self, client: str, admitted: bool) -> None:
        with self._lock:
            self.of[client] += admitted


def test_1_one_owner() -> None:
    """Inside `locked` a thread is alone with its client's calls."""
    table = ClientTable()
    inside = Counter[str]()

    def work(number: int) -> None:
        for step in range(200):
            client = f"client-{(number + step) % 3}"
            with table.locked(client):
                inside[client] += 1
                assert inside[client] == 1
                time.sleep(0)
                inside[client] -= 1

    run_threads(THREADS, work)


def test_1_the_lock_is_given_back_when_the_block_fails() -> None:
    """An error inside the block leaves the client usable."""
    table = ClientTable()
    with pytest.raises(RuntimeError, match="inside"), table.locked("a"):
        raise RuntimeError("inside")
    with table.locked("a") as calls:
        assert calls.count(60, 0.0) == 0


def test_2_counted_for_somebody() -> None:
    """However clients push each other out, `locked` hands out the calls that the table has."""
    table = ClientTable(4)

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(300):
            client = f"client-{chance.randrange(12)}"
            with table.locked(client) as calls:
                time.sleep(0)
                assert not calls.evicted

    run_threads(THREADS, work)
    assert table.get_stats()["evictions"] > 0


def test_2_a_client_that_is_evicted_while_it_is_locked_is_looked_for_again(clock: FakeClock) -> None:
    """A call is never counted where nobody would find it: it is held to the entry that the table has."""
    table = ClientTable(3)
    limiter, limits = RateLimiter(table, monotonic=clock), (Limit(5, 60),)
    former: Any = table.find("a")
    former.lock = Interrupted(former.lock, table.clear)
    for remaining in (4, 3):
        verdict = limiter.hit("a", limits)
        assert verdict is not None
        assert verdict.remaining == remaining
    with table.locked("a") as calls:
        assert calls is not former
        assert calls.count(60, clock()) == 2


def test_3_all_or_nothing(clock: FakeClock) -> None:
    """Of many calls at once each window counts exactly the admitted ones."""
    table, admitted = ClientTable(), Admitted()
    limiter = RateLimiter(table, monotonic=clock)
    limits = (Limit(100, 60), Limit(150, 3600))

    def work(_: int) -> None:
        for _ in range(25):
            verdict = limiter.hit("a", limits)
            assert verdict is not None
            admitted.note("a", verdict.admitted)

    run_threads(THREADS, work)
    assert admitted.of["a"] == 100
    clock.advance(60)
    run_threads(THREADS, work)
    assert admitted.of["a"] == 150


def test_4_full_only_rejects() -> None:
    """Under two sets of limits by turns and a running clock, no window ever admits more than its amount."""
    table, lock = ClientTable(), Lock()
    limiter = RateLimiter(table)
    sets = ((Limit(7, 1),), (Limit(5, 1), Limit(9, 2)))
    end = time.monotonic() + 1.2
    times: list[tuple[float, float]] = []

    def work(number: int) -> None:
        while (before := time.monotonic()) < end:
            verdict = limiter.hit("a", sets[number % 2])
            assert verdict is not None
            if verdict.admitted:
                with lock:
                    times.append((before, time.monotonic()))

    run_threads(8, work)
    assert len(times) >= 7
    latest = sorted(after for _, after in times)
    earliest = sorted(before for before, _ in times)
    # each call was counted between these two moments, so the 7th after another ended at least a second after it began
    assert all(after - first >= 1 for first, after in zip(earliest, latest[7:], strict=False))


def test_5_one_order_of_locks() -> None:
    """Threads that lock, protect, evict and clear at once never wait for each other in a ring."""
    table = ClientTable(5)

    def work(number: int) -> None:
        chance = random.Random(number)
        for step in range(300):
            client = f"client-{chance.randrange(15)}"
            with table.locked(client) as calls:
                pass
            if step % 3 == 0:
                table.protect(client, calls, time.monotonic() + step % 2)
            if step % 100 == 99:
                table.clear()

    worker = Thread(target=run_threads, args=(THREADS, work), daemon=True)
    worker.start()
    worker.join(60)
    assert not worker.is_alive()


def test_6_bounded_the_limited_last() -> None:
    """In a flood of newcomers the table stays within its size, and a client at its limit stays in it."""
    table, admitted = ClientTable(10), Admitted()
    limiter, limits = RateLimiter(table), (Limit(3, 3600),)
    while (verdict := limiter.hit("limited", limits)) and verdict.admitted:
        pass

    def work(number: int) -> None:
        for step in range(200):
            limiter.hit(f"new-{number}-{step}", limits)
            assert table.size() <= 10 + THREADS  # its two halves are read one after the other
            verdict = limiter.hit("limited", limits)
            assert verdict is not None
            admitted.note("limited", verdict.admitted)

    run_threads(THREADS, work)
    assert table.size() == 10
    assert admitted.of["limited"] == 0


def test_sixteen_threads_in_a_table_that_is_too_small() -> None:
    """Clients that push each other out all the time: nothing fails and the bound holds."""
    table = ClientTable(10)

    def work(number: int) -> None:
        for step in range(300):
            client = f"client-{(number + step) % 30}"
            with table.locked(client) as calls:
                calls.find_tightest((Limit(100, 60),), time.monotonic())
                calls.record(time.monotonic())
                assert calls.count(60, time.monotonic()) >= 1
            if step % 3 == 0:
                table.protect(client, calls, time.monotonic() + step % 2)

    run_threads(16, work)
    assert table.size() == 10


def test_bounded_and_least_recently_seen_first() -> None:
    """Beyond max_size the client longest not seen is forgotten."""
    table = ClientTable(3)
    for client in ("a", "b", "c", "a", "d"):
        table.find(client)
    assert table.get_stats() == {"size": 3, "max_size": 3, "protected": 0, "evictions": 1}
    assert (table.clear(), table.size()) == (3, 0)


def test_a_table_needs_room() -> None:
    """A table for nobody would admit everybody, so it is refused."""
    with pytest.raises(ValueError, match="max_size"):
        ClientTable(0)


@pytest.mark.parametrize("make", [LRUCache, RateLimitCache, ClientTable])
def test_a_free_threaded_interpreter_is_refused(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the global lock, lock-free look-ups would be wrong in silence; the error says how to start instead."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(RuntimeError, match="PYTHON_GIL=1"):
        make()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert make() is not None


class Interrupted:
    """A lock whose first taker is overtaken by another thread: `interruption` happens first."""

    def __init__(self, lock: Any, interruption: Callable[[], object]) -> None:
        self._lock = lock
        self._interruptions = [interruption]

    def acquire(self) -> None:
        while self._interruptions:
            self._interruptions.pop()()
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_exc_info: object) -> None:
        self.release()
