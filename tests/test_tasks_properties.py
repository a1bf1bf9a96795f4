"""Whatever changes the answer changes the cache key."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st

from mtllm.tasks import TASK_BY_NAME, Job, parse, strip_fence

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8).filter(
    lambda text: not text.isspace()
)
REQUESTS = st.one_of(
    st.tuples(st.sampled_from(["text", "code"]), st.fixed_dictionaries({"prompt": WORDS}, optional={
        "temperature": st.sampled_from([0, 0.2, 0.7, 1]),
        "max_output_tokens": st.sampled_from([1, 2048, 8192]),
    })),
    st.tuples(st.just("classify"), st.fixed_dictionaries(
        {"text": WORDS, "categories": st.lists(WORDS, min_size=2, max_size=4, unique=True)}
    )),
)  # fmt: skip


def job_of(request: tuple[str, dict[str, Any]]) -> Job:
    name, fields = request
    return parse(TASK_BY_NAME[name], json.dumps(fields).encode(), max_chars=100)


@given(REQUESTS, REQUESTS, st.sampled_from(["m", "m n"]), st.sampled_from(["m", "m n"]))
def test_keys_are_equal_only_for_equal_questions(
    one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], model: str, other_model: str
) -> None:
    """Different questions never share an answer, equal ones always do."""
    a, b = job_of(one), job_of(other)
    same = (a.task, a.instruction, model) == (b.task, b.instruction, other_model)
    assert (a.key(model) == b.key(other_model)) == same


@given(REQUESTS, WORDS, WORDS)
def test_the_scope_keeps_answers_apart(request_: tuple[str, dict[str, Any]], scope: str, other: str) -> None:
    """CACHE_SCOPE=key."""
    assume(scope != other)
    assert job_of(request_).key("m", scope) != job_of(request_).key("m", other)


@given(st.text(max_size=200), st.booleans())
def test_unfencing_only_ever_takes_away(text: str, truncated: bool) -> None:
    """What is left was there before."""
    assert strip_fence(text, truncated=truncated) in text
