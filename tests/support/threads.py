"""Threads that begin together."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread


def run_threads(count: int, work: Callable[[int], object]) -> None:
    """Run `work(number)` in `count` threads that begin together; what each raised fails the test."""
    barrier, failures = Barrier(count), []

    def body(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
