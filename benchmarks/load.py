"""The load: identical clients that each send their next request when the last is answered (a closed loop).

wrk where it is installed and enough, else a generator of our own: one thread, raw sockets and epoll in a process of its
own (`python -m benchmarks.load`, which reads an `Order` as JSON and prints a `Round`). It also does what wrk does not:
a number in each request, so many requests and no more, the time of every single one.
"""

from __future__ import annotations

import json
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.servers import CORES, PROJECT, pinned

NUMBER, ADDRESS = "{n}", "{address}"
"""Stand, in a body or a header, for the number of the request and for an IPv4 address made of it."""
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, with what `{n}` and `{address}` stand for in the body and the headers."""

    path: str
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """No two are alike."""
        texts = (self.body or "", *self.headers.values())
        return any(mark in text for mark in (NUMBER, ADDRESS) for text in texts)

    @property
    def method(self) -> str:
        """GET without a body, POST with one."""
        return "GET" if self.body is None else "POST"

    def encoded(self, number: int) -> bytes:
        """The bytes of request `number`."""
        body = _numbered(self.body or "", number).encode()
        head = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{name}: {value}" for name, value in {**head, **self.headers}.items()]
        text = "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *lines, "", ""])
        return _numbered(text, number).encode() + body


def _numbered(text: str, number: int) -> str:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return text.replace(NUMBER, str(number)).replace(ADDRESS, address)


@dataclass(frozen=True, slots=True)
class Order:
    """One round of load: how many connections, and for how long (`seconds`) or how often (`requests` in all)."""

    port: int
    request: Request
    connections: int = 1
    seconds: float = 1.0
    requests: int | None = None
    first_number: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to: answers a second, seconds until the answer, and how many were not a 2xx.

    wrk's p99 counts a long wait several times, once for each answer that would have come meanwhile ("coordinated
    omission"); our own generator's is that of the answers that came.
    """

    rate: float
    p50: float
    p99: float
    longest: float
    answers: int
    refused: int


def offer(order: Order) -> Round:
    """Run a round in another process, on the load's core."""
    if shutil.which("wrk") and order.requests is None and not order.request.varies:
        return _by_wrk(order)
    return finished(started(order))


def started(order: Order) -> subprocess.Popen[bytes]:
    """Our own generator, begun on `order`; `finished` waits for it."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(order))]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
    return pinned(process, CORES.load)


def finished(process: subprocess.Popen[bytes]) -> Round:
    """The round that `process` has run. Raises RuntimeError if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the load generator failed")
    return Round(**json.loads(output))


def middle(rounds: Sequence[Round]) -> Round:
    """The medians of several rounds, and the sums of their counts."""
    return Round(
        median(r.rate for r in rounds),
        median(r.p50 for r in rounds),
        median(r.p99 for r in rounds),
        median(r.longest for r in rounds),
        sum(r.answers for r in rounds),
        sum(r.refused for r in rounds),
    )


# wrk ------------------------------------------------------------------------------------------------------------------

_LUA = """
wrk.method = {method}
wrk.body = {body}
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{{"rate":%f,"p50":%f,"p99":%f,"longest":%f,"answers":%d,"refused":%d}}\\n',
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    latency.max / 1e6,
    summary.requests, e.status + e.connect + e.read + e.write + e.timeout))
end
"""


def _by_wrk(order: Order) -> Round:
    request = order.request
    headers = {"Content-Type": "application/json", **request.headers}
    script = _LUA.format(
        method=_lua(request.method),
        body=_lua(request.body) if request.body is not None else "nil",
        headers="\n".join(f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in headers.items()),
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        url = f"http://127.0.0.1:{order.port}{request.path}"
        options = ["-t1", f"-c{order.connections}", f"-d{max(1, round(order.seconds))}s", "-s", file.name, url]
        process = pinned(subprocess.Popen(["wrk", *options], stdout=subprocess.PIPE), CORES.load)
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("wrk failed")
    return Round(**json.loads(output.splitlines()[-1]))


def _lua(text: str) -> str:
    return json.dumps(text)  # for the ASCII that a benchmark sends, JSON's and Lua's strings are written alike


# Our own --------------------------------------------------------------------------------------------------------------


class _Connection:
    """One client: a socket, what has come of the answer, and when its request left."""

    __slots__ = ("port", "received", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.received = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def whole_answer(self) -> bytes | None:
        """Take what has come; the answer once it is whole. Raises ConnectionError when the server hangs up."""
        part = self.socket.recv(65_536)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0 or len(self.received) < head_end + 4 + _content_length(self.received[:head_end]):
            return None
        return self.received


def _content_length(head: bytes) -> int:
    place = head.lower().find(b"\r\ncontent-length:")
    return int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0


def run(order: Order) -> Round:
    """Send and receive in this thread until the order is done."""
    fixed = None if order.request.varies else order.request.encoded(0)
    number, left = order.first_number, order.requests if order.requests is not None else 1 << 62
    times: list[float] = []
    refused = 0
    with selectors.DefaultSelector() as selector:
        connections = [_Connection(order.port) for _ in range(min(order.connections, left))]
        begun = time.perf_counter()
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(fixed or order.request.encoded(number))
            number, left = number + 1, left - 1
        until = begun + order.seconds if order.requests is None else float("inf")
        waiting = len(connections)
        while waiting:
            for key, _ in selector.select(ANSWER_SECONDS):
                connection = key.data
                answer = connection.whole_answer()
                if answer is None:
                    continue
                now = time.perf_counter()
                times.append(now - connection.sent_at)
                refused += answer[9:10] != b"2"
                if left and now < until:
                    connection.send(fixed or order.request.encoded(number))
                    number, left = number + 1, left - 1
                else:
                    waiting -= 1
        took = time.perf_counter() - begun
        for connection in connections:
            connection.socket.close()
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return Round(len(times) / took, p50, p99, times[-1], len(times), refused)


def main(arguments: list[str]) -> None:
    """Run the order given as JSON, print the round as JSON."""
    order = json.loads(arguments[0])
    print(json.dumps(asdict(run(Order(**{**order, "request": Request(**order["request"])})))))


if __name__ == "__main__":
    main(sys.argv[1:])
