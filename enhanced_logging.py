"""The five log files for Python callers: what `RequestLogger` is given, it writes as JSON lines, secrets masked."""

from __future__ import annotations

from mtllm.domain.events import RequestEvent
from mtllm.logs.lines import PromptLogging
from mtllm.logs.writer import FILES, LogHealth, RequestLogger
from mtllm.security.redaction import redact

__all__ = ["FILES", "LogHealth", "PromptLogging", "RequestEvent", "RequestLogger", "redact"]
