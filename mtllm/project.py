"""Where the project's own files are: in a checkout beside the package, in an installed package inside it."""

from __future__ import annotations

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
