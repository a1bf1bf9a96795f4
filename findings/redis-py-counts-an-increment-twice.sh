#!/usr/bin/env bash
# redis-py: an increment whose answer is lost is sent again, so one incr() counts two.
#
# One would guess:  when the connection breaks after INCR was sent, the caller gets a ConnectionError and decides; only
#                   commands that do no harm twice are sent again.
# What happens:     the default policy (ten tries more) sends the command again, with no setting asked for. The
#                   server did the first one: a counter of requests or money moves twice, and the caller sees success.
#                   Redis(retry=None) raises instead.
# Seen with:        redis 8.1.0, Python 3.11.7; 2026-11-27
# Output seen:      default: one incr() returned 2; retry=None: ConnectionError, counter 1

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  redis==8.1.0

"$work/venv/bin/python" - <<'PYTHON'
import socket
import threading

import redis


class Server:
    """Speaks enough of Redis for INCR; the first increment is done, and its connection then lost."""

    def __init__(self):
        self.count = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        stream = connection.makefile("rb")
        while head := stream.readline():
            words = []
            for _ in range(int(head[1:])):
                size = int(stream.readline()[1:])
                words.append(stream.read(size + 2)[:-2].upper())
            if words[0] == b"HELLO":
                connection.sendall(b"%3\r\n+server\r\n+redis\r\n+version\r\n+8.0.0\r\n+proto\r\n:3\r\n")
            elif words[0] in (b"INCR", b"INCRBY"):
                self.count += 1
                if self.count == 1:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(b":%d\r\n" % self.count)
            else:
                connection.sendall(b"+OK\r\n")


server = Server()
counted = redis.Redis(port=server.port).incr("requests")
print(f"default: one incr() returned {counted}")
assert counted == 2 == server.count, "CHANGED: it is not sent again"

server = Server()
try:
    redis.Redis(port=server.port, retry=None).incr("requests")
    raise SystemExit("CHANGED: retry=None sends it again")
except redis.ConnectionError:
    print(f"retry=None: ConnectionError, counter {server.count}")
assert server.count == 1
print("as described")
PYTHON
