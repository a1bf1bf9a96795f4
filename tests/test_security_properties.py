"""Detection, masking and identity over arbitrary input."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402 - only where hypothesis is installed
from hypothesis import strategies as st  # noqa: E402

from mtllm.domain.findings import Finding  # noqa: E402
from mtllm.security.access import (  # noqa: E402
    UNKNOWN_CLIENT,
    BrokenKeysFile,
    ClientResolver,
    parse_keys_file,
    presented_key,
)
from mtllm.security.detection import MAX_EVIDENCE, hostile, inspect  # noqa: E402
from mtllm.security.redaction import MASK, redact  # noqa: E402

bounded = settings(max_examples=100, deadline=None)

PIECES = (
    """' " < > ../ % %25 %00 or 1=1 -- /* */ & = ; union select <script> onload= ${ {{ key= Bearer AIza eyJ :// @"""
)
HOSTILE_PIECES = st.sampled_from([*PIECES.split(" "), " ", "\\", "\0", "\r\n", "\ud800", "\ufdfa"])
ANYTHING = st.one_of(
    st.text(),
    st.binary().map(lambda raw: raw.decode("latin-1")),
    st.binary().map(lambda raw: raw.decode("utf-8", "replace")),
    st.lists(HOSTILE_PIECES | st.text(max_size=5), max_size=60).map("".join),
)
SECRET = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=20, max_size=60)


@bounded
@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_request_line_is_judged(path: str, query: str, user_agent: str) -> None:
    """No text raises, and whatever is found is bounded and printable."""
    findings = inspect(path, query, user_agent)
    assert isinstance(hostile(findings), bool)
    for finding in findings:
        assert isinstance(finding, Finding)
        assert len(finding.evidence) <= MAX_EVIDENCE
        assert finding.evidence.isprintable()


@bounded
@given(ANYTHING, ANYTHING, ANYTHING)
def test_the_answer_depends_on_the_request_alone(path: str, query: str, user_agent: str) -> None:
    """Remembered answers are the same as fresh ones."""
    assert inspect(path, query, user_agent) == inspect(path, query, user_agent)


@bounded
@given(st.text("abcdefghijklmnopqrstuvwxyzäöüßéèñçøåджзиклмн中文字 ", max_size=200))
def test_plain_words_are_never_hostile(words: str) -> None:
    """Letters and blanks pass in any language, as a path, and as a query in every encoding."""
    for query in (f"q={words}", f"q={quote(words)}", f"q={quote_plus(words)}", quote(quote(words))):
        assert not hostile(inspect("/", query, "curl/8"))


@bounded
@given(ANYTHING)
def test_masking_ends(text: str) -> None:
    """No text raises, and masking what is masked changes nothing more."""
    assert redact(redact(text)) == redact(text)


@bounded
@given(
    SECRET,
    st.sampled_from(
        ["key=", "token=", "password: ", "Authorization: Bearer ", "bearer ", "AIza", "sk-", "?api_key%3D"]
    ),
    st.text("abcdefghij &?;\n", max_size=19),  # shorter than any secret, so that it is in neither
    st.text("abcdefghij ", max_size=19),
)
def test_a_secret_never_survives(secret: str, name: str, before: str, after: str) -> None:
    """Wherever a named or recognisable secret stands in a text, it is masked."""
    masked = redact(f"{before} {name}{secret} {after}")
    assert secret not in masked
    assert MASK in masked


@bounded
@given(ANYTHING, ANYTHING, st.integers(0, 5))
def test_any_header_yields_a_client(peer: str, forwarded_for: str, proxies: int) -> None:
    """No forwarded header raises or gets into logs as it is: a client is an address, a network or `unknown`."""
    client = ClientResolver(proxies, on_problem=lambda _: None).client(peer, forwarded_for)
    assert client == UNKNOWN_CLIENT or set(client) <= set("0123456789abcdef.:/")


@bounded
@given(st.ip_addresses(), st.text("0123456789.:, ", max_size=50))
def test_a_caller_cannot_choose_its_address(address: object, forged: str) -> None:
    """Whatever a caller puts into X-Forwarded-For, our own proxy appends the peer it saw, and that counts."""
    resolver = ClientResolver(1, on_problem=lambda _: None)
    honest = resolver.client("10.0.0.1", str(address))
    assert resolver.client("10.0.0.1", f"{forged}, {address}") == honest


@bounded
@given(ANYTHING, ANYTHING)
def test_any_credentials_are_read(authorization: str, x_api_key: str) -> None:
    """No header raises; what is not a key is None, never an empty one."""
    assert presented_key(authorization, x_api_key) != ""


@bounded
@given(ANYTHING | st.just('[[key]]\nname = "a"\nsha256 = "' + "0" * 64 + '"\ndaily_budget_usd = 1e999999'))
def test_any_keys_file_is_read_or_refused(content: str) -> None:
    """A keys file holds keys or is refused in words, never anything else."""
    try:
        keys = parse_keys_file(content.encode("utf-8", "surrogatepass"))
    except BrokenKeysFile:
        return
    assert all(len(digest) == 32 for digest in keys)
