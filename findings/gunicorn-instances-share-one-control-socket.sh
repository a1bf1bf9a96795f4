#!/usr/bin/env bash
# gunicorn: two instances of one user share a control socket, and the one that stops first may take it away.
#
# One would guess:  each instance is controlled for itself, or the second one says that the socket is in use.
# What happens:     both listen at ~/.gunicorn/gunicorn.ctl, which is on by default. The instance started last takes it over
#                   without a word; when that one stops, it removes the file, and the first, still serving, cannot be reached
#                   by gunicornc any more. Each needs a --control-socket of its own.
# Seen with:        gunicorn 27.0.1, Python 3.11.7; 2026-11-27
# Output seen:      both run: gunicornc shows the second's worker; second stopped: "Failed to connect to
#                   .../gunicorn.ctl: [Errno 2] No such file or directory", while the first answers "ok"

set -euo pipefail
work=$(mktemp -d)
first=""
second=""
finish() {
  for pid in $first $second; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$work"
}
trap finish EXIT
cd "$work"
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  gunicorn==27.0.1
cat >"$work/service.py" <<'PYTHON'
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
PYTHON

export HOME=$work/home # the socket is in the home folder
mkdir "$HOME"
await_worker() { # log
  for _ in $(seq 100); do
    if grep -q "Booting worker" "$1" && grep -q "Control socket listening" "$1"; then return; fi
    sleep 0.1
  done
  echo "CHANGED: gunicorn did not start, or has no control socket" >&2
  cat "$1" >&2
  exit 1
}
worker_of() { sed -n 's/.*Booting worker with pid: //p' "$1"; } # log
control() { timeout 10 "$work/venv/bin/gunicornc" -c "show workers" 2>&1 || true; }

"$work/venv/bin/gunicorn" --bind "unix:$work/first.sock" service:app >"$work/first.log" 2>&1 &
first=$!
await_worker "$work/first.log"
"$work/venv/bin/gunicorn" --bind "unix:$work/second.sock" service:app >"$work/second.log" 2>&1 &
second=$!
await_worker "$work/second.log"

both=$(control)
echo "$both"
if ! grep -qw "$(worker_of "$work/second.log")" <<<"$both" || grep -qw "$(worker_of "$work/first.log")" <<<"$both"; then
  echo "CHANGED: the socket is not the second's alone" >&2
  exit 1
fi
kill "$second"
wait "$second" || true
second=""
after=$(control)
echo "$after"
grep -q "No such file" <<<"$after" || { echo "CHANGED: the first can still be reached" >&2; exit 1; }
"$work/venv/bin/python" - <<'PYTHON'
import socket

with socket.socket(socket.AF_UNIX) as client:
    client.connect("first.sock")
    client.sendall(b"GET / HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n")
    answer = b"".join(iter(lambda: client.recv(4096), b""))
assert answer.endswith(b"ok"), answer
PYTHON
echo "the first instance still answers; as described"
