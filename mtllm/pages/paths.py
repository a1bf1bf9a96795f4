"""Paths that several pages name."""

from __future__ import annotations

DOCUMENT_PATH = "/api/v1/openapi.json"
