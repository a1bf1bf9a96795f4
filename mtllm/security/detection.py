"""What looks hostile in a request line.

Bodies are never looked at, so no prompt is ever a security event. Detection is an observation for the audit log and,
with SECURITY_MODE=block, a refusal; the service does not rest on it: no caller's input reaches a file name, a shell, or
SQL text. So where an attack and a question *about* an attack look alike, the question wins: a sentence is nobody's
payload, and one sign of SQL is not enough. The rules stand in `rules`, each beside its examples.

Pure. Detection looks at `MAX_INSPECTED` characters at most of a path, query or user agent, decoded `MAX_DECODES` times
at most, by patterns whose repeats are bounded: its time is linear in that. Of a longer one it looks at both ends, and
says that it is long. Clients that keep failing are noticed elsewhere (`bursts`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from mtllm.domain.findings import Finding
from mtllm.security.redaction import redact
from mtllm.security.rules import (
    AGENT_RULES,
    COMMAND_INJECTION,
    HEADER_INJECTION,
    HEADER_RULE,
    PATH_RULES,
    PATH_TRAVERSAL,
    PROBING_PATH,
    QUERY_RULES,
    SCRIPT_INJECTION,
    SQL_INJECTION,
    Rule,
)

ENCODED_ATTACK: Final = "encoded_attack"
OVERSIZED_TARGET: Final = "oversized_target"

HOSTILE_KINDS: Final = frozenset(
    {PATH_TRAVERSAL, SQL_INJECTION, SCRIPT_INJECTION, COMMAND_INJECTION, HEADER_INJECTION, ENCODED_ATTACK, PROBING_PATH}
)
"""What SECURITY_MODE=block refuses: attacks in paths and queries. User agents and length are only logged."""

MAX_INSPECTED: Final = 2048
MAX_DECODES: Final = 3
MAX_EVIDENCE: Final = 120

_QUIET_QUERY: Final = re.compile(r"[\w=&.,:~-]*")
_PLAIN_NAME: Final = re.compile(r"[\w.~-]{1,64}")
_RAW_CONTROL: Final = re.compile(r"[\0\r\n]")
_SQL_COMMENT: Final = re.compile(r"/\*!\d{0,6}|/\*(?!!)[^*]{0,80}\*/|\*/")
_UNICODE_ESCAPE: Final = re.compile(r"%u([0-9a-f]{4})", re.IGNORECASE)
_OVERLONG_MEANING: Final = {
    "%c0%ae": ".", "%e0%80%ae": ".", "%c0%af": "/", "%e0%80%af": "/", "%c1%9c": "\\", "%c0%bc": "<", "%c0%a7": "'",
}  # fmt: skip
_OVERLONG: Final = re.compile("|".join(_OVERLONG_MEANING), re.IGNORECASE)


# What a request line says ---------------------------------------------------------------------------------------------


def inspect(path: str, query: str, user_agent: str) -> tuple[Finding, ...]:
    """Return what is suspicious in a request line; () as a rule.

    Path and query are as sent, or percent-decoded once. Each kind is found at most once in each of the three.
    """
    return _path_findings(path) + _query_findings(query) + _agent_findings(user_agent)


def hostile(findings: Iterable[Finding]) -> bool:
    """Return whether SECURITY_MODE=block refuses a request with these findings."""
    return any(finding.kind in HOSTILE_KINDS for finding in findings)


def _remember_short(
    look: Callable[[str], tuple[Finding, ...]],
) -> Callable[[str], tuple[Finding, ...]]:
    """Remember the answers for short texts: most requests repeat a few paths and user agents."""
    known = lru_cache(maxsize=1024)(look)
    return lambda text: known(text) if len(text) <= 256 else look(text)


@_remember_short
def _path_findings(path: str) -> tuple[Finding, ...]:
    return _target_findings(path, [_utf8(path)], PATH_RULES, encoded_from=1)


def _utf8(path: str) -> str:
    """Return a path's real text: WSGI hands over bytes as Latin-1 (PEP 3333); text that is none of that stays."""
    try:
        return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return path


def _query_findings(query: str) -> tuple[Finding, ...]:
    """Not remembered, since a query may hold a secret; a query without any special character is let go at once."""
    if not query or _QUIET_QUERY.fullmatch(query):
        return ()
    values = [_value(pair) for pair in _both_ends(query).replace("+", " ").split("&")]
    return _target_findings(query, values, QUERY_RULES, encoded_from=2)


def _value(pair: str) -> str:
    """Return the value of `name=value`, or the whole pair if its name is odd: the name may be the attack."""
    name, equals, value = pair.partition("=")
    return value if equals and _PLAIN_NAME.fullmatch(name) else pair


def _target_findings(
    target: str, texts: Iterable[str], rules: tuple[Rule, ...], *, encoded_from: int
) -> tuple[Finding, ...]:
    """Return the findings of all decoded forms; one that needed `encoded_from` decodings is an evasion, too."""
    found: dict[str, Finding] = {}
    if len(target) > MAX_INSPECTED:
        found[OVERSIZED_TARGET] = Finding(OVERSIZED_TARGET, "low", f"{len(target)} characters")
    for text in texts:
        views = list(_decoded_views(_both_ends(text)))
        meant = _canonical(views[-1])
        for depth, view in enumerate(views):
            hits = [hit for hit in _matches(view, rules, meant) if hit.kind not in found]
            found |= {hit.kind: hit for hit in hits}
            if hits and depth >= encoded_from:
                found.setdefault(ENCODED_ATTACK, Finding(ENCODED_ATTACK, "high", hits[0].evidence))
    return tuple(found.values())


def _both_ends(text: str) -> str:
    """Return what of a text is looked at: padding moves an attack to the end, so both ends count."""
    half = MAX_INSPECTED // 2
    return text if len(text) <= MAX_INSPECTED else text[:half] + text[-half:]


def _decoded_views(text: str) -> Iterator[str]:
    """Yield the text as it is, and after each percent-decoding that still changes it."""
    yield text
    for _ in range(MAX_DECODES):
        if "%" not in text:
            return
        decoded = _decode(text)
        if decoded == text:
            return
        text = decoded
        yield text


def _decode(text: str) -> str:
    """Percent-decode as leniently as the most lenient server: overlong UTF-8 (`%c0%ae`) and `%u002e`, too."""
    text = _OVERLONG.sub(lambda match: _OVERLONG_MEANING[match[0].lower()], text)
    text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return unquote(text, errors="replace")


def _matches(text: str, rules: tuple[Rule, ...], meant: str) -> Iterator[Finding]:
    """Yield the findings in one decoded form; `meant` is the last form, which tells a sentence from a payload."""
    if _RAW_CONTROL.search(text):
        if header := HEADER_RULE.find(text):
            yield Finding(HEADER_RULE.kind, HEADER_RULE.severity, _evidence(text, header))
        elif "\0" in text:
            yield Finding(ENCODED_ATTACK, "medium", _evidence(text))
    plain = _canonical(text)
    for rule in rules:
        if (match := rule.find(plain)) and not (rule.spares and rule.spares(meant)):
            yield Finding(rule.kind, rule.severity, _evidence(plain, match))


def _canonical(text: str) -> str:
    """Return one spelling of what parsers read alike: compatibility characters, SQL comments and blanks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)[:MAX_INSPECTED]
    if "/*" in text:
        text = _SQL_COMMENT.sub(" ", text)
    return " ".join(text.split())


@_remember_short
def _agent_findings(user_agent: str) -> tuple[Finding, ...]:
    text = _both_ends(user_agent)
    for rule in AGENT_RULES:
        if match := rule.find(text):
            return (Finding(rule.kind, rule.severity, _evidence(text, match)),)
    return ()


# What may be shown ----------------------------------------------------------------------------------------------------


def _evidence(text: str, match: re.Match[str] | None = None) -> str:
    """Return the printable part of a text around a match. Half a key is not recognised, so redaction comes first."""
    shown = redact(text)
    at = shown.find(match[0]) if match else 0
    start = max(0, at - MAX_EVIDENCE // 4)
    return "".join(char if char.isprintable() else "?" for char in shown[start : start + MAX_EVIDENCE])
