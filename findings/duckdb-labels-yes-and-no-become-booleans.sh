#!/usr/bin/env bash
# DuckDB: a CSV column of the labels "yes" and "no" is read as booleans.
#
# One would guess:  only true and false become BOOLEAN; words are VARCHAR, as pandas and polars have it.
# What happens:     the column is BOOLEAN, the labels come back as True and False and are written as "true" and "false".
#                   A third label anywhere in the sample ("maybe") makes the same column VARCHAR: the type of a column of
#                   classifications depends on which classes occurred. read_csv(..., all_varchar=true) keeps the words.
# Seen with:        duckdb 2.0.1, Python 3.11.7; 2026-11-27
# Output seen:      yes, no: BOOLEAN [True, False]; yes, no, maybe: VARCHAR ['yes', 'no', 'maybe']

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  duckdb==2.0.1

TMPDIR=$work "$work/venv/bin/python" - <<'PYTHON'
import tempfile
from pathlib import Path

import duckdb

folder = Path(tempfile.mkdtemp())


def read(labels, options=""):
    """The type and the values that a column of `labels` is read as."""
    path = folder / "labels.csv"
    path.write_text("id,label\n" + "".join(f"{number},{label}\n" for number, label in enumerate(labels)))
    relation = duckdb.sql(f"SELECT label FROM read_csv('{path}'{options})")
    kind, values = str(relation.types[0]), [value for (value,) in relation.fetchall()]
    print(f"{', '.join(labels)}{options}: {kind} {values}")
    return kind, values


two = read(["yes", "no"])
three = read(["yes", "no", "maybe"])
kept = read(["yes", "no"], ", all_varchar=true")
assert two == ("BOOLEAN", [True, False]), f"CHANGED: {two}"
assert three == ("VARCHAR", ["yes", "no", "maybe"]), f"CHANGED: {three}"
assert kept == ("VARCHAR", ["yes", "no"]), f"CHANGED: {kept}"
print("as described")
PYTHON
