"""What waitress is told beyond its settings: our channel, our dispatcher, and what to ask its connections.

`waitress-serve app:app` makes its server before it knows the application, so the first request does this: waitress
hands an application a bound method of the request's channel, and the channel knows its server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mtllm.http.dispatcher import Dispatcher
from mtllm.http.waitress_channel import QuickChannel


def find_server(environ: dict[str, Any]) -> Any:
    """Return the waitress server that carries this request; None under another server."""
    client_disconnected = environ.get("waitress.client_disconnected")
    return getattr(getattr(client_disconnected, "__self__", None), "server", None)


def quicken(server: Any, threads: int) -> int:
    """Give a running waitress server our channel and dispatcher; return its threads.

    A server that was started with more threads than `threads` keeps its number. Connections that are open already stay
    as they are. What waits for waitress's own threads is handed over; those stay, at rest, for a request that waitress
    is just giving them.
    """
    allowed = max(threads, int(server.adj.threads))
    before = server.task_dispatcher
    dispatcher = Dispatcher(allowed)
    for listener in _listeners(server):
        listener.channel_class = QuickChannel
        listener.task_dispatcher = dispatcher
    server.task_dispatcher = dispatcher
    for task in _take_queue(before):
        dispatcher.add_task(task)
    return allowed


def _take_queue(dispatcher: Any) -> list[Any]:
    with dispatcher.lock:
        waiting = list(dispatcher.queue)
        dispatcher.queue.clear()
    return waiting


def watch_unsent(server: Any) -> Callable[[], bool]:
    """Return a function that tells whether a connection has bytes to send or a request to answer."""

    def unsent() -> bool:
        channels: Iterable[Any] = [each for each in _dispatchers(server) if hasattr(each, "total_outbufs_len")]
        return any(channel.total_outbufs_len or channel.requests for channel in channels)

    return unsent


def _listeners(server: Any) -> list[Any]:
    return [each for each in _dispatchers(server) if hasattr(each, "channel_class")]


def _dispatchers(server: Any) -> list[Any]:
    """Return what the server's main thread watches; a server for several addresses is several that share their map."""
    return list((getattr(server, "_map", None) or server.map).values())
