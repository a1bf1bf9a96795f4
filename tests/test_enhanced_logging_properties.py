"""Whatever comes in, each line is one bounded JSON object, and no secret is on it."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mtllm.domain.events import Notice, RequestEvent
from mtllm.domain.findings import Finding
from mtllm.domain.money import Amount, Cost
from mtllm.logs.files import LogFile
from mtllm.logs.lines import Lines, PromptLogging
from mtllm.logs.writer import FILES

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

ANY_TEXT = st.text(max_size=300) | st.text('\x00\x1b\n\r\u2028\ud800\U0001f600"\\', max_size=300)
LONG_TEXT = st.builds(lambda text, times: text * times, ANY_TEXT, st.integers(1, 40))
SECONDS = st.floats(0, 1e6)
EVENTS = st.builds(
    RequestEvent,
    request_id=LONG_TEXT,
    timestamp=st.floats(0, 4e9),
    client=LONG_TEXT,
    method=LONG_TEXT,
    path=LONG_TEXT,
    status=st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503]),
    duration=SECONDS,
    code=st.none() | LONG_TEXT,
    trace_id=st.none() | LONG_TEXT,
    user_agent=st.none() | LONG_TEXT,
    task=st.none() | LONG_TEXT,
    model=st.none() | LONG_TEXT,
    cached=st.none() | st.booleans(),
    amount=st.builds(Amount, cost=st.builds(Cost, st.integers(0, 10**15))),
    queue_seconds=SECONDS,
    upstream_seconds=SECONDS,
    prompt=st.none() | LONG_TEXT,
    answer=st.none() | LONG_TEXT,
    findings=st.lists(st.builds(Finding, LONG_TEXT, st.just("low"), LONG_TEXT), max_size=3).map(tuple),
    note=st.none() | LONG_TEXT,
    fault=st.none() | st.builds(ValueError, LONG_TEXT),
)
OPERATIONS = st.builds(
    Notice,
    timestamp=st.floats(0, 4e9),
    event=LONG_TEXT,
    message=LONG_TEXT,
    facts=st.lists(
        st.tuples(st.sampled_from("abc"), LONG_TEXT | st.floats() | st.integers() | st.booleans() | st.none()),
        max_size=3,
    ).map(tuple),
)


def lines_with(prompts: PromptLogging, *secrets: str) -> Lines:
    return Lines(prompts, 5.0, secrets, b"key")


@settings(max_examples=150, deadline=None)
@given(EVENTS | OPERATIONS, st.sampled_from(["off", "preview"]))
def test_each_line_is_one_bounded_json_object(event: RequestEvent | Notice, prompts: PromptLogging) -> None:
    """ASCII, one newline at the end, no control character, 8 KiB at most, the three keys of every line."""
    for name, line in lines_with(prompts).of(event):
        assert name in FILES
        assert line.isascii()
        assert line[:-1].isprintable()
        assert line.endswith("\n")
        assert len(line) <= 8192
        assert json.loads(line).keys() >= {"request_id", "timestamp", "client"}


CANARY = "Canary7Zq"
FORMS = st.sampled_from(
    [f"AIzaSy{CANARY}0123456789", f"sk-{CANARY}", f"Bearer {CANARY}", f"Cookie: a={CANARY}", f"password={CANARY}",
     f'"token": "{CANARY}"', f"?api_key={CANARY}&", f"configured {CANARY}x", f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.x"]
)  # fmt: skip
FIELDS = st.sampled_from(["request_id", "client", "path", "user_agent", "prompt", "answer", "note", "model", "code"])
CALM = st.text(string.ascii_lowercase + " /é", max_size=30).map(lambda text: text + " ")


@settings(max_examples=300, deadline=None)
@given(FORMS, FIELDS, CALM, st.integers(0, 120), CALM, st.integers(0, 120))
def test_no_secret_is_on_any_line_wherever_it_stood(
    secret: str, field: str, before: str, times_before: int, after: str, times_after: int
) -> None:
    """Neither in whole nor cut off, in any field, at any distance from the cut, with words shown in full."""
    text = before * times_before + " " + secret + " " + after * times_after
    facts: dict[str, Any] = {"request_id": "r", "prompt": "p", field: text}
    event = RequestEvent(timestamp=0.0, status=403, cached=False, fault=ValueError(text), **facts)
    for prompts in ("preview", "full"):
        written = "".join(line for _, line in lines_with(prompts, f"{CANARY}x").of(event))
        assert CANARY[:5] not in written


BATCHES = st.lists(st.lists(st.text(string.ascii_letters, max_size=12), min_size=1, max_size=5), max_size=12)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.integers(1, 40), st.integers(0, 4))
def test_a_rotating_file_keeps_a_gapless_end_of_what_was_written(
    batches: list[list[str]], max_bytes: int, backup_count: int
) -> None:
    """Read oldest to newest, the files are a suffix of all lines; none is empty, and each is small or a single line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.log"
        file = LogFile(path, max_bytes=max_bytes, backup_count=backup_count, retention_seconds=1e9)
        for batch in batches:
            file.append("".join(f"{line}\n" for line in batch).encode())
        file.close()
        files = sorted(Path(folder).iterdir(), key=lambda p: int(p.suffix[1:]) if p != path else 0, reverse=True)
        kept = [each.read_text() for each in files]
    everything = "".join(f"{line}\n" for batch in batches for line in batch)
    assert len(kept) <= backup_count + 1
    assert everything.endswith("".join(kept))
    assert all(text and (len(text) <= max_bytes or text.count("\n") == 1) for text in kept)
