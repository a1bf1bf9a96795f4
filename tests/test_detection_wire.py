"""Detection and logs as requests from the wire meet them: refusals, findings, bursts, and lines that stay lines."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app import Api
from mtllm.security.detection import inspect
from tests.support.fakes import FakeClock
from tests.support.raw_http import call_wsgi
from tests.support.serving import serving
from tests.test_security_labelled import BENIGN, HOSTILE, Request

TEXT = "/api/v1/generate/text"
ADMIN = "admin-secret"
AS_SENT = "".join(map(chr, range(0x21, 0x7F)))
"""What may stand in a request line as it is; the rest a client has to encode."""

MakeApp = Callable[..., Api]


def log_lines(app: Api, name: str) -> list[dict[str, Any]]:
    app.service.logger.flush()
    return [json.loads(line) for line in (app.settings.log_dir / name).read_text().splitlines()]


# SECURITY_MODE=block


class Wire:
    """One connection kept alive, on which request lines go out as a client would send them."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=20)

    def status(self, line: Request) -> tuple[int, str | None]:
        """Status and error code of the answer."""
        path, query, user_agent = line
        target = quote(path, safe=AS_SENT) + (f"?{quote(query, safe=AS_SENT)}" if query else "")
        self._connection._validate_path = lambda _path: None  # type: ignore[attr-defined]  # attackers don't ask
        self._connection.putrequest("GET", target.replace("#", "%23"), skip_accept_encoding=True)
        self._connection.putheader("User-Agent", user_agent.encode("utf-8", "replace"))
        self._connection.putheader("X-API-Key", ADMIN)
        self._connection.endheaders()
        answer = self._connection.getresponse()
        body = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(body).get("code") if is_json else None

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def blocking(make_app: MakeApp) -> Api:
    """A service that refuses what is hostile, with a key that may do everything else."""
    return make_app(security_mode="block", admin_api_key=ADMIN, rate_limits="")


@pytest.fixture
def wire(blocking: Api) -> Iterator[Wire]:
    """A connection to it through waitress."""
    with serving(blocking) as port:
        connection = Wire(port)
        yield connection
        connection.close()


def test_hostile_paths_and_queries_are_refused(wire: Wire, blocking: Api) -> None:
    """At least 95 of 100 of the labelled set, with 403; all of the set leave a line in the security log, or nearly."""
    targets = [line for line in HOSTILE if inspect(line[0], line[1], "")]
    refused = [line for line in targets if wire.status(line) == (403, "forbidden")]
    assert len(refused) >= 0.95 * len(targets) > 160
    told = {line["request_id"] for line in log_lines(blocking, "security_audit.log") if line["severity"] != "low"}
    assert len(told) >= len(refused)


def test_no_benign_request_is_refused(wire: Wire) -> None:
    """Whatever it asks about; what is not there is a 404 and no more."""
    assert [line for line in BENIGN if wire.status(line)[1] == "forbidden"] == []


def test_no_prompt_is_refused_for_its_words(blocking: Api) -> None:
    """Every attack of the set, sent as a prompt, is answered, and none is a security event."""
    client = blocking.test_client()
    for number, (path, query, user_agent) in enumerate(HOSTILE):
        prompt = f"{number} {path}?{query} {user_agent}"
        assert client.post(TEXT, json={"prompt": prompt}).status_code == 200, prompt
    assert log_lines(blocking, "security_audit.log") == []


def test_a_refusal_comes_before_everything_else(make_app: MakeApp) -> None:
    """Before a key is looked at, and without costing quota; it says nothing about what was found."""
    client = make_app(security_mode="block", api_keys="alice:secret", rate_limits="1/hour").test_client()
    for _ in range(3):
        answer = client.post(f"{TEXT}?q=<script>alert(1)</script>", json={"prompt": "x"})
        assert answer.status_code == 403
        assert answer.json is not None
        assert answer.json["error"] == "This is not allowed."
    assert client.post(TEXT, json={"prompt": "x"}, headers={"X-API-Key": "secret"}).status_code == 200


def test_in_log_mode_everything_is_answered_and_told(make_app: MakeApp) -> None:
    """Kind, severity, evidence, client and request id."""
    app = make_app(api_keys="alice:secret")
    answer = app.test_client().get(
        "/api/v1/stats?q=1'+or+'1'='1&token=CANARY", headers={"X-API-Key": "secret", "User-Agent": "sqlmap/1.7"}
    )
    assert answer.status_code == 200
    found = {line["kind"]: line for line in log_lines(app, "security_audit.log")}
    assert set(found) == {"sql_injection", "scanner_user_agent"}
    line = found["sql_injection"]
    assert (line["severity"], line["client"], line["path"]) == ("high", "alice", "/api/v1/stats")
    assert line["request_id"] == answer.headers["X-Request-ID"]
    assert "or '1'='1" in line["evidence"]
    assert "CANARY" not in line["evidence"]


# Bursts


@pytest.mark.parametrize(
    ("kind", "path", "count", "settings"),
    [
        ("repeated_unauthorized", "/stats", 5, {"api_keys": "alice:secret"}),
        ("not_found_burst", "/nowhere", 20, {}),
        ("rate_limit_burst", TEXT, 21, {"rate_limits": "1/hour"}),
    ],
)
def test_a_client_that_keeps_failing_is_told_of_once_a_minute(
    make_app: MakeApp, clock: FakeClock, kind: str, path: str, count: int, settings: dict[str, str]
) -> None:
    """With the request that completed the burst; a 404 alone leaves no line."""
    app = make_app(**settings)
    client = app.test_client()

    def fail(times: int) -> None:
        for _ in range(times):
            client.open(path, method="POST" if path == TEXT else "GET", json={"prompt": "x"})

    def told() -> int:
        return [line["kind"] for line in log_lines(app, "security_audit.log")].count(kind)

    fail(count - 1)
    assert told() == 0
    fail(2 * count)
    assert told() == 1
    clock.advance(61)
    fail(2 * count)
    assert told() == 2


def test_success_is_not_counted(make_app: MakeApp) -> None:
    """A burst costs a hit nothing: its detector is not even asked."""
    app = make_app(rate_limits="")
    client = app.test_client()
    for _ in range(3):
        assert client.post(TEXT, json={"prompt": "x"}).status_code == 200
    assert app.service.bursts._failures == {}


# Lines that stay lines

LONGEST_LINE = 8192

NASTY = [
    "\n{\"status\": 200, \"forged\": true}\n",
    "\r\nSet-Cookie: a=b\r\n\r\n",
    "\x1b[2J\x1b[31mred\x1b[0m\x07\x00\x7f\x9b",
    "\u2028\u2029\u202e\ufeff\x85",
    "\xc3\xa9\xff\xfe\xed\xa0\x80",
    "\ud800\udfff\udcff",
    '"},{"x":"\\',
    "A" * 100_000,
    "\xff" * 100_000,
    "\x00" * 100_000,
]  # fmt: skip


def everywhere(words: str) -> Iterator[dict[str, Any]]:
    """`words` in every part of a request that could reach a log; in its head as bytes dressed as Latin-1 (PEP 3333)."""
    text = words.encode("utf-8", "surrogatepass").decode("latin-1")
    for name in ("HTTP_USER_AGENT", "HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT", "HTTP_X_FORWARDED_FOR", "HTTP_X_API_KEY",
                 "HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_ORIGIN", "HTTP_CACHE_CONTROL", "REMOTE_ADDR",
                 "QUERY_STRING", "CONTENT_TYPE"):  # fmt: skip
        yield {name: text}
    yield {"PATH_INFO": f"/{text}", "HTTP_USER_AGENT": f"sqlmap {text}", "QUERY_STRING": f"q=<script>{text}"}
    for field in ("prompt", words):
        body = json.dumps({field: words}).encode()
        yield {"REQUEST_METHOD": "POST", "PATH_INFO": TEXT, "CONTENT_TYPE": "application/json",
               "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}  # fmt: skip


@pytest.mark.parametrize("mode", ["off", "preview"])
def test_every_line_is_one_bounded_json_object(make_app: MakeApp, tmp_path: Path, mode: str) -> None:
    """Whatever stands in path, query, header fields or body: nothing forges a line, colours a terminal or floods."""
    app = make_app(rate_limits="", trusted_proxies="1", log_prompts=mode)
    sent = 0
    for text in NASTY:
        for environ in everywhere(text):
            answer = call_wsgi(app, **environ)
            assert answer.status != 500, environ
            assert all(value.isascii() and value.isprintable() for _, value in answer.headers.items())
            sent += 1
    app.service.logger.flush()
    written = (tmp_path / "logs" / "api_requests.log").read_bytes().splitlines()
    assert len(written) == sent
    for file in (tmp_path / "logs").iterdir():
        for line in file.read_bytes().split(b"\n")[:-1]:
            assert len(line) <= LONGEST_LINE
            assert all(0x20 <= byte < 0x7F for byte in line)
            told = json.loads(line)
            assert "forged" not in told
            assert {"timestamp", "request_id", "client"} <= set(told)


def test_a_shower_of_bytes_in_the_path_is_told_in_bounded_lines(make_app: MakeApp, tmp_path: Path) -> None:
    """Latin-1, as WSGI dresses bytes, of any value and length."""
    app = make_app()
    shower = random.Random(5)
    for _ in range(100):
        call_wsgi(app, PATH_INFO="/" + shower.randbytes(shower.randrange(3000)).decode("latin-1"))
    lines = log_lines(app, "api_requests.log")
    assert len(lines) == 100
    assert {line["status"] for line in lines} <= {404, 308, 405}
