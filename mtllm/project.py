"""Where the project's own files are: in a checkout beside the package, in an installed package inside it."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = _PACKAGE / "shipped"  # only an installed package has it (pyproject.toml)

PROJECT = Path.cwd() if _SHIPPED.is_dir() else _PACKAGE.parent
"""The folder that relative settings and `.env` are relative to: the checkout, else the working directory."""


def project_path(relative: str | Path) -> Path:
    """Return the place of a file or folder of the project; a file that only ships with the package is found there."""
    own = PROJECT / relative
    shipped = _SHIPPED / relative
    return shipped if _SHIPPED.is_dir() and shipped.exists() and not own.exists() else own


def require_packages() -> None:
    """End the process with status 2, and the command that helps, where a package of requirements.txt is not installed.

    Lines that hold for some versions of Python alone are left to pip. Without the file there is nothing to compare.
    """
    file = PROJECT / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [found[0] for line in lines if ";" not in line and (found := re.match(r"[\w-]+", line))]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        told = f"Not installed: {', '.join(missing)}. Install what is needed with: pip install -r {file}"
        print(told, file=sys.stderr)
        raise SystemExit(2)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
