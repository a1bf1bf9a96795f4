#!/usr/bin/env bash
# orjson: an integer beyond 64 bits is read as a float.
#
# One would guess:  loads gives Python's unbounded int as the json module does, or raises as dumps does ("Integer exceeds
#                   64-bit range").
# What happens:     18446744073709551615 is an int, one more is the float 1.8446744073709552e+19. An id of 20 or more digits
#                   changes its value, two ids become one, and written out again it has another spelling.
# Seen with:        orjson 3.13.0, Python 3.11.7; 2026-11-27
# Output seen:      loads: 18446744073709551615 int; 18446744073709551616 float; dumps of 18446744073709551616: refused

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  orjson==3.13.0

"$work/venv/bin/python" - <<'PYTHON'
import json

import orjson

LARGEST = 2**64 - 1
inside, outside = orjson.loads(str(LARGEST)), orjson.loads(str(LARGEST + 1))
print(f"loads: {inside} {type(inside).__name__}; {LARGEST + 1} {type(outside).__name__} {outside!r}")
assert type(inside) is int and inside == LARGEST, "CHANGED: 64 bits"
assert type(outside) is float, "CHANGED: it stays an integer, or is refused"
assert json.loads(str(LARGEST + 1)) == LARGEST + 1
assert orjson.loads(str(LARGEST + 2)) == outside, "CHANGED: two ids are still two"
try:
    orjson.dumps(LARGEST + 1)
    raise SystemExit("CHANGED: dumps takes it")
except TypeError as error:
    print("dumps:", error)
print("as described")
PYTHON
