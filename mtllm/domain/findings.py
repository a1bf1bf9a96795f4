"""Findings: the suspicious things that the security log records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One suspicious thing: its kind (`path_traversal`), how grave it is, and a redacted bounded excerpt."""

    kind: str
    severity: Severity
    evidence: str
