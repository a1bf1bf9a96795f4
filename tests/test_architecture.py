"""The house keeps its plan: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtllm.project import PROJECT

PACKAGE = PROJECT / "mtllm"

FRONT_DOORS = {"app", "bulk", "gemini_wrapper", "cost_tracker", "enhanced_logging"}
"""The modules at the top; nothing below imports them. `lru_cache` is a leaf that the rooms may import."""

ROWS: tuple[set[str], ...] = (
    {"pages"},
    {"stats"},
    {"http", "check"},
    {"wiring"},
    {"completions"},
    {"billing", "ratelimit", "logs", "chat"},
    {"ledger", "caching", "gemini", "security", "resilience", "tasks", "settings"},
    {"domain", "parts", "redis_link", "process", "project", "env_file", "json_schema"},
)
"""The rooms of the package: each imports only what stands in a row below its own, or itself."""

ALONE = {"bulk", "client", "emulator"}
"""Rooms that import nothing of ours, but for what is written in LEANS_ON."""

LEANS_ON = {("bulk", "client")}
"""A room alone, and the one room that it imports."""

FLASK = {"pages", "stats", "http"}
"""The rooms that may know HTTP frameworks, besides app.py."""

FRAMEWORKS = {"flask", "flask_cors", "waitress", "werkzeug", "prometheus_client"}

LAZILY = {("billing", "settings"), ("http", "emulator"), ("security", "settings")}
"""Imports of entry points inside their functions that are written in no row."""


def rooms() -> list[str]:
    """Return the names of the package's rooms: folders and modules."""
    folders = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    return sorted(folders + [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")])


def files_of(room: str) -> list[Path]:
    """Return the modules of a room."""
    folder = PACKAGE / room
    return sorted(folder.glob("**/*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imports_of(file: Path) -> Iterator[str]:
    """Yield the dotted name of every import in a file, lazy ones included, those for types left out."""
    for node in _outside_type_checking(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _outside_type_checking(node)


def row_of(room: str) -> int:
    """Return the row in which a room stands."""
    return next(number for number, row in enumerate(ROWS) if room in row)


def test_every_room_stands_in_a_row() -> None:
    """A new room must be put into the plan above."""
    assert set(rooms()) == set.union(*ROWS) | ALONE


@pytest.mark.parametrize("room", rooms())
def test_imports_go_down_only(room: str) -> None:
    """A room imports only rooms in lower rows."""
    for file in files_of(room):
        for name in imports_of(file):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0] if top == "mtllm" else ""
            if other not in rooms() or other == room or (room, other) in LAZILY | LEANS_ON:
                continue
            assert room not in ALONE, f"{file.relative_to(PROJECT)} imports {name}"
            assert row_of(other) > row_of(room), f"{file.relative_to(PROJECT)} imports {name}"


@pytest.mark.parametrize("room", rooms())
def test_no_room_imports_a_front_door(room: str) -> None:
    """What the user prescribed stands on the rooms, never below them."""
    for file in files_of(room):
        assert not FRONT_DOORS & {name.split(".")[0] for name in imports_of(file)}, file.name


@pytest.mark.parametrize("room", sorted(set(rooms()) - FLASK))
def test_only_the_edge_knows_http_frameworks(room: str) -> None:
    """flask and waitress stay in app.py, http/, stats/ and pages/."""
    for file in files_of(room):
        assert not FRAMEWORKS & {name.split(".")[0] for name in imports_of(file)}, file.name


def test_there_is_no_circle_of_files() -> None:
    """No file reaches itself through its imports, those inside functions included."""
    modules = {_dotted(file): file for file in [*PACKAGE.glob("**/*.py"), *PROJECT.glob("*.py")]}
    edges = {
        name: {_module(found, modules) for found in imports_of(file)} - {None, name} for name, file in modules.items()
    }
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges, sorted(edges)


def _dotted(file: Path) -> str:
    parts = file.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(name: str, modules: dict[str, Path]) -> str | None:
    if name in modules:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in modules else None


def test_no_two_classes_share_a_name() -> None:
    """One name for one thing: a class is found by its name alone."""
    seen: dict[str, str] = {}
    for file in [*PACKAGE.glob("**/*.py"), *(PROJECT / f"{name}.py" for name in (*FRONT_DOORS, "lru_cache"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                where = str(file.relative_to(PROJECT))
                assert node.name not in seen, f"{node.name} in {seen[node.name]} and {where}"
                seen[node.name] = where


VALUES = {"http", "stats", "pages"}
"""The rooms whose functions hand each other values with names, never a dictionary of anything."""


@pytest.mark.parametrize(
    "file", [file for room in sorted(VALUES) for file in files_of(room)], ids=lambda file: file.name
)
def test_no_dictionary_of_anything_crosses_a_module(file: Path) -> None:
    """No function that another module may call returns `dict[str, Any]`, under whatever name."""
    tree = ast.parse(file.read_text())
    aliases = {"dict[str, Any]", "dict[str, object]", "dict"} | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == "dict[str, Any]"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for function in _public_functions(tree):
        returned = ast.unparse(function.returns) if function.returns else ""
        assert not any(re.search(rf"(?<![\w.]){re.escape(alias)}(?![\w\[])", returned) for alias in aliases), (
            function.name
        )


def _public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the functions of a module and the methods of its classes whose names are public."""
    for node in tree.body:
        members = [node] if not isinstance(node, ast.ClassDef) else [] if node.name.startswith("_") else node.body
        yield from (each for each in members if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"))


def test_the_top_level_stays_small() -> None:
    """The five prescribed modules, and what a person runs."""
    modules = {path.stem for path in PROJECT.glob("*.py")}
    assert modules <= FRONT_DOORS | {"lru_cache", "test_unit", "conftest", "gunicorn.conf", "bulk"}


_IMPORT_ALL = """
import os, socket, sys, threading
before = set(os.listdir("."))
def forbidden(*_): raise AssertionError("import opened a socket")
socket.socket.connect = socket.socket.bind = forbidden
opened = []
def audit(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        opened.append(args[0])
sys.addaudithook(audit)
for name in {names!r}:
    __import__(name)
assert threading.active_count() == 1, threading.enumerate()
assert not opened, opened
assert set(os.listdir(".")) == before
assert "google.generativeai" not in sys.modules and "tiktoken" not in sys.modules
"""

NEEDS_AN_EXTRA = {"mtllm.ledger.postgres"}
"""Modules that are imported only where a setting asks for them."""


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No thread, no file, no socket, and nothing heavy is loaded."""
    names = {_dotted(file) for file in PACKAGE.glob("**/*.py") if file.stem != "__main__"}
    names |= FRONT_DOORS | {"lru_cache"}
    run = subprocess.run(
        [sys.executable, "-B", "-c", _IMPORT_ALL.format(names=sorted(names - NEEDS_AN_EXTRA))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
