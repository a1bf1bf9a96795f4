"""What may be shown of a text from outside: without secrets, of bounded length, as a JSON string."""

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
      (?:bearer|basic)(?:\s|%20|\+){1,4}()[a-z0-9~+/._=-]{6,}
    | (?:cookie|authorization)["']?\s{0,4}(?:[:=]|%3d)\s{0,4}["']?()[^\r\n"']+
    | (?:pass(?:word|wd|phrase|code)?|pwd|secret|token|key|credentials?|session|signature|auth|jwt|sig(?<![a-z]sig)
        |sid(?<![a-z]sid))
      (?:[_-][a-z0-9_-]{0,20}|key|id|token|value|hash)?
      (?:\\?["']|%22)?\s{0,4}(?:[:=]|%3[ad])\s{0,4}(?:\\?["']()[^"']*|()[^\s&;,"'<>\\]+)
    | ://[^\s/@:]{0,100}:()[^\s/@]{1,200}(?=@)
    | aiza[a-z0-9_-]{6,} | aq\.[a-z0-9_-]{20,} | sk-(?<![a-z0-9]sk-)[a-z0-9_-]{8,}
    | eyj[a-z0-9_-]{8,}(?:\.[a-z0-9_-]+)* | gh[opsru]_[a-z0-9]{10,} | akia[a-z0-9]{12,} | xox[a-z]-[a-z0-9-]{8,}
    | -----begin[a-z ]{0,40}private[ ]key-----()(?:(?!-----end).)*
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` with everything masked that looks like a key, token, cookie or password, and each of `secrets`.

    Linear in the length of `text`. Names stay (`password=[redacted]`), values go.
    """
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    lowered = text.lower()
    if not _SECRET.search(lowered):
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
    """`basic english` is prose; the base64 of credentials has capitals, digits or padding."""
    word = word.rstrip(".")
    return word.isalpha() and word.islower()


class Redactor:
    """Shows texts with what looks secret, and every one of `secrets`, masked."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self._secrets = _spellings(secrets)
        self.margin = max([MARGIN, *map(len, self._secrets)])

    def shown(self, text: str | None, limit: int, *, chars: int | None = None) -> str:
        """A JSON string of at most `limit` bytes and `chars` characters, its end cut with a mark if need be.

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
    """Each secret as it is, in a URL and in JSON; the longest first, since one may hold another."""
    spelled = {form for s in secrets if len(s) >= 4 for form in (s, percent_encoded(s, safe=""), quote(s)[1:-1])}
    return tuple(sorted(spelled, key=len, reverse=True))


def _cut(text: str, limit: int) -> str:
    room = limit - len(CUT)
    while len(quoted := quote(text)) > room:
        text = text[: len(text) * room // len(quoted)]
    return f'{quoted[:-1]}{CUT}"'
