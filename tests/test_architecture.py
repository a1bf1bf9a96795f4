"""The house keeps its plan: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("accounting", "audit", "flow", "resilience", "stores", "upstream", "web")
MODULES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in {"conftest", "test_unit"})

MAY_IMPORT = {
    # leaves
    "errors": set(),
    "audit": set(),
    "lru_cache": set(),
    "rate_limiter": {"lru_cache"},
    "config": {"rate_limiter"},
    "gemini_emulator": set(),
    # domain
    "tasks": {"errors"},
    "resilience": {"errors"},
    "security": {"audit"},
    "enhanced_logging": {"audit"},
    # outside
    "upstream": {"errors"},
    "gemini_wrapper": {"upstream", "errors", "tasks"},
    "stores": {"errors", "lru_cache", "rate_limiter"},
    "ledger": {"stores", "errors"},
    "accounting": {"ledger", "errors", "tasks", "lru_cache"},
    "cost_tracker": {"accounting", "ledger"},
    # flow
    "flow": {"accounting", "errors", "lru_cache", "tasks"},
    "service": {"flow", "accounting", "errors", "lru_cache", "resilience", "tasks"},
}
"""What each room may import when it is imported itself; the edge (app, web) may import everything."""

LAZILY = {
    "gemini_wrapper": {"config", "resilience"},
    "accounting": {"config"},
}
"""What entry points may import besides, inside their functions."""

ONLY_THE_EDGE = {"flask", "flask_cors", "waitress", "werkzeug", "prometheus_client"}


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("**/*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def _imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """The top name of every import, and whether it happens when the module is imported."""
    at_import = set(map(id, _at_import(tree)))
    for node in ast.walk(tree):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            yield name.split(".")[0], id(node) in at_import


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_import(node)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_go_one_way(room: str) -> None:
    """Each room imports only what lies below it."""
    ours = {*MODULES, *ROOMS}
    for file in _files(room):
        for name, at_import in _imported(ast.parse(file.read_text())):
            allowed = MAY_IMPORT[room] | {room} | (set() if at_import else LAZILY.get(room, set()))
            assert name not in ours or name in allowed, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_only_the_edge_knows_http_frameworks(room: str) -> None:
    """flask and waitress stay in app.py and web/."""
    for file in _files(room):
        assert not ONLY_THE_EDGE & {name for name, _ in _imported(ast.parse(file.read_text()))}, file.name


def test_every_room_has_its_place_in_the_plan() -> None:
    """A new module or package must be put into the plan above."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert {*MODULES, *packages} == {*MAY_IMPORT, "app", "web"}


def test_the_top_level_stays_small() -> None:
    """Fewer than fifteen modules."""
    assert len(MODULES) < 15


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


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No thread, no file, no socket, and nothing heavy is loaded."""
    names = [*MODULES, *(f"{room}.{path.stem}" for room in ROOMS for path in _files(room) if path.stem != "__init__")]
    needs_psycopg = "stores.postgres"  # imported only where DATABASE_URL asks for it
    code = _IMPORT_ALL.format(names=[name for name in names if name != needs_psycopg])
    run = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
