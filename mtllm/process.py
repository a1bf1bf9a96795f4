"""Sets and reads what belongs to the whole process or its machine."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
from pathlib import Path

_M_ARENA_MAX = -8  # mallopt(3)


def prepare() -> None:
    """Give malloc one arena and silence waitress about its queue; call it before threads start."""
    _use_one_arena()
    # One for every request that waits a moment for a thread: under load, thousands of lines a second that cost more
    # than the requests they tell of. Waiting shows in /metrics as admission and duration.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def _use_one_arena() -> None:
    """Have all threads share one heap.

    glibc gives threads heaps of their own, up to eight per core, and each keeps the most that it ever needed. With
    Python's own lock there is hardly anything to gain by that, and about ten megabytes to lose in the long run.
    """
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has neither arenas nor this
            mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Have malloc give the pages that hold nothing any more back to the system, which it does not do by itself."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl gives back by itself
            trim(0)


def allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files to `wanted`, as far as the hard limit allows."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def freeze() -> None:
    """Take all that is loaded now out of garbage collection.

    It stays anyway, and to look through it would stop every thread for a tenth of a second.
    """
    gc.freeze()


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk of `folder`, or of the nearest above it while it has not been made."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free
