"""The end of a process: what it waits for, for how long, and that it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from waitress import wasyncore
from waitress.server import create_server

from mtllm.http.lifecycle import POLL_SECONDS, Lifecycle
from mtllm.http.waitress_server import watch_unsent
from mtllm.project import PROJECT
from tests.support.fakes import FakeClock


@pytest.fixture
def lifecycle(clock: FakeClock) -> Lifecycle:
    return Lifecycle(30, monotonic=clock)


def test_nothing_in_flight_is_nothing_to_wait_for(lifecycle: Lifecycle, clock: FakeClock) -> None:
    """It drains at once."""
    lifecycle.drain(wait=clock.sleep)
    assert lifecycle.draining
    assert lifecycle.seconds_left() == 30


def test_a_drain_waits_for_requests_and_for_bytes(lifecycle: Lifecycle, clock: FakeClock) -> None:
    """First one request ends, then the last bytes leave, then it is over."""
    unsent_bytes = [True]
    lifecycle.begin()
    lifecycle.watch_connections(lambda: bool(unsent_bytes))
    waited = 0

    def wait(seconds: float) -> None:
        nonlocal waited
        waited += 1
        clock.advance(seconds)
        if waited == 5:
            lifecycle.end()
        if waited == 9:
            unsent_bytes.clear()

    lifecycle.drain(wait)
    assert (waited, lifecycle.in_flight) == (9, 0)


def test_a_drain_waits_no_longer_than_it_may(lifecycle: Lifecycle, clock: FakeClock) -> None:
    """DRAIN_SECONDS; callers are told how much of that is left."""
    lifecycle.begin()
    told: list[float] = []

    def wait(seconds: float) -> None:
        clock.advance(seconds)
        told.append(lifecycle.seconds_left())

    lifecycle.drain(wait)
    assert told[0] == pytest.approx(30 - POLL_SECONDS)
    assert told[-1] == 0


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.0.0.1:0 127.0.0.2:0"])
def test_connections_of_all_addresses_count(listen: str) -> None:
    """A name may stand for several addresses; without connections there is nothing to send."""
    dispatchers: dict[int, Any] = {}
    server: Any = create_server(lambda _environ, _start: [], map=dispatchers, listen=listen, threads=1)
    assert watch_unsent(server)() is False
    dispatchers[-1] = SimpleNamespace(total_outbufs_len=1, requests=[])
    assert watch_unsent(server)() is True
    del dispatchers[-1]
    server.task_dispatcher.shutdown()
    wasyncore.close_all(dispatchers)


def test_only_the_main_thread_takes_signals(lifecycle: Lifecycle) -> None:
    """Elsewhere Python would not let it, and whoever runs the threads has a handler."""
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lifecycle.drain_on_sigterm, args=(lambda: None,))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


_TOLD_TO_STOP = """
import os, signal, time
from mtllm.http.lifecycle import Lifecycle
def close():
    {close}
{before}
Lifecycle(30).drain_on_sigterm(close)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
raise SystemExit(1)
"""


@pytest.mark.parametrize(
    ("close", "before", "status"),
    [
        ("pass", "", 0),
        ("raise OSError('disk full')", "", 0),
        ("pass", "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))", 7),
    ],
    ids=["well", "closing fails", "another handler"],
)
def test_a_process_that_is_told_to_stop_does(close: str, before: str, status: int) -> None:
    """Though it be told twice, or closing go wrong; a handler that somebody else installed stays."""
    code = _TOLD_TO_STOP.format(close=close, before=before)
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, timeout=15, check=False)
    assert run.returncode == status, run.stderr
