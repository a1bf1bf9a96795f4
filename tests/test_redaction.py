"""What a log may show: no secret of any known form, and everything else as it was."""

from __future__ import annotations

import json
import time

import pytest

from mtllm.security.redaction import MARGIN, MASK, Redactor, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl-canary"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key AIzaSyCanary0123456789 refused", "key [redacted] refused"),
        ("sk-proj-canary_1234 x", "[redacted] x"),
        ("Authorization: Bearer canary", "Authorization: [redacted]"),
        ("sent Bearer canary.token/+= today", "sent Bearer [redacted] today"),
        ("Bearer%20canary01", "Bearer%20[redacted]"),
        ("Basic dXNlcjpjYW5hcnk", "Basic [redacted]"),
        ("BASIC dXNlcjpjYW5hcnk=", "BASIC [redacted]"),
        ("basic password: canary", "basic password: [redacted]"),
        ("Cookie: session=canary; theme=dark\r\nHost: x", "Cookie: [redacted]\r\nHost: x"),
        ("set-cookie=sid:canary", "set-cookie=[redacted]"),
        (f"jwt {JWT}", "jwt [redacted]"),
        ("/login?user=ann&password=canary&next=/", "/login?user=ann&password=[redacted]&next=/"),
        ("/v1?key=canary", "/v1?key=[redacted]"),
        ("/v1?API_KEY%3Dcanary&x=1", "/v1?API_KEY%3D[redacted]&x=1"),
        ("access_token=canary;", "access_token=[redacted];"),
        ("X-API-Key: canary", "X-API-Key: [redacted]"),
        ("x-goog-api-key=canary", "x-goog-api-key=[redacted]"),
        ('{"clientSecret": "can ary", "n": 1}', '{"clientSecret": "[redacted]", "n": 1}'),
        ('{\\"password\\":\\"canary\\"}', '{\\"password\\":\\"[redacted]\\"}'),
        ("dbpass=canary&sid=canary&userAuth: canary", "dbpass=[redacted]&sid=[redacted]&userAuth: [redacted]"),
        (
            "aws_secret_access_key = canary, sessionId=canary",
            "aws_secret_access_key = [redacted], sessionId=[redacted]",
        ),
        ("postgresql://app:canary@db/ledger", "postgresql://app:[redacted]@db/ledger"),
        ("redis://:canary@cache:6379", "redis://:[redacted]@cache:6379"),
        ("ghp_canary0123456789", "[redacted]"),
        ("AKIACANARY0123456789", "[redacted]"),
        ("xoxb-canary-0123", "[redacted]"),
        ("AQ.Ab8canary0123456789-_x", "[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\ncanary", "-----BEGIN RSA PRIVATE KEY-----[redacted]"),
        ("İstanbul token=canary", "i̇stanbul token=[redacted]"),
    ],
)
def test_secrets_are_masked_where_they_stand(text: str, shown: str) -> None:
    """Names and surroundings stay, the value goes."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/api/v1/generate/text",
        "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0",
        "c0ffee00-1111-4222-8333-444455556666",
        "Explain basic thermodynamics. Basic. basic english only",
        "input_tokens=5, max_output_tokens: 2048",
        "The author: Jane; side = 2, inside: x, signal: 5, sigma=3, credit: 4, passages: 6, keys = 7, sessions: 8",
        "risk-management, task-oriented, ask-me-anything",
        "What makes a good token bucket? A keyboard and a secretary pass by.",
        "https://example.org/a:b?page=2&sort=name",
        "explain the basic concepts of risk-assessment",
        "max_output_tokens=5",
        '{"input_tokens": 12, "output_tokens": 3}',
        "keyboard: a monkey types",
        "https://example.com/a?b=c",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """No mask without a secret."""
    assert redact(text) == text


def test_configured_secrets_are_masked_in_every_spelling() -> None:
    """As they are, percent-encoded and as JSON; the longer one first where one holds another."""
    show = Redactor(("pa ss/é", "canary", "canary-longer", "abc")).show
    text = "pa ss/é pa%20ss%2F%C3%A9 pa ss/\\u00e9 canary canary-longer abc"
    assert json.loads(show(text, 1000)) == " ".join(["[redacted]"] * 5) + " abc"


@pytest.mark.parametrize(
    "text",
    [
        "AIzaSyCANARYCANARYCANARYCANARYCANARYCAN",
        "see sk-proj-CANARYCANARY and go",
        "key%3DCANARY",
        "?key=CANARY&a=1",
        "%3Fkey%3DCANARY%26a%3D1",
        "https://h/p?access_token=CANARY",
        "password=CANARY&x=1",
        '{"password": "CANARY", "x": 1}',
        '{"password": "CAN\\"CANARY", "x": 1}',
        "{'client_secret': 'CANARY'}",
        "api-key: CANARY",
        "X-API-Key: CANARY",
        "Authorization: Bearer CANARY",
        "{'Authorization': 'Basic CANARY'}",
        "Proxy-Authorization: Digest CANARY",
        "sent bearer CANARY.CANARY-CANARY_x",
        "Bearer%20CANARY",
        "Basic dXNlcjpDQU5BUlk6CANARY=",
        "Cookie: session=CANARY; theme=CANARY",
        "Set-Cookie: id=CANARY; HttpOnly",
        "eyJCANARYCANARY.eyJCANARY.CANARY-_x",
        "postgresql://user:CANARY@db/ledger",
        "ghp_CANARYCANARYCANARYCANARY",
        "AKIACANARYCANARYCANARY",
        "xoxb-CANARYCANARY",
        "sig=CANARY",
        "PASSWORD = CANARY",
        "GOOGLE_API_KEY=CANARY",
        "token%253DCANARY",
    ],
)
def test_nothing_of_a_secret_is_left(text: str) -> None:
    """In prose, URLs, headers and JSON; and masking twice changes nothing more."""
    masked = redact(text)
    assert "CANARY" not in masked
    assert MASK in masked
    assert redact(masked) == masked


@pytest.mark.parametrize("offset", [0, 1, 40, 50, 51, 60, 100, 99 + MARGIN, 100 + MARGIN, 101 + MARGIN])
def test_a_cut_through_a_secret_shows_no_half_of_it(offset: int) -> None:
    """Wherever the text is cut, no piece of the key is left standing."""
    shown = Redactor().show(" " * offset + "AIzaSyCanary" + "K" * 27 + " " * 2000, 100)
    assert "Canar" not in shown
    assert shown.endswith('[cut]"')


def test_masks_before_the_cut_uncover_nothing_behind_it() -> None:
    """Long secrets that shrink to a mask do not pull the unread end of the text into view."""
    text = "sk-" + "a" * 500 + " " * 105 + "sk-canary-0123456789"
    assert "canary" not in Redactor().show(text[: 100 + MARGIN + 2] + "x", 100)


@pytest.mark.parametrize(
    "unit",
    ["a", "token", "key", "key=", "sid=sid=", "=", "://", "://:", "eyj", "eyja.", "bearer ", "basic ", "key: ", "sk-",
     "-----begin private key-----", "cookie", "authorization: '", "pass\\\"", "token%3", "AIza", '="\\"', "'", "(",
     "%25", "key%25253d", 'key="\\', 'key=\\"\\\\', "\ufdfa", "İ"],
)  # fmt: skip
def test_time_is_linear_in_the_text(unit: str) -> None:
    """A hundred thousand characters made to be searched again and again take well under a second."""
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    redact(text)
    assert time.perf_counter() - start < 1.0
