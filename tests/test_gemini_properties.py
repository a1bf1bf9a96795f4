"""The parsers of what Gemini sends hold for any bytes: they tell the truth or say no, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mtllm.domain.errors import Retry, UpstreamFailure
from mtllm.gemini.bodies import split_array, split_events
from mtllm.gemini.failures import failure_of_status
from mtllm.gemini.waits import MAX_WAIT_SECONDS, parse_duration

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402  # after the check that it is there
from hypothesis import strategies as st  # noqa: E402

BRIEF = settings(max_examples=60, deadline=None)

json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
json_dicts: Any = st.dictionaries(st.text() | st.just('"{}[]\\'), json_values, max_size=4)


def cut_up(body: bytes, places: list[int]) -> Iterator[bytes]:
    """`body` in pieces that end at the given places."""
    cuts = sorted({place % (len(body) + 1) for place in places})
    return (body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True))


@given(
    objects=st.lists(json_dicts, max_size=4),
    places=st.lists(st.integers(0, 10_000), max_size=12),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
@BRIEF
def test_an_array_gives_its_objects_however_it_is_cut(
    objects: list[dict[str, Any]], places: list[int], indent: int | None, ascii_only: bool
) -> None:
    """Pieces may end anywhere: within an escape, a string, a character of several bytes."""
    body = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(text) for text in split_array(cut_up(body, places))] == objects


@given(objects=st.lists(json_dicts, min_size=1, max_size=3), length=st.integers(0, 10_000))
@BRIEF
def test_an_array_that_is_cut_short_says_so(objects: list[dict[str, Any]], length: int) -> None:
    """No part of an array passes for a whole one, and what it gave before was right."""
    body = json.dumps(objects).encode()
    given_before: list[Any] = []
    with pytest.raises(ValueError, match=r"array|codec"):
        given_before.extend(json.loads(text) for text in split_array([body[: length % len(body)]]))
    assert given_before == objects[: len(given_before)]


@given(pieces=st.lists(st.binary(max_size=40), max_size=6))
@BRIEF
def test_any_bytes_are_objects_or_a_value_error(pieces: list[bytes]) -> None:
    """Garbage raises nothing else."""
    try:
        assert all(isinstance(text, str) for text in split_array(pieces))
    except ValueError:
        return


@given(text=st.text() | st.from_regex(r"[0-9.]{1,30}(ms|s|m)", fullmatch=True))
@BRIEF
def test_a_duration_is_not_negative_or_none(text: str) -> None:
    """Whatever the text."""
    seconds = parse_duration(text)
    assert seconds is None or 0 <= seconds < 1e12


@given(seconds=st.integers(0, 10**6), nanos=st.integers(0, 10**9 - 1))
def test_a_duration_is_read_as_google_writes_it(seconds: int, nanos: int) -> None:
    """Seconds with a fraction of nanoseconds, or milliseconds."""
    assert parse_duration(f"{seconds}.{nanos:09}s") == pytest.approx(seconds + nanos / 1e9)
    assert parse_duration(f"{seconds}.{nanos:09}ms") == pytest.approx((seconds + nanos / 1e9) / 1000)


@pytest.mark.parametrize(
    "value", [None, 5, "", "s", "5", "-5s", "5 s", "1e9s", "nans", "m5", "5m 3s", "2h57", "\u0665s"]
)
def test_what_is_no_duration_is_none(value: object) -> None:
    """Units are required; signs, exponents, blanks within and digits of other scripts are refused."""
    assert parse_duration(value) is None


details: Any = st.lists(
    json_values
    | st.fixed_dictionaries(
        {},
        optional={
            "retryDelay": json_values | st.from_regex(r"[0-9]{1,14}(\.[0-9]{1,9})?m?s", fullmatch=True),
            "violations": json_values | st.lists(st.fixed_dictionaries({"quotaId": json_values}), max_size=2),
            "metadata": json_values,
            "reason": json_values,
        },
    ),
    max_size=3,
)
error_bodies: Any = (
    st.binary(max_size=60)
    | st.builds(
        lambda found, nested: json.dumps(
            [{"error": {"details": found}}] if nested else {"error": {"details": found}}
        ).encode(),
        details,
        st.booleans(),
    )
    | json_values.map(lambda value: json.dumps(value).encode())
)


@given(status=st.integers(100, 999) | json_values, body=error_bodies, retry_after=st.text(max_size=8))
@BRIEF
def test_any_error_has_a_meaning(status: object, body: bytes, retry_after: str) -> None:
    """Always one of our failures, with a bounded wait and a sentence that holds nothing of the body."""
    failure = failure_of_status(status, body, {"Retry-After": retry_after})
    assert isinstance(failure, UpstreamFailure)
    assert failure.wait is None or 0 <= failure.wait <= MAX_WAIT_SECONDS
    assert failure.message.startswith(("Gemini", "The configured model"))
    assert failure.retry is not Retry.YES or status in (429, 503)


def test_a_deeply_nested_error_has_a_meaning() -> None:
    """Nesting past the parser's limit is no details."""
    assert failure_of_status(503, b"[" * 60_000, {}).retry is Retry.YES


@given(
    events=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), max_size=4),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    places=st.lists(st.integers(0, 10_000), max_size=12),
)
@BRIEF
def test_a_stream_of_events_gives_its_data_however_it_is_cut(events: list[str], end: str, places: list[int]) -> None:
    """Pieces may end anywhere: within a line end, a field's name, a character of several bytes."""
    body = "".join(f"data: {event}{end}{end}" for event in events).encode()
    assert list(split_events(cut_up(body, places))) == [event for event in events if event != "[DONE]"]
