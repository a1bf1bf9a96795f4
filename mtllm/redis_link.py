"""One Redis, asked only while it answers.

up     questions go to Redis; when one fails, or takes longer than `TIMEOUT_SECONDS`, it is refused, and Redis is probed
       at once: if that fails too, the link goes down
down   questions are refused at once, so that nobody waits; a thread goes on trying, with growing pauses, and takes the
       link up again when Redis does all that it is needed for

The same thread's beat, every `BEAT_SECONDS`, is how state that requests must not wait for is kept in step. Nothing is
opened, and no thread started, before `open`.
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
"""Longest wait for one answer, and for a connection."""
TURNS = 8
"""Questions that one process asks at once. The others wait here: in Redis a burst would wait for itself, and look as if
Redis were slow."""
BEAT_SECONDS = 0.5
"""How far what is kept in step by the beat may lag behind, while Redis answers."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between tries while Redis is away."""
OPEN_SECONDS = 0.2
"""How long the start waits for Redis; a name server may take longer than any time-out of ours."""
LONGEST_EXPIRY_MS = 10 * 365 * 86_400 * 1000  # beyond it, Redis refuses the number
WARN_SECONDS = 60.0
"""A link that goes up and down is warned of once in so long."""
SCHEMA = 1
"""Part of every key: versions that keep other things under a key do not meet."""

Word = str | bytes | int


class RedisUnavailable(Exception):
    """Redis did not answer, or is not being asked."""


class Script:
    """A Lua program that Redis runs as one step."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """How the link stands."""

    up: bool
    failures: int
    """Questions and beats that Redis did not answer, since the process started."""
    refused: int
    """Questions that were not asked because the link was down."""


class Line(Protocol):
    """What can be asked."""

    def ask(self, *command: Word) -> Any:
        """Redis' answer to one command."""

    def run(self, script: Script, keys: Sequence[Word], arguments: Sequence[Word]) -> Any:
        """What `script` returns."""


class Connections:
    """As many connections as are used at once, and no more; whatever goes wrong is one of `errors`."""

    def __init__(self, url: str, timeout: float) -> None:
        from redis import ConnectionPool, RedisError  # loaded only where REDIS_URL is set
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import NoScriptError
        from redis.exceptions import TimeoutError as TimedOut
        from redis.retry import Retry

        self.errors: tuple[type[Exception], ...] = (RedisError, OSError)
        self._lost, self._timed_out, self._no_script = Lost, TimedOut, NoScriptError
        # The pool reads the URL and makes connections. It does not lend them: with its locks and checks a question
        # takes twice the time.
        self._maker = ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # two round trips less for each connection
        )
        self._idle: deque[Any] = deque()  # of redis.Connection; the one used last is used next

    def ask(self, *command: Word) -> Any:
        """Redis' answer. A connection that Redis closed while it was idle is replaced, once."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._maker.make_connection(), command)
        try:
            return self._exchange(connection, command)
        except self._timed_out:
            raise
        except self._lost:
            return self._exchange(self._maker.make_connection(), command)

    def run(self, script: Script, keys: Sequence[Word], arguments: Sequence[Word]) -> Any:
        """What `script` returns; its text travels only when Redis does not know it yet."""
        try:
            return self.ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except self._no_script:
            return self.ask("EVAL", script.text, len(keys), *keys, *arguments)

    def disconnect(self) -> None:
        """Close what is idle; what is in use is closed by its next failure, or kept."""
        while self._idle:
            self._idle.pop().disconnect()

    def _exchange(self, connection: Any, command: tuple[Word, ...]) -> Any:
        connection.send_command(*command)  # which connects first, where needed
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


class RedisLink:
    """Redis at `url`, for all threads of this process. Thread-safe.

    `warn` is told, in a sentence, when the link goes down (at most once a minute) and that it is up again.
    Raises ImportError where the redis package is missing, ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        warn: Callable[[str], None],
        namespace: str = "mtllm",
        timeout: float = TIMEOUT_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = f"{namespace}:{SCHEMA}:"
        self._connections = Connections(url, timeout)
        self._warn = warn
        self._beat_seconds = beat_seconds
        self._monotonic = monotonic
        self._parts: list[Callable[[Line], None]] = []
        self._lock = threading.Lock()  # guards what stands below; never held across I/O
        self._up = False
        self._failures = self._refused = self._failed_beats = 0
        self._quiet_until = -inf
        self._told_down = False
        self._turns = threading.Semaphore(TURNS)
        self._begun = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def on_beat(self, part: Callable[[Line], None]) -> None:
        """Call `part` at every beat, and before the link goes up; what it raises of Redis' errors takes it down."""
        self._parts.append(part)

    def open(self) -> None:
        """Start the thread that beats, and wait for its first beat, at most `OPEN_SECONDS`."""
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()
        self._begun.wait(OPEN_SECONDS)

    def close(self) -> None:
        """The last beat, then nothing is asked any more."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)
            if self._up:
                self._beat()
        self._up = False
        self._connections.disconnect()

    def health(self) -> RedisHealth:
        """How the link stands now."""
        with self._lock:
            return RedisHealth(self._up, self._failures, self._refused)

    def ask(self, *command: Word) -> Any:
        """Redis' answer to one command. Raises RedisUnavailable: at once while the link is down."""
        return self._guarded(lambda: self._connections.ask(*command))

    def run(self, script: Script, keys: Sequence[Word], arguments: Sequence[Word]) -> Any:
        """What `script` returns. Raises RedisUnavailable: at once while the link is down."""
        return self._guarded(lambda: self._connections.run(script, keys, arguments))

    def _guarded(self, question: Callable[[], Any]) -> Any:
        if self._up:
            with self._turns:
                if self._up:  # still, after the wait
                    return self._answered(question)
        with self._lock:
            self._refused += 1
        raise RedisUnavailable

    def _answered(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._connections.errors as error:
            with self._lock:
                self._failures += 1
            self._wake.set()
            raise RedisUnavailable from error

    def _run(self) -> None:
        self._beat()
        self._begun.set()
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
            self._connections.ask("PING")
            for part in self._parts:
                part(self._connections)
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
        self._connections.disconnect()
        if tell:
            self._warn(f"Redis cannot be used; this process keeps its own cache, limits and total meanwhile: {error}")

    def _rise(self) -> None:
        with self._lock:
            self._up = True
            tell, self._told_down = self._told_down, False
            refused = self._refused
        if tell:
            self._warn(f"Redis is used again; {refused} questions were not asked since the process started.")
