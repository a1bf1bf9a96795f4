"""The map of the house names rooms, files and functions that are there."""

from __future__ import annotations

import ast
import re

import pytest

from mtllm.project import PROJECT

ARCHITECTURE = (PROJECT / "docs" / "architecture.md").read_text()
GLOSSARY = (PROJECT / "docs" / "glossary.md").read_text()
PATH = re.compile(r"`((?:mtllm/[a-z_/]*|[a-z_]+\.py)[a-z_.]*)`")


@pytest.mark.parametrize("document", [ARCHITECTURE, GLOSSARY], ids=["architecture", "glossary"])
def test_every_file_that_is_named_is_there(document: str) -> None:
    """Front doors and whatever is in mtllm/."""
    named = set(PATH.findall(document))
    assert len(named) > 20
    assert {path for path in named if not (PROJECT / path).exists()} == set()


def test_every_package_is_on_the_map() -> None:
    """A newcomer finds each room in the table."""
    packages = {f"mtllm/{init.parent.name}/" for init in (PROJECT / "mtllm").glob("*/__init__.py")}
    assert packages - set(PATH.findall(ARCHITECTURE)) == set()


def test_every_module_of_a_room_that_is_named_beside_it_is_there() -> None:
    """`retry` in the row of mtllm/resilience/ is mtllm/resilience/retry.py, or a file beside it."""
    missing = []
    for row in re.findall(r"^\| (.*`mtllm/[a-z_]+/`.*?) \| (.*) \|$", ARCHITECTURE, re.MULTILINE):
        [room] = re.findall(r"`(mtllm/[a-z_]+/)`", row[0])
        paths = [f"{room}{name}.py" for name in re.findall(r"`([a-z_]+)`", row[1])]
        missing += [path for path in paths if not (PROJECT / path).exists()]
    assert missing == []


def test_every_function_of_the_walk_is_where_it_says() -> None:
    """`file`: `Class.method` or `function`."""
    steps = re.findall(r"`([a-z_/]+\.py)`:\s+`([A-Za-z_.]+)`", ARCHITECTURE)
    assert len(steps) > 5
    assert [step for step in steps if step[1] not in _defined_in(step[0])] == []


def _defined_in(path: str) -> set[str]:
    names = set()
    for node in ast.parse((PROJECT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names
