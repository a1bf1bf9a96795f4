"""The formats of the export over HTTP: each with its media type and its writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mtllm.billing.export import EXPORTERS
from mtllm.ledger.ledger import ExportRow

FORMATS: dict[str, tuple[str, Callable[[Iterable[ExportRow]], Iterator[str]]]] = {
    "csv": ("text/csv", EXPORTERS["csv"]),
    "jsonl": ("application/x-ndjson", EXPORTERS["jsonl"]),
}
