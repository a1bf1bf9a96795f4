"""What the service sets for its whole process; each in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from mtllm.project import PROJECT


def printed(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()


ARENAS = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(9)
def allocate():
    libc.malloc(1000)
    together.wait()
    together.wait()
for _ in range(8):
    threading.Thread(target=allocate).start()
together.wait()
libc.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(text.value.count(b"<heap nr="))
together.wait()
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="only glibc gives threads heaps")
def test_threads_share_one_heap() -> None:
    """Eight threads that allocate at once get heaps of their own, but not in a process that was prepared."""
    assert int(printed(ARENAS)) > 1
    assert printed("from mtllm import process; process.prepare()" + ARENAS) == "1"


def test_waitress_does_not_tell_of_every_request_that_waits() -> None:
    """Its queue's warnings are off; what goes wrong there is still told."""
    script = (
        "import logging\nfrom mtllm import process\nprocess.prepare()\n"
        "queue = logging.getLogger('waitress.queue')\n"
        "print(queue.isEnabledFor(logging.WARNING), queue.isEnabledFor(logging.ERROR))"
    )
    assert printed(script) == "False True"


def test_what_is_loaded_is_no_longer_searched_for_garbage() -> None:
    """Garbage that comes later is still found."""
    script = (
        "import gc\nfrom mtllm import process\nprocess.freeze()\n"
        "few = len(gc.get_objects())\nring = []\nring.append(ring)\ndel ring\n"
        "print(gc.get_freeze_count() > few, gc.collect())"
    )
    assert printed(script) == "True 1"


def test_the_soft_limit_of_open_files_rises_to_the_hard_one() -> None:
    """As far as wanted; it never sinks."""
    script = (
        "import resource\nfrom mtllm import process\nkind = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(kind, (100, 200))\n"
        "for wanted in (50, 150, 1000):\n    process.allow_descriptors(wanted)\n    print(resource.getrlimit(kind)[0])"
    )
    assert printed(script).split() == ["100", "150", "200"]
