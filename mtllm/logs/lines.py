"""The lines of the log files: what each says about an event."""

from __future__ import annotations

import errno
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring_ascii as quote
from math import isfinite
from pathlib import Path
from secrets import token_bytes
from traceback import walk_tb
from typing import Final, Literal

from mtllm.domain.completion import StoredAnswer
from mtllm.domain.events import Fact, Notice, RequestEvent
from mtllm.domain.money import exact_usd
from mtllm.domain.times import rfc3339_milliseconds
from mtllm.security.redaction import Redactor

PromptLogging = Literal["off", "preview", "full"]

REQUESTS: Final = "api_requests.log"
PERFORMANCE: Final = "performance.log"
COSTS: Final = "cost_tracking.log"
ERRORS: Final = "api_errors.log"
SECURITY: Final = "security_audit.log"

# Bounds of one string in a line, in bytes as encoded. No line is longer than 8 KiB, save one with LOG_PROMPTS=full.
NAME_BYTES: Final = 256
TEXT_BYTES: Final = 1024
FAULT_BYTES: Final = 3072
FULL_PROMPT_BYTES: Final = 32 * 1024
PREVIEW_CHARS: Final = 100

_PLAIN_ID: Final = re.compile("[0-9a-f-]{1,40}", re.ASCII)  # a UUID or a trace id

MAX_FINDINGS: Final = 16
MAX_FACTS: Final = 16
MAX_FRAMES: Final = 12
MAX_CAUSES: Final = 4


class Lines:
    """Writes what each file says about an event. Safe to call from any thread.

    JSON is made by hand from parts, since dictionaries cost three times as much. Text from outside is redacted and
    bounded; what repeats from request to request (paths, user agents, names) is made once.
    """

    def __init__(
        self,
        prompts: PromptLogging = "off",
        slow_request_seconds: float = 5.0,
        secrets: tuple[str, ...] = (),
        prompt_key: bytes | None = None,
    ) -> None:
        self._prompts = prompts
        self._slow = slow_request_seconds
        self._redactor = Redactor(secrets)
        self._kept = TEXT_BYTES + self._redactor.margin + 1
        self._prompt_key = prompt_key or token_bytes(32)
        self._name: Callable[[str | None], str] = lru_cache(1024)(lambda text: self._redactor.show(text, NAME_BYTES))
        self._text: Callable[[str | None], str] = lru_cache(1024)(lambda text: self._redactor.show(text, TEXT_BYTES))

    def of(self, event: RequestEvent | Notice) -> list[tuple[str, str]]:
        """Return pairs of file name and line."""
        if isinstance(event, Notice):
            return [(ERRORS, self._notice(event))]
        head = self._head(event)
        lines = [(REQUESTS, self._request(event, head)), (PERFORMANCE, self._performance(event, head))]
        if event.cached is not None or event.amount.cost.total:
            lines.append((COSTS, self._cost(event, head)))
        if event.is_error:
            lines.append((ERRORS, self._error(event, head)))
        if event.findings or event.status in (401, 403):
            lines.extend((SECURITY, line) for line in self._security(event, head))
        return lines

    def cost(self, event: RequestEvent) -> str:
        """Return the line of the cost log about one completion."""
        return self._cost(event, self._head(event))

    def _head(self, event: RequestEvent) -> str:
        """Return the beginning of every line about a request."""
        trace = f',"trace_id":{self._id(event.trace_id)}' if event.trace_id else ""
        return (
            f'{{"timestamp":"{rfc3339_milliseconds(event.timestamp)}","request_id":{self._id(event.request_id)}'
            f',"client":{self._name(event.client)}{trace},"method":{self._name(event.method[: self._kept])}'
            f',"path":{self._text(event.path[: self._kept])},"status":{event.status},"task":{self._name(event.task)}'
            f',"model":{self._name(event.model)},"cached":{_flag(event.cached)}'
            f',"duration_ms":{event.duration * 1e3:.3f}'
        )

    def _request(self, event: RequestEvent, head: str) -> str:
        agent = event.user_agent and event.user_agent[: self._kept]
        return (
            f'{head},"code":{self._name(event.code)},"request_bytes":{event.request_bytes}'
            f',"response_bytes":{event.response_bytes},"user_agent":{self._text(agent)}{self._words(event)}}}\n'
        )

    def _performance(self, event: RequestEvent, head: str) -> str:
        own = max(0.0, event.duration - event.queue_seconds - event.upstream_seconds)
        speed = event.amount.usage.output / event.upstream_seconds if event.upstream_seconds > 0 else 0.0
        return (
            f'{head},"queue_ms":{event.queue_seconds * 1e3:.3f},"upstream_ms":{event.upstream_seconds * 1e3:.3f}'
            f',"app_ms":{own * 1e3:.3f},"attempts":{event.attempts},"output_tokens_per_second":{speed:.1f}'
            f',"slow":{_flag(event.duration >= self._slow)}}}\n'
        )

    def _cost(self, event: RequestEvent, head: str) -> str:
        usage, cost = event.amount.usage, event.amount.cost
        fallback = ""
        if event.fallback is not None:
            fallback = f',"requested_model":{self._name(event.requested_model)},"fallback":"{event.fallback.value}"'
        return (
            f'{head}{fallback},"input_tokens":{usage.input},"output_tokens":{usage.output}'
            f',"input_cost":{_dollars(cost.input)},"output_cost":{_dollars(cost.output)}'
            f',"total_cost":{_dollars(cost.total)},"saved":{_dollars(event.saved)}}}\n'
        )

    def _error(self, event: RequestEvent, head: str) -> str:
        fault = self._redactor.show(traceback_of(event.fault, with_messages=self._prompts != "off"), FAULT_BYTES)
        note = self._redactor.show(event.note, TEXT_BYTES)
        code = self._name(event.code)
        upstream = ",".join(self._name(word) for word in event.upstream)
        details = (f"{'(not shown)' if bad.foreign else bad.field}: {bad.message}" for bad in event.details)
        fields = ",".join(self._redactor.show(detail, TEXT_BYTES) for detail in details)
        return (
            f'{head},"code":{code},"attempts":{event.attempts},"note":{note},"upstream":[{upstream}]'
            f',"details":[{fields}],"fault":{fault}}}\n'
        )

    def _security(self, event: RequestEvent, head: str) -> Iterator[str]:
        for found in event.findings[:MAX_FINDINGS]:
            yield self._finding(head, found.kind, found.severity, found.evidence)
        if event.status in (401, 403):
            kind, severity = ("unauthorized", "low") if event.status == 401 else ("forbidden", "medium")
            yield self._finding(head, kind, severity, event.note or "")

    def _finding(self, head: str, kind: str, severity: str, evidence: str) -> str:
        shown = self._redactor.show(evidence, TEXT_BYTES)
        return f'{head},"kind":{self._name(kind)},"severity":{self._name(severity)},"evidence":{shown}}}\n'

    def _notice(self, notice: Notice) -> str:
        facts = "".join(f",{quote(name)}:{self._fact(value)}" for name, value in notice.facts[:MAX_FACTS])
        message = self._redactor.show(notice.message, TEXT_BYTES)
        return (
            f'{{"timestamp":"{rfc3339_milliseconds(notice.timestamp)}","request_id":null,"client":null'
            f',"event":{self._name(notice.event)},"message":{message}{facts}}}\n'
        )

    def _fact(self, value: Fact) -> str:
        if value is None or isinstance(value, bool):
            return _flag(value)
        return self._redactor.show(value, NAME_BYTES) if isinstance(value, str) else _number(value)

    def _id(self, text: str) -> str:
        if _PLAIN_ID.fullmatch(text):  # nothing to hide and nothing to escape
            return f'"{text}"'
        return self._redactor.show(text, NAME_BYTES)

    def _words(self, event: RequestEvent) -> str:
        """Return length and keyed hash of the prompt, and of the words themselves what LOG_PROMPTS allows."""
        prompt, answer = event.prompt, event.answer
        if prompt is None:
            return ""
        if isinstance(answer, StoredAnswer):  # its length is the response's, so it is read only to be shown
            answer = None if self._prompts == "off" else answer.text
        digest = blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=12, key=self._prompt_key).hexdigest()
        measured = f',"prompt_chars":{len(prompt)},"prompt_hash":"{digest}"'
        if answer is not None:
            measured += f',"answer_chars":{len(answer)}'
        if self._prompts == "off":
            return measured
        return f'{measured},"prompt":{self._excerpt(prompt)},"answer":{self._excerpt(answer)}'

    def _excerpt(self, words: str | None) -> str:
        if self._prompts == "full" or words is None:
            return self._redactor.show(words, FULL_PROMPT_BYTES)
        return self._redactor.show(words, TEXT_BYTES, chars=PREVIEW_CHARS)


_FLAGS: Final = {None: "null", True: "true", False: "false"}


def _flag(value: bool | None) -> str:
    return _FLAGS[value]


def _dollars(nanodollars: int) -> str:
    """Return a JSON number, exact to the nano-dollar."""
    return exact_usd(nanodollars) if nanodollars else "0"


def _number(value: float) -> str:
    return repr(value) if isfinite(value) else f'"{value}"'  # JSON has no infinity


def traceback_of(error: BaseException | None, *, with_messages: bool) -> str | None:
    """Return an error, where it was raised, and its causes; the innermost frame comes first.

    For example `KeyError at service.py:40 complete, app.py:12 view; caused by OSError ENOSPC at ...`. An exception's
    message may quote the prompt or Gemini, so it is shown only where LOG_PROMPTS lets words be seen.
    """
    descriptions: list[str] = []
    while error is not None and len(descriptions) < MAX_CAUSES:
        descriptions.append(_describe(error, with_message=with_messages))
        error = error.__cause__ or error.__context__
    return "; caused by ".join(descriptions) or None


def _describe(error: BaseException, *, with_message: bool) -> str:
    innermost = deque(walk_tb(error.__traceback__), maxlen=MAX_FRAMES)
    frames = [f"{Path(f.f_code.co_filename).name}:{line} {f.f_code.co_name}" for f, line in reversed(innermost)]
    name = " ".join(filter(None, (type(error).__qualname__, error_name(error))))
    message = f" ({error})" if with_message else ""
    return f"{name}{message} at {', '.join(frames) or 'unknown'}"


def error_name(error: BaseException) -> str | None:
    """Return the name of an OSError's number, such as `ENOSPC`; None for others."""
    return errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
