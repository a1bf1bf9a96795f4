#!/usr/bin/env bash
# polars (and DuckDB): a field that first appears late in a JSON lines file is dropped without a word.
#
# One would guess:  every field of every line is there, or reading fails, as it does when a value's type changes late.
# What happens:     only the fields of the first 100 lines become columns. In a file of answers where the first failed row
#                   is line 101 or later, its "error" vanishes: the row looks like an answer that is null.
#                   infer_schema_length=None reads all. DuckDB does the same beyond its sample of 20,480 lines
#                   (sample_size=-1 reads all).
# Seen with:        polars 2.1.0, DuckDB 2.0.1, Python 3.11.7; 2026-11-27
# Output seen:      error in line 100: id, text, error; in line 101: id, text; line 101 read whole: id, text, error
#                   DuckDB, line 30,001: id, text; read whole: id, text, error

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  polars==2.1.0 duckdb==2.0.1

TMPDIR=$work "$work/venv/bin/python" - <<'PYTHON'
import json
import tempfile
from pathlib import Path

import duckdb
import polars

folder = Path(tempfile.mkdtemp())


def write(answers):
    """A file of so many answers and one failed row."""
    path = folder / f"{answers}.jsonl"
    rows = [{"id": number, "text": "ok"} for number in range(answers)] + [{"id": answers, "error": "rate limited"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


early = polars.read_ndjson(write(99)).columns
late = polars.read_ndjson(write(100)).columns
whole = polars.read_ndjson(write(100), infer_schema_length=None).columns
print(f"polars, error in line 100: {early}; in line 101: {late}; read whole: {whole}")
assert early == whole == ["id", "text", "error"], f"CHANGED: {early}, {whole}"
assert late == ["id", "text"], f"CHANGED: {late}"

path = write(30_000)
sampled = duckdb.sql(f"SELECT * FROM read_json('{path}')").columns
complete = duckdb.sql(f"SELECT * FROM read_json('{path}', sample_size=-1)").columns
print(f"DuckDB, error in line 30,001: {sampled}; read whole: {complete}")
assert sampled == ["id", "text"] and complete == ["id", "text", "error"], f"CHANGED: {sampled}, {complete}"
print("as described")
PYTHON
