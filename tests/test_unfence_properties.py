"""Streamed code without its fence, however the deltas are cut."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from mtllm.http.unfence import Unfence
from mtllm.tasks import strip_fence

WRAPPED = (
    "```python\nx = 1\n```",
    "```\n\n  a\n\n\nb\n\n```\n",
    "````md\n```\nx\n```\n````",
    "\n ```go\nx\n  ```  ",
    "```\n```",
)
BARE = ("x = 1\ny = `2`\n", "``", "a ```b```\n", "`x`", "", " \n")


def streamed(deltas: list[str]) -> list[str]:
    unfence = Unfence()
    return [*(unfence.feed(delta) for delta in deltas), unfence.end()]


@pytest.mark.parametrize("text", [*WRAPPED, *BARE])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_deltas_add_up_to_the_code_alone(text: str, size: int) -> None:
    """In whatever pieces it comes; text without a fence is as it was."""
    deltas = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(streamed(deltas)) == strip_fence(text)


@given(st.lists(st.text(alphabet="ab \n", max_size=6)))
def test_any_code_in_a_fence_comes_out_as_it_is(pieces: list[str]) -> None:
    """Blank lines and blanks at its ends included."""
    assert "".join(streamed(["```py\n", *pieces, "\n```"])) == "".join(pieces)


@given(st.lists(st.text(alphabet="a \n", max_size=6)))
def test_text_without_ticks_is_never_changed(pieces: list[str]) -> None:
    """All of it arrives, in order."""
    assert "".join(streamed(pieces)) == "".join(pieces)


def test_lines_pass_on_as_they_come() -> None:
    """No more is held than what may be the closing fence."""
    assert streamed(["```py\n", "x = 1\n", "y = 2\n", "```"]) == ["", "x = 1", "\ny = 2", "", ""]


def test_a_block_that_text_follows_keeps_its_closing_fence() -> None:
    """Only its opening line is gone by then."""
    assert "".join(streamed(["```\nx\n```", "\nThat is it."])) == "x\n```\nThat is it."


def test_a_block_that_was_cut_is_the_code_so_far() -> None:
    """Without a closing fence nothing is taken for one."""
    assert "".join(streamed(["```py\nx = 1\n", "y ="])) == "x = 1\ny ="
