#!/usr/bin/env bash
# urllib3: a request with "Connection: close" goes back into the pool, and the next request uses its connection.
#
# One would guess:  the pool lets go of a connection on which it asked to close: a client that sent that option "MUST NOT
#                   send further requests on that connection" (RFC 9112, section 9.6).
# What happens:     only the server's own "Connection: close" ends it. Where the server does not repeat the word, the next
#                   request goes out on the same connection; if the server closes it as it was told, that request is
#                   lost on its way. The way out: let the server say it, or use a pool of its own for such requests.
# Seen with:        urllib3 2.8.0 on Python 3.11.7; 2026-11-27
# Output seen:      server silent about it: 1 connection for 2 requests; server repeats it: 2 connections for 2 requests

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check urllib3==2.8.0

cat >"$work/try.py" <<'PYTHON'
import socket
import sys
import threading

import urllib3


def serve(listener, repeats, connections):
    """Answer every request of every connection, which stays open, and count the connections."""

    def converse(connection):
        with connection, connection.makefile("rb") as lines:
            while lines.readline():
                while lines.readline() not in (b"\r\n", b""):
                    pass
                close = b"Connection: close\r\n" if repeats else b""
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + close + b"\r\nok")

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connections.append(connection)
        threading.Thread(target=converse, args=(connection,), daemon=True).start()


def count(repeats):
    """How many connections two requests take that both ask for the end of theirs."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, repeats, connections), daemon=True).start()
        with urllib3.HTTPConnectionPool("127.0.0.1", listener.getsockname()[1]) as pool:
            for _ in range(2):
                assert pool.request("GET", "/", headers={"Connection": "close"}).data == b"ok"
    return len(connections)


silent, repeated = count(repeats=False), count(repeats=True)
print(f"server silent about it: {silent} connection(s) for 2 requests; server repeats it: {repeated}")
held = (silent, repeated) == (1, 2)
print("as described" if held else "CHANGED")
sys.exit(not held)
PYTHON
"$work/venv/bin/python" "$work/try.py"
