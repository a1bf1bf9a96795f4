"""Texts from outside made safe to show: without secrets, of bounded length, as JSON strings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii as quote
from typing import Final
from urllib.parse import quote as percent_encoded

MASK: Final = "[redacted]"
CUT: Final = "[cut]"

MARGIN: Final = 512
"""A longer text is redacted with this many characters past its cut, so that a secret across the cut is recognised."""

# In lower case, since it is the lowered text that is searched. An empty group marks where the part to be masked begins.
# Every alternative begins with a literal and has bounded repeats before its tail: one pass, linear.
_SECRET: Final = re.compile(
    r"""
      (?:bearer|basic)(?:\s|%20|\+){1,4}()[a-z0-9~+/._=:%-]{6,}
    | (?:cookie|authorization)["']?\s{0,4}(?:[:=]|%(?:25){0,2}3[ad])\s{0,4}["']?()[^\r\n"']+
    | (?:pass(?:word|wd|phrase|code)?|pwd|secret|token|key|credentials?|session|signature|auth|jwt|sig(?<![a-z]sig)
        |sid(?<![a-z]sid))
      (?:[_-][a-z0-9_-]{0,20}|key|id|token|value|hash|[0-9]{1,3})?
      (?:\\?["']|%(?:25){0,2}2[27])?(?:\s|\+|%20){0,4}(?:[:=]|%(?:25){0,2}3[ad])(?:\s|\+|%20){0,4}
      (?: "()(?:[^"\\]|\\.)*+ | '()(?:[^'\\]|\\.)*+ | \\["']()(?:[^"'\\]|\\\\(?:\\["'])?|\\[^"'\\])*+
        | ()[^\s&;,"'<>\\]+)
    | ://[^\s/@:]{0,100}:()[^\s/@]{1,256}(?=@)
    | aiza[a-z0-9_-]{6,} | aq\.[a-z0-9_-]{16,} | sk-(?<![a-z0-9]sk-)[a-z0-9_-]{8,} | ya29\.[a-z0-9_-]{8,}
    | eyj[a-z0-9_-]{6,}(?:\.[a-z0-9_-]*)* | akia[a-z0-9]{12,} | xox[a-z]-[a-z0-9-]{8,}
    | gh[opsru]_[a-z0-9]{10,} | github_pat_[a-z0-9_]{16,} | glpat-[a-z0-9_-]{16,} | [prs]k_(?:live|test)_[a-z0-9]{8,}
    | -----begin[a-z ]{0,40}private[ ]key-----()(?:(?!-----end).)*
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_SIGNS: Final = (
    *("key", "token", "auth", "pass", "secret", "://", "bearer", "basic", "cookie", "pwd", "cred", "session", "sig"),
    *("sid", "jwt", "aiza", "sk-", "eyj", "aq.", "akia", "xox", "ya29", "_live_", "_test_", "glpat", "github_pat"),
    *("ghp_", "gho_", "ghs_", "ghu_", "ghr_"),
)
"""A text without any of these, in lower case, holds no secret: looking for them costs a thirtieth of the pattern."""


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return `text` with everything masked that looks like a key, token, cookie or password, and each of `secrets`.

    In prose, URLs, headers and JSON, percent-encoded (up to three times) or not. Names stay (`password=[redacted]`),
    values go. Linear in the length of `text`; masking what is masked changes nothing.
    """
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    lowered = text.lower()
    if not any(map(lowered.__contains__, _SIGNS)):
        return text
    if len(lowered) != len(text):  # a few letters have a longer lower case; places in the text must agree
        text = lowered
    return "".join(_around_secrets(text, lowered))


def _around_secrets(text: str, lowered: str) -> Iterator[str]:
    shown = place = 0
    while match := _SECRET.search(lowered, place):
        start = match.end(match.lastindex) if match.lastindex else match.start()
        if match[0].startswith("basic") and _is_prose(text[start : match.end()]):
            place = start
            continue
        yield text[shown:start]
        yield MASK
        shown = place = match.end()
    yield text[shown:]


def _is_prose(word: str) -> bool:
    """Return whether `word` is prose (`basic english`): the base64 of credentials has capitals, digits or padding."""
    word = word.rstrip(".:")
    return word.isalpha() and word.islower()


class Redactor:
    """Shows texts with what looks secret, and every one of `secrets`, masked."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self._secrets = _spellings(secrets)
        self.margin = max([MARGIN, *map(len, self._secrets)])

    def show(self, text: str | None, limit: int, *, chars: int | None = None) -> str:
        """Return a JSON string of at most `limit` bytes and `chars` characters, its end cut with a mark if need be.

        ASCII without control characters, whatever `text` holds; `null` for None.
        """
        if text is None:
            return "null"
        chars = limit if chars is None else chars
        whole = len(text) <= chars + self.margin
        masked = redact(text if whole else text[: chars + self.margin], self._secrets)
        if not whole:
            masked = masked[: -self.margin]  # the margin may end in half a secret
        if whole and len(masked) <= chars and len(quoted := quote(masked)) <= limit:
            return quoted
        return _cut(masked[:chars], limit)


def _spellings(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Return each secret as it is, in a URL and in JSON; the longest first, since one may hold another."""
    spelled = {form for s in secrets if len(s) >= 4 for form in (s, percent_encoded(s, safe=""), quote(s)[1:-1])}
    return tuple(sorted(spelled, key=len, reverse=True))


def _cut(text: str, limit: int) -> str:
    room = limit - len(CUT)
    while len(quoted := quote(text)) > room:
        text = text[: len(text) * room // len(quoted)]
    return f'{quoted[:-1]}{CUT}"'
