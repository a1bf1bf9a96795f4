"""Arbitrary requests and texts, and what must hold for every one of them.

`PROPERTIES` are run briefly by test_fuzz.py and for as long as one likes by `python -m benchmarks.fuzz`.
"""

from __future__ import annotations

import io
import json
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from app import Api
from mtllm.billing.prices import PriceTable
from mtllm.domain.completion import CacheControl
from mtllm.domain.errors import InvalidJson, InvalidRequest
from mtllm.domain.limits import Limit, parse_limits
from mtllm.domain.times import parse_time
from mtllm.gemini.waits import parse_duration
from mtllm.http import request
from mtllm.security.access import BrokenKeysFile, parse_keys_file, presented_key
from mtllm.security.detection import inspect
from mtllm.security.redaction import MASK, redact
from mtllm.settings import Settings, SettingsError, load_settings
from mtllm.tasks import TASKS, Job, parse
from tests.support.raw_http import RawAnswer, call_wsgi, connect

PATIENCE = 5.0
"""Seconds after which an answer counts as a hang."""

JSON = "application/json"
KEY, ADMIN = "fuzz-key", "fuzz-admin"
CODES = {
    *("invalid_json", "invalid_request", "unauthorized", "forbidden", "not_found", "method_not_allowed"),
    *("payload_too_large", "unsupported_media_type", "content_blocked", "rate_limited", "not_cached"),
    *("upstream_invalid_answer", "max_output_tokens_too_small", "not_configured", "overloaded"),
}
"""What a caller's mistake may lead to, whatever it is; `internal_error` is not among them."""

ON_EVERY_ANSWER = (
    *("X-Request-ID", "X-Cost-Input", "X-Cost-Output", "X-Cost-Total", "X-Cost-Nanodollars"),
    *("X-Tokens-Input", "X-Tokens-Output", "X-Cached", "X-Content-Type-Options", "Cache-Control", "Server-Timing"),
)

# Texts ----------------------------------------------------------------------------------------------------------------

PATHS = (
    *("/api/v1/generate/text", "/api/v1/generate/code", "/api/v1/classify/text", "/api/v1/usage", "/api/v1/cache"),
    *("/api/v1/usage/export", "/api/v1/stats", "/stats", "/health", "/api/v1/health/ready", "/metrics", "/dashboard"),
    *("/api/v1/openapi.json", "/swagger/", "/swagger/index.css", "/"),
)
latin = st.binary(max_size=80).map(lambda raw: raw.decode("latin-1"))
ascii_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
anything = st.text(max_size=60) | latin | st.text(max_size=8).map(lambda text: text * 500)


def words(*pieces: str) -> st.SearchStrategy[str]:
    """Texts made of pieces that mean something to a parser, and of what does not."""
    return st.lists(st.sampled_from(pieces) | ascii_text, max_size=8).map("".join)


rates = words("60", "/", "minute", ";", "5/3second", "0", "-1", "1e9", "/day", " ", "9" * 30, "N/[K ]unit", "٣")
cache_control = words("no-cache", "no-store", ",", "max-age", "=", '"', "1", "9" * 20, "only-if-cached", "-1", "٣")
traceparents = words("00", "-", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01", "ff", "0" * 32)
durations = words("45.8", "s", "ms", "-", "1e400", "nan", "inf", "٣", "9" * 400)
times = words(
    "2026-01-31", "T", "12:00:00", "Z", "+01:00", "1e400", "-1", "nan", "99999999999999", ".5", "٣", "0001-01-01"
)
credentials = words("Bearer ", "Basic ", KEY, ADMIN, "Og==", "dXNlcjpmdXp6LWtleQ==", ":", "bearer", "\t") | latin
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4),
    max_leaves=8,
)
task_bodies = st.fixed_dictionaries(
    {},
    optional={
        "prompt": anything | json_values,
        "text": anything | json_values,
        "language": anything | json_values,
        "categories": st.lists(anything, max_size=5) | json_values,
        "temperature": st.floats() | json_values,
        "max_output_tokens": st.integers() | json_values,
        "stream": st.booleans() | json_values,
    },
)
encoded_json = (task_bodies | json_values).flatmap(
    lambda value: st.booleans().map(
        lambda plain: json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    )
)
bodies = st.one_of(
    encoded_json,
    st.binary(max_size=200),
    st.builds(lambda body, cut: body[:cut], encoded_json, st.integers(0, 60)),
    st.sampled_from([b"[" * 5000, b'{"prompt":' * 500, b'{"prompt": "\\ud800"}', b"\xff\xfe{\x00}\x00", b"1" * 5000,
                     b"NaN"]),
)  # fmt: skip
valid_bodies = st.one_of(
    st.fixed_dictionaries({"prompt": ascii_text}, optional={"temperature": st.floats(0, 2), "stream": st.booleans()}),
    st.fixed_dictionaries(
        {"text": ascii_text, "categories": st.lists(ascii_text, min_size=2, max_size=4, unique=True)}
    ),
).map(lambda body: json.dumps(body).encode())
tables = words('[[key]]\nname = "a"\n', "[[price]]\n", "sha256 = ", '"' + "0" * 64 + '"', '\nmodel = "m"', "\nfrom = ",
               "2026-01-01", "\ninput = 0.1", "\noutput = 1e999", "\ncached_input = -1", "nan",
               "\nrate_limits = '1/day'", "\ndaily_budget_usd = ", "[", "{" * 100)  # fmt: skip


# Requests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A request as an application gets it: texts are bytes dressed as Latin-1 (PEP 3333)."""

    method: str
    path: str
    query: str
    fields: dict[str, str]
    body: bytes

    def environ(self) -> dict[str, Any]:
        """For WSGI."""
        return {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "CONTENT_LENGTH": str(len(self.body)),
            "wsgi.input": io.BytesIO(self.body),
            **self.fields,
        }


def requests() -> st.SearchStrategy[Request]:
    """Plausible to absurd."""
    field_values = {
        "CONTENT_TYPE": st.sampled_from([JSON, JSON, f"{JSON}; charset=x", "text/plain"]) | latin,
        "HTTP_AUTHORIZATION": credentials,
        "HTTP_TRACEPARENT": traceparents | latin,
        "HTTP_CACHE_CONTROL": cache_control | latin,
        "HTTP_X_REQUEST_ID": words("a", ".", "-", "_", "é") | latin,
        "HTTP_X_FORWARDED_FOR": words("1.2.3.4", ",", " ", "::1", "[", "]", ":", "%eth0", "unknown") | latin,
        "HTTP_USER_AGENT": latin,
        "HTTP_ORIGIN": words("https://", "a.example", "null", "*") | latin,
        "HTTP_ACCESS_CONTROL_REQUEST_METHOD": latin,
        "HTTP_ACCESS_CONTROL_REQUEST_HEADERS": latin,
        "HTTP_ACCEPT": latin,
        "HTTP_COOKIE": latin,
        "HTTP_HOST": latin,
        "HTTP_RANGE": words("bytes=", "0-", "-5", ",", "9" * 30),
        "HTTP_IF_NONE_MATCH": latin,
        "HTTP_IF_MODIFIED_SINCE": latin,
        "HTTP_EXPECT": latin,
        "REMOTE_ADDR": st.sampled_from(["127.0.0.1", "::1", "", "unix:"]) | latin,
    }  # fmt: skip
    keys = st.sampled_from([KEY, *[ADMIN] * 4, "wrong", ""]) | latin
    queries = st.lists(
        st.sampled_from(["from", "to", "group_by", "format", "key", "q"]).flatmap(
            lambda name: (times | latin | st.sampled_from(["day", "client", "csv", "jsonl"])).map(
                lambda v: f"{name}={v}"
            )
        ),
        max_size=4,
    ).map("&".join)
    return st.builds(
        Request,
        st.sampled_from(["POST"] * 4 + ["GET"] * 3 + ["DELETE", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE", "x"]),
        st.sampled_from(PATHS * 4) | st.sampled_from(PATHS) | st.builds("{}{}".format, st.sampled_from(PATHS), latin),
        queries | latin,
        st.fixed_dictionaries({"HTTP_X_API_KEY": keys}, optional=field_values),
        bodies,
    )


def task_requests() -> st.SearchStrategy[Request]:
    """For the tasks, with a key that opens them: so that it is the body that is judged."""
    return st.builds(
        lambda request, path, key, body: replace(
            request, method="POST", path=path, body=body, fields=request.fields | {"CONTENT_TYPE": JSON} | key
        ),
        requests(),
        st.sampled_from([task.path for task in TASKS]),
        st.sampled_from([{"HTTP_X_API_KEY": KEY}, {"HTTP_X_API_KEY": ADMIN}]),
        bodies | valid_bodies,
    )


def check_request(app: Api, request: Request) -> None:
    """It is answered in time, in the shape of the contract, with every header, and never as a defect of ours."""
    begun = time.monotonic()
    answer = call_wsgi(app, **request.environ())
    assert time.monotonic() - begun < PATIENCE
    check_answer(answer, is_head=request.method == "HEAD")


def check_answer(answer: RawAnswer, *, is_head: bool) -> None:
    """The shape of every answer."""
    assert 200 <= answer.status < 600
    assert answer.status != 500, answer.body
    assert all(name in answer.headers for name in ON_EVERY_ANSWER), answer.headers
    assert all(value.isascii() and value.isprintable() for value in answer.headers.values())
    length = answer.headers["Content-Length"]
    assert is_head or length is None or int(length) == len(answer.body)
    if answer.status >= 400 and answer.headers["Content-Type"] == "application/json" and not is_head:
        _check_error(answer)


def _check_error(answer: RawAnswer) -> None:
    error = answer.json
    if "checks" in error:  # readiness has a shape of its own
        return
    assert set(error) - {"details"} == {"error", "code", "request_id"}
    assert error["code"] in CODES
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert all(set(detail) == {"field", "message"} for detail in error.get("details", ()))


raw_requests = st.builds(
    lambda line, fields, body: b"\r\n".join((line, *fields, b"", body)),
    st.builds(
        b" ".join,
        st.tuples(
            st.sampled_from([b"GET", b"POST", b"\x00"]) | st.binary(max_size=8),
            st.sampled_from([path.encode() for path in PATHS]) | st.binary(max_size=30),
            st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2"]) | st.binary(max_size=10),
        ),
    ),
    st.lists(
        st.sampled_from(
            [b"Host: x", b"Connection: close", b"Content-Type: application/json", b"Transfer-Encoding: chunked",
             b"Content-Length: 5", b"Content-Length: 0", b"Expect: 100-continue", b" folded", b":",
             b"X-API-Key: " + KEY.encode()]
        )
        | st.binary(max_size=40),
        max_size=6,
    ),
    st.sampled_from([b"5\r\n{\"a\":\r\n0\r\n\r\n", b"fffffffff\r\n", b"{}   ", b"0\r\n\r\n"]) | st.binary(max_size=40),
)  # fmt: skip
"""Bytes on a socket that are nearly HTTP."""


def check_raw(port: int, data: bytes) -> None:
    """The server answers or closes; nothing of it is a defect."""
    with suppress(OSError), connect(port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert b"HTTP/1.1 500" not in answered
        assert b"Traceback" not in answered


# Parsers --------------------------------------------------------------------------------------------------------------


def check_limits(text: str) -> None:
    """The rate grammar: limits or ValueError."""
    with suppress(ValueError):
        assert all(isinstance(limit, Limit) and limit.amount > 0 for limit in parse_limits(text))


def check_cache_control(text: str) -> None:
    """Every directive is known, or ignored."""
    cache_control = request.read_cache_control(text)
    assert isinstance(cache_control, CacheControl)
    assert cache_control.max_age is None or cache_control.max_age >= 0


def check_traceparent(text: str) -> None:
    """A trace id, or none."""
    trace = request.read_trace_id(text)
    assert trace is None or (len(trace) == 32 and int(trace, 16) > 0)


def check_request_id(text: str) -> None:
    """The caller's, where it is harmless, else one of ours."""
    found = request.choose_request_id(text)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) <= 128


def check_duration(text: str) -> None:
    """RetryInfo: seconds that can be waited, or none."""
    seconds = parse_duration(text)
    assert seconds is None or 0 <= seconds < float("inf")


def check_time(text: str) -> None:
    """A moment or ValueError."""
    with suppress(ValueError):
        assert abs(parse_time(text)) < 1e15


def check_keys_file(text: str) -> None:
    """Keys or BrokenKeysFile."""
    with suppress(BrokenKeysFile):
        assert all(len(digest) == 32 for digest in parse_keys_file(text.encode("utf-8", "surrogatepass")))


def check_prices(text: str) -> None:
    """A table or ValueError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prices.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(ValueError):
            PriceTable.load(file)


def check_settings(texts: dict[str, str]) -> None:
    """Settings, or every problem in words, without a value of a secret."""
    secret, problems = texts.get("GOOGLE_API_KEY", ""), ""
    try:
        load_settings(texts, env_file=None)
    except SettingsError as error:
        problems = str(error)
    assert len(secret) < 12 or secret not in problems


def check_body(body: bytes) -> None:
    """A job or an error of the caller's."""
    for task in TASKS:
        with suppress(InvalidJson, InvalidRequest):
            job = parse(task, body, max_chars=1000)
            assert isinstance(job, Job)
            assert len(job.key("model")) >= 16


def check_credentials(text: str) -> None:
    """A secret or none, never an empty one."""
    assert presented_key(text, None) != ""
    assert presented_key(None, text) != ""


def check_inspection(text: str) -> None:
    """Findings that are bounded and printable, and a masking that ends."""
    for finding in inspect(text, text, text):
        assert finding.evidence.isprintable()
        assert len(finding.evidence) <= 120
    masked = redact(text)
    assert redact(masked) == masked
    assert masked == text or MASK in masked or masked == text.lower()


setting_texts = st.dictionaries(
    st.sampled_from([name.upper() for name in Settings.model_fields]),
    anything | rates | words("a:b", ",", "admin:x", "http://", "1", "0", "-1", "nan", "*", "true", "/"),
    max_size=5,
)

PARSERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "rate limits": (rates | anything, check_limits),
    "cache-control": (cache_control | anything, check_cache_control),
    "traceparent": (traceparents | anything, check_traceparent),
    "request id": (anything, check_request_id),
    "retry info": (durations | anything, check_duration),
    "times": (times | anything, check_time),
    "keys file": (tables | anything, check_keys_file),
    "prices": (tables | anything, check_prices),
    "settings": (setting_texts, check_settings),
    "bodies": (bodies, check_body),
    "credentials": (credentials | anything, check_credentials),
    "inspection": (anything, check_inspection),
}
"""Every parser of something from outside: what to give it, and what must hold."""
