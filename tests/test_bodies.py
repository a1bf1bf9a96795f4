"""The body of a task's request: what is read, how far, and what is refused in which words."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from typing import Any

import pytest
from flask.testing import FlaskClient

from mtllm.domain.errors import InvalidJson, InvalidRequest, PayloadTooLarge
from mtllm.http.body import BODY_LIMITS, decompress
from mtllm.tasks import TASK_BY_NAME, parse

TEXT = "/api/v1/generate/text"
ASKED = b'{"prompt": "hi"}'


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def send(client: FlaskClient, data: bytes, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(TEXT, data=data, headers={"Content-Type": "application/json"} | named)


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", gzip.compress(ASKED)),
        ("x-gzip", gzip.compress(ASKED)),
        ("GZIP", gzip.compress(ASKED[:5]) + gzip.compress(ASKED[5:])),
        ("deflate", zlib.compress(ASKED)),
        ("deflate", raw_deflate(ASKED)),
        ("identity", ASKED),
        ("identity", b"\xef\xbb\xbf" + ASKED),
        ("gzip", gzip.compress(b"\xef\xbb\xbf" + ASKED)),
    ],
)
def test_a_compressed_body_and_one_behind_a_bom_are_read(client: FlaskClient, coding: str, data: bytes) -> None:
    """Clients that compress, and editors that write a byte order mark, are served."""
    assert send(client, data, Content_Encoding=coding).status_code == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "klingon"])
def test_another_encoding_is_415_and_says_what_may_be_sent(client: FlaskClient, coding: str) -> None:
    """RFC 9110, section 15.5.16: 415 with Accept-Encoding."""
    answer = send(client, ASKED, Content_Encoding=coding)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "gzip, deflate, identity")


@pytest.mark.parametrize("data", [ASKED, b"", gzip.compress(ASKED)[:-9], zlib.compress(ASKED)[:-5]])
def test_what_is_not_what_its_encoding_says_is_400(client: FlaskClient, data: bytes) -> None:
    """Cut off, empty or plain: told as what it is, not as broken JSON."""
    answer = send(client, data, Content_Encoding="gzip")
    assert (answer.status_code, "whole gzip body" in answer.get_data(as_text=True)) == (400, True)


def test_the_limit_counts_unpacked_bytes_and_bounds_the_work() -> None:
    """A megabyte that would unpack to a gigabyte is refused after the limit's worth."""
    bomb = gzip.compress(b" " * 50_000_000)
    with pytest.raises(PayloadTooLarge):
        decompress(bomb, "gzip", 1000)
    assert decompress(gzip.compress(b" " * 1000), "gzip", 1000) == b" " * 1000


def test_members_of_nothing_end() -> None:
    """Many empty members are read in their number, not its square, and are an empty body."""
    assert decompress(gzip.compress(b"") * 50_000, "gzip", 10) == b""


def test_garbage_behind_a_member_is_no_whole_body() -> None:
    """What follows a gzip member is another member or a mistake."""
    with pytest.raises(InvalidJson):
        decompress(gzip.compress(ASKED) + b"rest", "gzip", 1000)


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ('application/json; charset="UTF-8"', 200),
        ("application/json;charset=us-ascii", 200),
        ("application/json; charset=iso-8859-1", 415),
        ("application/json; charset=utf-16", 415),
    ],
)
def test_json_is_utf8(client: FlaskClient, media_type: str, status: int) -> None:
    """RFC 8259, section 8.1; another charset would be read wrongly."""
    assert send(client, ASKED, Content_Type=media_type).status_code == status


@pytest.mark.parametrize(("times", "left"), [(2, 0), (BODY_LIMITS + 3, 3 * 4096)])
def test_a_body_too_long_is_taken_up_to_a_bound_before_the_413(make_app: Any, times: int, left: int) -> None:
    """Who still sends while we answer would meet a reset connection; who sends without end is not listened to."""
    client = make_app(max_request_bytes="4096").test_client()
    stream = io.BytesIO(b" " * (times * 4096))
    answer = client.post(
        TEXT, input_stream=stream, content_type="application/json", headers={"Content-Length": str(times * 4096)}
    )
    assert (answer.status_code, len(stream.read())) == (413, left)


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "prompt"),
        (b'{"temperature": 0, "prompt": "a", "temperature" : 1}', "temperature"),
    ],
)
def test_a_field_given_twice_is_400(body: bytes, repeated: str) -> None:
    """Nobody can say which of the two was meant (RFC 8259, section 4)."""
    with pytest.raises(InvalidRequest) as caught:
        parse(TASK_BY_NAME["text"], body, max_chars=1000)
    assert [(detail.field, detail.message) for detail in caught.value.details] == [
        (repeated, "is given more than once")
    ]


def test_a_prompt_may_speak_of_fields() -> None:
    """The name of a field inside a text, or as a label, is no second field."""
    body = json.dumps({"text": "text", "categories": ["text", "categories"]}).encode()
    assert parse(TASK_BY_NAME["classify"], body, max_chars=1000).instruction.prompt == "text"


@pytest.mark.parametrize(("written", "served"), [("10.0", True), ("1e1", True), ("10.5", False), ('"10"', False)])
def test_a_whole_number_may_be_written_as_a_float(written: str, served: bool) -> None:
    """JSON has one kind of number: 10.0 is 10; 10.5 is no count of tokens, and a string is no number."""
    body = b'{"prompt": "a", "max_output_tokens": %b}' % written.encode()
    if served:
        assert parse(TASK_BY_NAME["text"], body, max_chars=9).instruction.max_output_tokens == 10
    else:
        with pytest.raises(InvalidRequest):
            parse(TASK_BY_NAME["text"], body, max_chars=9)


@pytest.mark.parametrize("labels", [["yes", "Yes"], ["yes", " yes"], ["straße", "STRASSE"]])
def test_labels_that_a_reader_could_not_tell_apart_are_400(labels: list[str]) -> None:
    """An answer could not be told to be one of them."""
    with pytest.raises(InvalidRequest):
        parse(TASK_BY_NAME["classify"], json.dumps({"text": "a", "categories": labels}).encode(), max_chars=9)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "is required"),
        (b'{"prompt": 5}', "must be a valid string"),
        (b'{"prompt": ""}', "must have at least 1 character"),
        (b'{"prompt": "a", "temperature": 3}', "must be less than or equal to 2"),
        (b'{"prompt": "a", "max_output_tokens": 0}', "must be greater than or equal to 1"),
    ],
)
def test_a_rule_is_said_about_the_field(body: bytes, message: str) -> None:
    """One voice for all rules, ours and the library's."""
    with pytest.raises(InvalidRequest) as caught:
        parse(TASK_BY_NAME["text"], body, max_chars=9)
    assert [detail.message for detail in caught.value.details] == [message]
