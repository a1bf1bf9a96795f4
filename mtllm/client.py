"""A typed client of the service, plain and asynchronous; it needs httpx and nothing else of this package.

Money is in nano-dollars (10**-9 $). Errors are `Refused` (the service's answer, by its `code`) and `Unreachable`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

__all__ = ["AsyncClient", "Client", "ClientError", "Refused", "Reply", "TokenCount", "Unreachable"]

TEXT, CODE, CLASSIFY = "generate/text", "generate/code", "classify/text"
LOCAL = "http://127.0.0.1:5000"
_ANSWERS = ("generated_text", "generated_code", "classification")
_WORTH_WAITING = {"rate_limited", "overloaded", "draining", "ledger_unavailable", "upstream_unavailable"}
"""The codes after which the same request may be served later. A budget or a missing key is not mended by seconds."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one answer; `source` says who counted them: `gemini` or `tiktoken`."""

    input_tokens: int
    output_tokens: int
    source: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its text, the model that wrote it and what it cost in nano-dollars (0 when `cached`)."""

    text: str
    model: str
    usage: TokenCount
    cost: int
    cached: bool
    request_id: str
    finish_reason: str


class ClientError(Exception):
    """A request got no answer; the message says why."""


class Unreachable(ClientError):
    """The service did not answer: it is not there, or the connection broke."""


class Refused(ClientError):
    """The service answered with an error. `code` is its constant; `retry_after` is in seconds, if it said so."""

    def __init__(
        self, message: str, code: str, status: int, request_id: str, cost: int, retry_after: int | None
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.request_id = code, status, request_id
        self.cost, self.retry_after = cost, retry_after


class _Patience:
    """Decides how long one call waits before it is sent again; all waits together fit in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._left, self._pause = seconds, 0.5

    def wait_after(self, error: ClientError) -> float:
        """Return the seconds to wait. Raises `error` where waiting does not help or takes too long."""
        wait = self._pause
        if isinstance(error, Refused):
            if error.code not in _WORTH_WAITING:
                raise error
            wait = error.retry_after if error.retry_after is not None else wait
        elif not isinstance(error.__cause__, httpx.ConnectError):
            raise error  # the request may have been bought: only the caller knows whether to send it again
        if wait > self._left:
            raise error
        self._left, self._pause = self._left - wait, min(self._pause * 2, 8)
        return wait


class _Calls:
    """What both clients share: how a call is written, how its answer is read, and what the session cost."""

    def __init__(self, url: str, key: str | None, patience: float) -> None:
        self._url, self._key, self.patience = url.rstrip("/"), key, patience
        self._adding, self.spent = threading.Lock(), 0
        """Nano-dollars of all answers and billed errors of this session."""

    def _spend(self, cost: int) -> None:
        with self._adding:
            self.spent += cost

    def _request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        given = {name: value for name, value in body.items() if value is not None}
        return {"url": f"{self._url}/api/v1/{path}", "content": json.dumps(given).encode(), "headers": headers}

    def _read(self, response: httpx.Response) -> Reply:
        """Return the answer of a complete response. Raises Refused."""
        body, cost = self._checked(response), _number(response.headers, "X-Cost-Nanodollars") or 0
        self._spend(cost)
        return _reply(body, response.headers, cost)

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code == 200 and isinstance(body, dict):
            return body
        error = _refusal(body if isinstance(body, dict) else {}, response)
        self._spend(error.cost)
        raise error

    def _event(self, event: str, data: dict[str, Any], response: httpx.Response) -> str | Reply:
        """Return what an event of a stream says: a piece of text, or the whole answer at its end. Raises Refused."""
        if event == "error":
            raise _refusal(data, response)
        if event != "done":
            return str(data["delta"])
        cost = int(data["cost"]["nanodollars"])
        self._spend(cost)
        return _reply(data, response.headers, cost)


def _reply(body: Mapping[str, Any], headers: httpx.Headers, cost: int) -> Reply:
    usage = body["usage"]
    return Reply(
        text=next(body[name] for name in _ANSWERS if name in body),
        model=body.get("model") or headers.get("X-Model", ""),
        usage=TokenCount(usage["input_tokens"], usage["output_tokens"], usage["source"]),
        cost=cost,
        cached=headers.get("X-Cached") == "true",
        request_id=headers.get("X-Request-ID", ""),
        finish_reason=body["finish_reason"],
    )


def _refusal(body: Mapping[str, Any], response: httpx.Response) -> Refused:
    fields = [f"{part['field']}: {part['message']}" for part in body.get("details", []) if "field" in part]
    said = body.get("error", f"the answer is not this service's (status {response.status_code})")
    return Refused(
        " ".join([said, *fields]),
        code=body.get("code", "not_this_service"),
        status=response.status_code,
        request_id=response.headers.get("X-Request-ID", ""),
        cost=_number(response.headers, "X-Cost-Nanodollars") or 0,
        retry_after=_number(response.headers, "Retry-After"),
    )


def _number(headers: httpx.Headers, name: str) -> int | None:
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None


def _unreachable(error: httpx.TransportError) -> Unreachable:
    told = Unreachable(f"The service did not answer ({type(error).__name__}). Does it run at this address?")
    told.__cause__ = error
    return told


class _Events:
    """Cuts a stream into its events. Lines end at a line feed only: answers may hold other line separators."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each complete event as its name ("" for a piece of text) and its data."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
            if b"data" in fields:
                yield fields.get(b"event", b"").decode(), json.loads(fields[b"data"])


class Client(_Calls):
    """The service as plain calls, by several threads at once if need be.

    `key` is one of the service's API keys, if it has any; `patience` bounds all waits of one call, in seconds.
    """

    def __init__(
        self,
        url: str = LOCAL,
        *,
        key: str | None = None,
        patience: float = 60,
        timeout: float = 90,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, key, patience)
        self._http, self._sleep = httpx.Client(timeout=timeout), sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._http.close()

    def generate_text(self, prompt: str, **options: Any) -> Reply:
        """Return the model's answer; `options` are the endpoint's fields, such as temperature. Raises ClientError."""
        return self._ask(TEXT, {"prompt": prompt, **options})

    def generate_code(self, prompt: str, language: str | None = None, **options: Any) -> Reply:
        """Return code that does what `prompt` describes. Raises ClientError."""
        return self._ask(CODE, {"prompt": prompt, "language": language, **options})

    def classify_text(self, text: str, categories: Sequence[str]) -> Reply:
        """Return the one of `categories` that fits the text. Raises ClientError."""
        return self._ask(CLASSIFY, {"text": text, "categories": list(categories)})

    def stream_text(self, prompt: str, **options: Any) -> Iterator[str | Reply]:
        """Yield the answer's pieces as they come, then the whole `Reply`. Nothing is sent twice. Raises ClientError."""
        events = _Events()
        try:
            with self._http.stream(
                "POST", **self._request(TEXT, {"prompt": prompt, "stream": True, **options})
            ) as told:
                if told.status_code != 200:
                    told.read()
                    self._checked(told)
                for data in told.iter_bytes():
                    for event, said in events.feed(data):
                        yield self._event(event, said, told)
        except httpx.TransportError as error:
            raise _unreachable(error) from error

    def _ask(self, path: str, body: Mapping[str, Any]) -> Reply:
        request, patience = self._request(path, body), _Patience(self.patience)
        while True:
            try:
                return self._read(self._http.post(**request))
            except httpx.TransportError as error:
                self._sleep(patience.wait_after(_unreachable(error)))
            except Refused as error:
                self._sleep(patience.wait_after(error))


class AsyncClient(_Calls):
    """The same as `Client`, for asyncio."""

    def __init__(self, url: str = LOCAL, *, key: str | None = None, patience: float = 60, timeout: float = 90) -> None:
        super().__init__(url, key, patience)
        self._http = httpx.AsyncClient(timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._http.aclose()

    async def generate_text(self, prompt: str, **options: Any) -> Reply:
        """Return the model's answer. Raises ClientError."""
        return await self._ask(TEXT, {"prompt": prompt, **options})

    async def generate_code(self, prompt: str, language: str | None = None, **options: Any) -> Reply:
        """Return code that does what `prompt` describes. Raises ClientError."""
        return await self._ask(CODE, {"prompt": prompt, "language": language, **options})

    async def classify_text(self, text: str, categories: Sequence[str]) -> Reply:
        """Return the one of `categories` that fits the text. Raises ClientError."""
        return await self._ask(CLASSIFY, {"text": text, "categories": list(categories)})

    async def stream_text(self, prompt: str, **options: Any) -> AsyncIterator[str | Reply]:
        """Yield the answer's pieces as they come, then the whole `Reply`. Raises ClientError."""
        events, request = _Events(), self._request(TEXT, {"prompt": prompt, "stream": True, **options})
        try:
            async with self._http.stream("POST", **request) as told:
                if told.status_code != 200:
                    await told.aread()
                    self._checked(told)
                async for data in told.aiter_bytes():
                    for event, said in events.feed(data):
                        yield self._event(event, said, told)
        except httpx.TransportError as error:
            raise _unreachable(error) from error

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Reply:
        request, patience = self._request(path, body), _Patience(self.patience)
        while True:
            try:
                return self._read(await self._http.post(**request))
            except httpx.TransportError as error:
                await asyncio.sleep(patience.wait_after(_unreachable(error)))
            except Refused as error:
                await asyncio.sleep(patience.wait_after(error))
