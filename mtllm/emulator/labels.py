"""How the offline model classifies: by a text's mood, then by shared words.

choose_label     text, labels -> one of the labels
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_FEELING = re.compile(
    r"(?P<negation>\b(?:not|never|no|hardly)\s|n't\s)?\b(?:"
    r"(?P<good>love|like|enjoy|great|good|best|nice|happy|excellent|amazing|awesome|wonderful|fantastic|perfect|brilliant|"
    r"recommend|delight|beautiful)|"
    r"(?:hate|dislike|bad|worst|poor|awful|terrible|horrible|broken|useless|angry|sad|annoy|disappoint|ugly|boring|"
    r"disgusting|fail|crash))(?:d|s|ed|es|ing|ly)?\b"
)
_LOOKS_GOOD = re.compile(r"\b(?:positive|pos|good|happy|praise|compliment|like|love|joy|favou?rable)\b")
_LOOKS_BAD = re.compile(r"\b(?:negative|neg|bad|unhappy|sad|complaint|criticism|dislike|hate|anger|unfavou?rable)\b")
_LOOKS_NEUTRAL = re.compile(r"\b(?:neutral|other|mixed|none|unknown)\b")


def choose_label(text: str, labels: Sequence[str]) -> str:
    """Return the label of the text's mood, else the one with most of its words, else a neutral one, else the first."""
    folded = text.casefold()
    mood = sum(-1 if bool(found["negation"]) is bool(found["good"]) else 1 for found in _FEELING.finditer(folded))
    looks = (_LOOKS_GOOD if mood > 0 else _LOOKS_BAD) if mood else None
    return (
        (looks and _find_looking(labels, looks))
        or _find_closest(folded, labels)
        or _find_looking(labels, _LOOKS_NEUTRAL)
        or labels[0]
    )


def _find_looking(labels: Sequence[str], looks: re.Pattern[str]) -> str | None:
    return next((label for label in labels if looks.search(label.casefold())), None)


def _find_closest(folded: str, labels: Sequence[str]) -> str | None:
    words = set(re.findall(r"\w+", folded))

    def overlap(label: str) -> int:  # a label that stands in the text counts too: not all scripts put spaces
        return len(words.intersection(re.findall(r"\w+", label.casefold()))) + (label.casefold() in folded)

    best = max(labels, key=overlap)
    return best if overlap(best) else None
