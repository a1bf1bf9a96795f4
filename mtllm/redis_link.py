"""One Redis, asked only while it answers.

up     commands go to Redis; when one fails, or takes longer than its lane allows, it is refused, and Redis is probed at
       once: if the probe fails too, the link goes down
down   commands are refused at once, so that nobody waits; a thread goes on trying, with growing pauses, and takes the
       link up again when Redis does all that it is needed for

There are two lanes, each with connections and slots of its own, so that neither queues behind the other: `command`
(the cache), which is soon given up, and `run` (scripts: rate checks), which has time, since an exact limit is worth the
wait. The thread's beat, every `BEAT_SECONDS`, has a third connection, and more patience than both: a Redis that answers
late is alive. The beat is also how state that requests must not wait for is synchronized. Nothing is opened, and no
thread started, before `open`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from math import inf
from typing import Any, Protocol

TIMEOUT_SECONDS = 0.02
"""Longest wait for the answer to a command, and for its connection."""
SCRIPT_TIMEOUT_SECONDS = 0.1
"""The same for a script."""
BEAT_TIMEOUT_SECONDS = 0.5
"""The same for the beat, which no request waits for."""
MAX_CONCURRENT = 8
"""Commands that one process sends at once. The others wait here: in Redis a burst would wait for itself, and look as if
Redis were slow."""
MAX_CONCURRENT_SCRIPTS = 16
"""The same for scripts, which may take longer."""
BEAT_SECONDS = 0.5
"""Longest lag of state that is synchronized by the beat, while Redis answers."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between tries while Redis is away."""
OPEN_SECONDS = 1.0
"""Longest wait of the start for Redis, which a busy machine needs; a Redis that is not there is told at once."""
LONGEST_EXPIRY_MS = 10 * 365 * 86_400 * 1000  # beyond it, Redis refuses the number
WARN_SECONDS = 60.0
"""A link that goes up and down is warned of once in so long."""
SCHEMA = 1
"""Part of every key: versions that store other things under a key do not meet."""

Arg = str | bytes | int


class RedisUnavailable(Exception):
    """Redis did not answer, or is not being asked."""


class Script:
    """A Lua program that Redis runs as one step."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """The state of the link."""

    up: bool
    failures: int
    """Commands and beats that Redis did not answer, since the process started."""
    refused: int
    """Commands that were not sent because the link was down."""


class RedisCommands(Protocol):
    """Sends commands and scripts to Redis."""

    def command(self, *args: Arg) -> Any:
        """Return Redis' answer to one command."""

    def run(self, script: Script, keys: Sequence[Arg], arguments: Sequence[Arg]) -> Any:
        """Return what `script` returns."""


class Connections:
    """As many connections as are used at once, and no more; every failure is one of `errors`."""

    def __init__(self, url: str, timeout: float) -> None:
        from redis import ConnectionPool, RedisError  # loaded only where REDIS_URL is set
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import NoScriptError
        from redis.exceptions import TimeoutError as TimedOut
        from redis.retry import Retry

        self.errors: tuple[type[Exception], ...] = (RedisError, OSError)
        self._lost, self._timed_out, self._no_script = Lost, TimedOut, NoScriptError
        # The pool reads the URL and makes connections. It does not lend them: a lane's slots bound how many are in use,
        # so the pool's own locks and checks would only be a second set of books.
        self._maker = ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # two round trips less for each connection
        )
        self._idle: deque[Any] = deque()  # of redis.Connection; the one used last is used next

    def command(self, *args: Arg) -> Any:
        """Return Redis' answer. A connection that Redis closed while it was idle is replaced, once."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._maker.make_connection(), args)
        try:
            return self._exchange(connection, args)
        except self._timed_out:
            raise
        except self._lost:
            return self._exchange(self._maker.make_connection(), args)

    def run(self, script: Script, keys: Sequence[Arg], arguments: Sequence[Arg]) -> Any:
        """Return what `script` returns; its text travels only when Redis does not know it yet."""
        try:
            return self.command("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except self._no_script:
            return self.command("EVAL", script.text, len(keys), *keys, *arguments)

    def disconnect(self) -> None:
        """Close the idle connections; one in use is closed by its next failure, or stays."""
        while self._idle:
            self._idle.pop().disconnect()

    def _exchange(self, connection: Any, args: tuple[Arg, ...]) -> Any:
        connection.send_command(*args)  # which connects first, where needed
        try:
            answer = connection.read_response()
        except self._lost:
            connection.disconnect()
            raise
        except self.errors:
            if connection.is_connected:  # Redis' refusal is an answer, too
                self._idle.append(connection)
            raise
        self._idle.append(connection)
        return answer


class _Lane:
    """Connections for one kind of traffic, and the slots for what is sent at once."""

    def __init__(self, url: str, timeout: float, max_concurrent: int) -> None:
        self.connections = Connections(url, timeout)
        self.slots = threading.Semaphore(max_concurrent)


class RedisLink:
    """Redis at `url`, for all threads of this process. Thread-safe.

    `warn` is told, in a sentence, when the link goes down (at most once a minute) and that it is up again. `timeout` is
    that of commands, `script_timeout` that of scripts, both in seconds.
    Raises ImportError where the redis package is missing, ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        warn: Callable[[str], None],
        namespace: str = "mtllm",
        timeout: float = TIMEOUT_SECONDS,
        script_timeout: float = SCRIPT_TIMEOUT_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = f"{namespace}:{SCHEMA}:"
        self._commands = _Lane(url, timeout, MAX_CONCURRENT)
        self._scripts = _Lane(url, max(timeout, script_timeout), MAX_CONCURRENT_SCRIPTS)
        self._beat_connections = Connections(url, max(timeout, BEAT_TIMEOUT_SECONDS))
        self._warn = warn
        self._beat_seconds = beat_seconds
        self._monotonic = monotonic
        self._parts: list[Callable[[RedisCommands], None]] = []
        self._lock = threading.Lock()  # guards the fields below; never held across I/O
        self._up = False
        self._failures = self._refused = self._failed_beats = 0
        self._quiet_until = -inf
        self._told_down = False
        self._first_beat = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def on_beat(self, part: Callable[[RedisCommands], None]) -> None:
        """Call `part` at every beat, and before the link goes up; a Redis error that it raises takes the link down."""
        self._parts.append(part)

    def open(self) -> None:
        """Start the thread that beats, and wait for its first beat, at most `OPEN_SECONDS`."""
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()
        self._first_beat.wait(OPEN_SECONDS)

    def close(self) -> None:
        """Beat once more, then send nothing any more."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)
            if self._up:
                self._beat()
        self._up = False
        self._disconnect()

    def health(self) -> RedisHealth:
        """Return the state of the link now."""
        with self._lock:
            return RedisHealth(self._up, self._failures, self._refused)

    def command(self, *args: Arg) -> Any:
        """Return Redis' answer to one command. Raises RedisUnavailable: at once while the link is down."""
        return self._send(self._commands, lambda connections: connections.command(*args))

    def run(self, script: Script, keys: Sequence[Arg], arguments: Sequence[Arg]) -> Any:
        """Return what `script` returns. Raises RedisUnavailable: at once while the link is down."""
        return self._send(self._scripts, lambda connections: connections.run(script, keys, arguments))

    def _send(self, lane: _Lane, exchange: Callable[[Connections], Any]) -> Any:
        if self._up:
            with lane.slots:
                if self._up:  # still, after the wait
                    return self._exchange_or_refuse(lane.connections, exchange)
        with self._lock:
            self._refused += 1
        raise RedisUnavailable

    def _exchange_or_refuse(self, connections: Connections, exchange: Callable[[Connections], Any]) -> Any:
        try:
            return exchange(connections)
        except connections.errors as error:
            with self._lock:
                self._failures += 1
            self._wake.set()
            raise RedisUnavailable from error

    def _run(self) -> None:
        self._beat()
        self._first_beat.set()
        while not self._closing:
            self._wake.wait(self._pause())
            self._wake.clear()
            if not self._closing:
                self._beat()

    def _pause(self) -> float:
        if self._up:
            return self._beat_seconds
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._failed_beats, 10))

    def _beat(self) -> None:
        try:
            self._beat_connections.command("PING")
            for part in self._parts:
                part(self._beat_connections)
        except Exception as error:  # Redis' own, or a part that choked on what it sent: the beat must go on
            self._failed_beats += 1
            self._fall(error)
        else:
            self._failed_beats = 0
            self._rise()

    def _fall(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            self._up = False
            now = self._monotonic()
            tell = not self._told_down and now >= self._quiet_until
            if tell:
                self._quiet_until, self._told_down = now + WARN_SECONDS, True
        self._disconnect()
        if tell:
            self._warn(f"Redis cannot be used; this process keeps its own cache, limits and total meanwhile: {error}")

    def _rise(self) -> None:
        with self._lock:
            self._up = True
            tell, self._told_down = self._told_down, False
            refused = self._refused
        if tell:
            self._warn(f"Redis is used again; {refused} commands were not sent since the process started.")

    def _disconnect(self) -> None:
        for connections in (self._commands.connections, self._scripts.connections, self._beat_connections):
            connections.disconnect()
