"""The words: names of tests that read alone, docstrings that say one thing first, sentences that end in time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtllm.project import PROJECT

MOST_WORDS = 35
"""Words of the longest sentence in README and docs; code in backticks counts as one."""
LONGEST_FIRST_LINE = 120
TESTS = (*sorted((PROJECT / "tests").rglob("test_*.py")), PROJECT / "test_unit.py")
PRODUCT = (*sorted((PROJECT / "mtllm").rglob("*.py")), *sorted(PROJECT.glob("*.py")))
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))

LEANS_ON_ITS_NEIGHBOUR = re.compile(r"test_(it|its|so|nor|they|their|also|and|or|but|that|this|these)_")
RELATIVE_CLAUSE = re.compile(r"(What|Whether|How|Why|When|Where|Which|Who|Did|Does|Is|Are)\b")


def functions_of(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def documented_in(file: Path) -> Iterator[tuple[str, str]]:
    """Each name with the first line of its docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documentation = ast.get_docstring(node)
            if documentation:
                yield getattr(node, "name", "module"), documentation.splitlines()[0]


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of a page, without its tables and blocks of code."""
    prose = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)|\n(?=#)", prose):
        told = " ".join(line for line in paragraph.splitlines() if not line.lstrip().startswith("|"))
        told = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "Code", told))
        yield from re.split(r"(?<=[.!?])[*)]*\s+(?=[A-Z0-9*(])", told)


def count_words(sentence: str) -> int:
    return sum(1 for word in sentence.split() if re.search(r"\w", word))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_names_of_tests_read_alone_in_a_list_of_failures(file: Path) -> None:
    """A name that begins with it, so or nor says nothing without the test above it."""
    names = [function.name for function in functions_of(file)]
    assert [name for name in names if LEANS_ON_ITS_NEIGHBOUR.match(name)] == []


@pytest.mark.parametrize("file", PRODUCT, ids=lambda file: str(file.relative_to(PROJECT)))
def test_first_lines_of_docstrings_are_short_sentences(file: Path) -> None:
    """One line that ends."""
    odd = [
        (name, line) for name, line in documented_in(file) if len(line) > LONGEST_FIRST_LINE or line[-1] not in ".):"
    ]
    assert odd == []


@pytest.mark.parametrize("file", PRODUCT, ids=lambda file: str(file.relative_to(PROJECT)))
def test_docstrings_of_functions_begin_with_what_they_do_or_return(file: Path) -> None:
    """A bare clause, or a question, leaves open whether that is returned, raised or meant."""
    lines = [(function.name, (ast.get_docstring(function) or "").splitlines()) for function in functions_of(file)]
    assert [(name, told[0]) for name, told in lines if told and RELATIVE_CLAUSE.match(told[0])] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_of_the_docs_end_within_35_words(page: Path) -> None:
    """For readers who are not from here."""
    told = sentences_of(page.read_text(encoding="utf-8"))
    assert [sentence for sentence in told if count_words(sentence) > MOST_WORDS] == []


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("One two. Three four five.", 3),
        ("| a table | of | words |", 0),
        ("- `a b c` d\n- e", 2),
        ("**One.** Two (three).", 2),
    ],
)
def test_a_sentence_ends_at_its_stop_and_code_is_one_word(text: str, longest: int) -> None:
    """The counting itself."""
    assert max(map(count_words, sentences_of(text))) == longest
