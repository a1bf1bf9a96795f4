"""What the service sets for the whole of the process that it runs in."""

from __future__ import annotations

import gc
import logging
import sys

_M_ARENA_MAX = -8  # mallopt(3)


def prepare() -> None:
    """Before threads start: one malloc arena, and no warnings of waitress about its queue."""
    _one_arena()
    # One for every request that waits a moment for a thread: under load, thousands of lines a second that cost more
    # than the requests they tell of. Waiting shows in /metrics as admission and duration.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def _one_arena() -> None:
    """glibc gives threads heaps of their own, up to eight per core, and each keeps the most that it ever needed.

    With Python's own lock there is hardly anything to gain by that, and about ten megabytes to lose in the long run.
    """
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has neither arenas nor this
            mallopt(_M_ARENA_MAX, 1)


def allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files to `wanted`, as far as the hard one lets us."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def freeze() -> None:
    """Once all is loaded: it stays, and to look through it for garbage would stop the world for a tenth of a second."""
    gc.freeze()
