"""One client's calls, held to several limits at once."""

from __future__ import annotations

from math import inf
from threading import Lock

from lru_cache import CallTimes
from mtllm.domain.limits import Limit

Full = tuple[tuple[Limit, ...], int, float]
"""The limits that admit nothing for now, the number of the one that has room last, and when it has (monotonic)."""


# The protocol of a client's calls (each rule has a stress test of its name in tests/test_client_table.py):
#
# 1. One owner: everything but `full` and `protected_until` is read and changed under `lock`, which only
#    `ClientTable.locked` takes and gives back.
# 2. Counted for somebody: the table marks calls as evicted under their lock. `locked` never hands out evicted calls, so
#    a call is counted where the next call of its client finds it.
# 3. All or nothing: a call is counted in every window or, rejected, in none.
# 4. `full` only rejects: until its moment none of its limits has room. A call that is counted under other limits takes
#    it back, since it may keep a window full for longer. Whoever reads an old one rejects as if it had come earlier.
# 5. One order of locks: the table's lock, then a client's; never the table's inside `locked`.
# 6. Bounded, the limited last: the table holds at most `max_size` clients, and a client at a limit goes only when there
#    is nobody else.


class ClientCalls(CallTimes):
    """The counted calls of one client in a `ClientTable`, with the lock that guards them."""

    __slots__ = ("evicted", "full", "lock", "protected_until")

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()
        self.evicted = False
        self.full: Full | None = None
        """Read without the lock, so that a flood of rejected calls holds up nobody (benchmarks: parts_cache, rate
        limiters, Zipf, 8 threads)."""
        self.protected_until = -inf

    def __enter__(self) -> ClientCalls:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:  # `*exc_info` would make a tuple
        self.lock.release()
