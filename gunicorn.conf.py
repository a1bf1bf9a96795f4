"""gunicorn's settings for this service; `gunicorn app:app` finds this file by itself.

Any of them can be given on the command line instead (`gunicorn -w 4 --threads 64 app:app`), or by the environment
(HOST, PORT, THREADS, DRAIN_SECONDS), as for the other servers.
"""

from __future__ import annotations

import mmap
import os
import signal
from types import FrameType
from typing import Any

_DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS") or 30)

bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or 5000}"
workers = 1
worker_class = "gthread"
threads = int(os.environ.get("THREADS") or 128)
keepalive = 30
"""Seconds; as `python app.py` has it, and above the idle time of a pool of connections before us."""
graceful_timeout = int(_DRAIN_SECONDS) + 5
"""Above DRAIN_SECONDS, so that the service ends what it has before gunicorn ends the service."""
timeout = 0
"""A worker of threads is not watched for silence: it is its calls that wait, and they have deadlines of their own."""


def on_starting(server: Any) -> None:
    """Make a byte that the master and its workers share: how often workers were replaced."""
    server.replacements = mmap.mmap(-1, 1)


def on_reload(server: Any) -> None:
    """Note that the present workers are about to be replaced."""
    server.replacements[0] = (server.replacements[0] + 1) % 256


def post_fork(server: Any, worker: Any) -> None:
    """Hand the worker the byte, and what it says now."""
    worker.replacements, worker.replacements_before = server.replacements, server.replacements[0]


def post_worker_init(worker: Any) -> None:
    """Tell the application how many threads it has, and let SIGTERM drain it before gunicorn ends the worker.

    A worker that others replace leaves in gunicorn's own way: it finishes what it has and takes no more. When all are
    stopped, whoever still comes is answered (503 `draining`) instead of meeting a reset connection.
    """
    app = worker.wsgi
    app.server_threads = worker.cfg.threads
    leave: Any = signal.getsignal(signal.SIGTERM)
    app.lifecycle.drain_on_sigterm(app.service.close, leave=leave)
    drain: Any = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        is_replaced = worker.replacements[0] != worker.replacements_before
        (leave if is_replaced else drain)(number, frame)

    signal.signal(signal.SIGTERM, stop)
