"""Offline mode: a local server that speaks Gemini's REST protocol and gives canned answers that say so.

    Emulator             the server: start, url, close
    Call                 what one HTTP request asks
    Reply                what goes back, as the bytes of one HTTP response
    canned               Call -> Reply: the answers of the offline model, the same for the same call

Spoken are generateContent, streamGenerateContent (server-sent events with `alt=sse`, else a JSON array sent element by
element), countTokens and the list of models, with Google's error JSON. An `Emulator` with another `answer` misbehaves
as a test wants it to. The shapes follow https://ai.google.dev/api/generate-content.

`python -m mtllm.emulator --port 9100` serves by itself, for development and benchmarks.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from http import HTTPStatus
from threading import Event, Lock, Thread, current_thread
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import parse_qs, unquote, urlsplit

OFFLINE_MODEL = "offline-gemini"

_MAX_LINE_BYTES = 65_536
_BACKLOG = 512
_JSON = "application/json; charset=UTF-8"
_PATH = re.compile(r"/v1(?:beta)?/models(?:/(?P<model>[^/:]+)(?::(?P<action>\w+))?)?")
_GENERATING = ("generateContent", "streamGenerateContent", "countTokens")
# In the order of their numbers in Google's protocol buffers, where 0 is "unspecified".
_FINISH_REASONS = (
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
)  # fmt: skip
_BLOCK_REASONS = ("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to Gemini's API."""

    method: str
    """generateContent, streamGenerateContent, countTokens, listModels, getModel, or empty for an unknown path."""
    model: str
    key: str | None
    """From the header `x-goog-api-key` or the query; None when neither is there."""
    prompt: str
    system: str
    labels: tuple[str, ...]
    """The values of an enum schema; the answer must be one of them."""
    max_output_tokens: int | None
    temperature: float | None
    sse: bool
    """A stream is wanted as server-sent events, not as a JSON array."""
    numeric_enums: bool
    """Enum values are wanted as their numbers (`$alt=json;enum-encoding=int`, as Google's own SDK asks)."""
    headers: Mapping[str, str]
    """Names in lower case."""
    raw: bytes
    """The body as it came."""

    @property
    def streams(self) -> bool:
        """Is the answer wanted in pieces."""
        return self.method == "streamGenerateContent"

    @property
    def generates(self) -> bool:
        """Is an answer wanted, and not a count or a list."""
        return self.method in ("generateContent", "streamGenerateContent")


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes of one HTTP response, head included; each piece is sent by one write when the iterable yields it.

    An OSError out of the iterable ends the connection there; `closes` ends it after the last piece.
    """

    pieces: Iterable[bytes]
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as Gemini reports them: `prompt` includes `cached`, `candidates` excludes `thoughts`."""

    prompt: int = 0
    candidates: int = 0
    thoughts: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        """What Gemini bills for: input, output and thinking."""
        return self.prompt + self.candidates + self.thoughts

    def metadata(self) -> dict[str, int]:
        """`usageMetadata`; Gemini leaves zeros out."""
        counts = {
            "promptTokenCount": self.prompt,
            "candidatesTokenCount": self.candidates,
            "thoughtsTokenCount": self.thoughts,
            "cachedContentTokenCount": self.cached,
            "totalTokenCount": self.total,
        }
        return {name: count for name, count in counts.items() if count}


class Emulator:
    """A server on the loopback that answers every call by `answer`, on one thread per connection.

    `port` 0 takes a free one. `start` raises OSError when the port is taken. `close` ends open connections and returns
    when the server's threads have ended. A closed emulator does not start again.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, answer: Callable[[Call], Reply] | None = None
    ) -> None:
        self._host = host
        self._port = port
        self._answer = answer or canned
        self._listener: socket.socket | None = None
        self._acceptor: Thread | None = None
        self._open: dict[Thread, socket.socket] = {}
        self._lock = Lock()
        self.closing = Event()
        """Set when the server is to end; an `answer` that waits must not wait past it."""

    @property
    def url(self) -> str:
        """Where it serves, such as http://127.0.0.1:9100; known once started."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> Self:
        """Listen, and serve from a thread."""
        self._listener = socket.create_server((self._host, self._port), backlog=_BACKLOG)
        self._port = self._listener.getsockname()[1]
        self._acceptor = Thread(target=self._accept, args=(self._listener,), name="gemini-emulator", daemon=True)
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Stop serving; harmless when it is not."""
        self.closing.set()
        if self._listener is None or self._acceptor is None:
            return
        with suppress(OSError):  # accept() is woken by a connection: closing its socket would not do it
            socket.create_connection((self._host, self._port), timeout=1).close()
        self._acceptor.join()
        self._listener.close()
        self._listener = None
        self._end_conversations()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # a client that left early, or no descriptor free: both pass
                self.closing.wait(0.05)
                continue
            if self.closing.is_set():
                connection.close()
                return
            self._converse_apart(connection)

    def _converse_apart(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = Thread(target=self._converse, args=(connection,), name="gemini-emulator-connection", daemon=True)
        with self._lock:
            self._open[thread] = connection
        thread.start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream, suppress(OSError):
                self._serve(connection, stream)
        finally:
            with self._lock:
                del self._open[current_thread()]

    def _serve(self, connection: socket.socket, stream: BinaryIO) -> None:
        closes = False
        while not closes:
            try:
                call = _read_call(stream)
            except ValueError:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if call is None:
                return
            reply = self._answer(call)
            for piece in reply.pieces:
                connection.sendall(piece)
            closes = reply.closes or call.headers.get("connection", "").lower() == "close"

    def _end_conversations(self) -> None:
        with self._lock:
            conversations = list(self._open.items())
        for _, connection in conversations:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in conversations:
            thread.join()


def _read_call(stream: BinaryIO) -> Call | None:
    """The next call, None when the client has left; raises ValueError for what is not HTTP."""
    line = stream.readline(_MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        return None
    verb, target, _version = line.decode("latin-1").split()
    headers = dict(_header_lines(stream))
    length = int(headers.get("content-length", 0))
    body = stream.read(length)
    return _parsed(verb, target, headers, body) if len(body) == length else None


def _header_lines(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    while (line := stream.readline(_MAX_LINE_BYTES).strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        yield name.lower(), value.strip()


def _parsed(verb: str, target: str, headers: Mapping[str, str], raw: bytes) -> Call:
    url = urlsplit(target)
    query = parse_qs(url.query)
    place = _PATH.fullmatch(unquote(url.path))
    alt = query.get("alt", query.get("$alt", [""]))[0]
    asked = _asked(raw)
    config = _mapping(asked.get("generationConfig"))
    limit, temperature = config.get("maxOutputTokens"), config.get("temperature")
    return Call(
        method=_method(verb, place) if place else "",
        model=(place["model"] or "") if place else "",
        key=headers.get("x-goog-api-key") or "".join(query.get("key", ())) or None,
        prompt="\n".join(_texts(asked.get("contents"))),
        system="\n".join(_texts([asked.get("systemInstruction")])),
        labels=tuple(map(str, _items(_mapping(config.get("responseSchema")).get("enum")))),
        max_output_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        temperature=temperature if isinstance(temperature, int | float) else None,
        sse=alt == "sse",
        numeric_enums="enum-encoding=int" in alt,
        headers=headers,
        raw=raw,
    )


def _method(verb: str, place: re.Match[str]) -> str:
    if verb == "POST":
        return place["action"] if place["action"] in _GENERATING else ""
    if verb != "GET" or place["action"]:
        return ""
    return "getModel" if place["model"] else "listModels"


def _asked(raw: bytes) -> Mapping[str, Any]:
    try:
        body = _mapping(json.loads(raw)) if raw else {}
    except (ValueError, RecursionError):
        return {}  # no contents: answered as Google answers an empty request
    return _mapping(body.get("generateContentRequest", body))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _texts(contents: Any) -> Iterator[str]:
    for content in _items(contents):
        for part in _items(_mapping(content).get("parts")):
            yield str(_mapping(part).get("text", ""))


def http_response(status: int, content_type: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 response of known length."""
    return b"%s\r\nContent-Length: %d\r\n\r\n%s" % (_head(status, content_type), len(body), body)


def _head(status: int, content_type: str) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}".encode()


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON; what UTF-8 cannot say is replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_reply(payload: Any, status: int = 200) -> Reply:
    """One JSON document, in one write."""
    return Reply((http_response(status, _JSON, json_bytes(payload)),))


def answered(call: Call, payloads: Iterable[Any]) -> Reply:
    """The payloads in the form the call asks for: the stream of all of them, or the first one as a plain document."""
    if not call.streams:
        return json_reply(next(iter(payloads)))
    return Reply(_event_stream(payloads) if call.sse else _array_stream(payloads))


def _event_stream(payloads: Iterable[Any]) -> Iterator[bytes]:
    yield _head(200, "text/event-stream") + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    for payload in payloads:
        yield _chunk(b"data: %s\r\n\r\n" % json_bytes(payload))
    yield b"0\r\n\r\n"


def _array_stream(payloads: Iterable[Any]) -> Iterator[bytes]:
    yield _head(200, _JSON) + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    before = b"["
    for payload in payloads:
        yield _chunk(before + json_bytes(payload))
        before = b"\n,\r\n"
    yield _chunk(b"\n]") + b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def candidate(call: Call, text: str, *, finish_reason: str | None = None, usage: Usage | None = None) -> dict[str, Any]:
    """A response with one candidate; without `finish_reason` a piece of a stream that goes on."""
    one: dict[str, Any] = {"content": {"parts": [{"text": text}] if text else [], "role": "model"}, "index": 0}
    if finish_reason is not None:
        one["finishReason"] = _enum(call, finish_reason, _FINISH_REASONS)
    return _response(call, usage, candidates=[one])


def blocked_prompt(call: Call, reason: str, *, usage: Usage | None = None) -> dict[str, Any]:
    """The response to a prompt that Gemini refuses: no candidates, and the prompt's tokens are reported."""
    return _response(call, usage, promptFeedback={"blockReason": _enum(call, reason, _BLOCK_REASONS)})


def _response(call: Call, usage: Usage | None, **content: Any) -> dict[str, Any]:
    if usage is not None:
        content["usageMetadata"] = usage.metadata()
    return {**content, "modelVersion": call.model, "responseId": blake2b(call.raw, digest_size=12).hexdigest()}


def _enum(call: Call, name: str, names: Sequence[str]) -> str | int:
    return names.index(name) + 1 if call.numeric_enums and name in names else name


def failure(code: int, status: str, message: str, *details: Mapping[str, Any]) -> dict[str, Any]:
    """Google's error document; `details` are typed messages such as `retry_info`."""
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": {**error, "details": list(details)} if details else error}


def failed(call: Call, error: Mapping[str, Any]) -> Reply:
    """An error document with its status; Google wraps it in an array where an array was asked for."""
    return json_reply([error] if call.streams and not call.sse else error, error["error"]["code"])


def retry_info(delay: str) -> dict[str, Any]:
    """How long to wait, such as "45.837906927s"."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota_failure(quota_id: str, model: str) -> dict[str, Any]:
    """Which quota is used up, such as GenerateRequestsPerDayPerProjectPerModel-FreeTier."""
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
    }
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def error_info(reason: str, **metadata: str) -> dict[str, Any]:
    """The machine-readable reason, such as API_KEY_INVALID."""
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com", **metadata},
    }


def token_count(text: str) -> int:
    """The emulator's measure of text: a token for every four characters begun, at least one."""
    return max(1, -(-len(text) // 4))


def prompt_tokens(call: Call) -> int:
    """What the call's input counts; the schema counts too."""
    return token_count("\n".join((call.system, call.prompt, *call.labels)).strip())


def canned(call: Call, *, chunks: int = 4) -> Reply:
    """The offline model: an answer that fits the task and says it is canned, at most `chunks` pieces when streamed."""
    refusal = _refusal(call)
    if refusal is not None:
        return failed(call, refusal)
    if call.method == "listModels":
        return json_reply({"models": [_described(OFFLINE_MODEL)]})
    if call.method == "getModel":
        return json_reply(_described(call.model))
    if call.method == "countTokens":
        return json_reply({"totalTokens": prompt_tokens(call)})
    return answered(call, _generated(call, chunks if call.streams else 1))


def _refusal(call: Call) -> dict[str, Any] | None:
    if call.key is None:
        return failure(
            403,
            "PERMISSION_DENIED",
            "Method doesn't allow unregistered callers (callers without established identity). "
            "Please use API Key or other form of API consumer identity to call this API.",
        )
    if not call.method:
        return failure(404, "NOT_FOUND", "The requested URL was not found on this server.")
    if not call.prompt and call.method not in ("listModels", "getModel"):
        return failure(400, "INVALID_ARGUMENT", "* GenerateContentRequest.contents: contents is not specified\n")
    return None


def _described(model: str) -> dict[str, Any]:
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "description": "Canned answers from a local server; no language model.",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }


def _generated(call: Call, chunks: int) -> Iterator[dict[str, Any]]:
    text, finish_reason = canned_answer(call)
    asked = prompt_tokens(call)
    size = max(1, -(-len(text) // max(1, chunks)))
    for end in range(size, max(1, len(text)) + size, size):  # an empty answer is one, too
        usage = Usage(prompt=asked, candidates=token_count(text[:end]))
        last = end >= len(text)
        yield candidate(call, text[end - size : end], finish_reason=finish_reason if last else None, usage=usage)


def canned_answer(call: Call) -> tuple[str, str]:
    """What the offline model says to this call, and why it ends: STOP, or MAX_TOKENS when the call's limit cuts it."""
    text, limit = _canned_text(call), call.max_output_tokens
    if call.labels or limit is None or token_count(text) <= limit:  # a label is never cut: it would be another answer
        return text, "STOP"
    return text[: 4 * limit], "MAX_TOKENS"


def _canned_text(call: Call) -> str:
    if call.labels:
        return _label(call.prompt, call.labels)
    if "code" in call.system.casefold():
        return _code(call)
    return (
        "This is a canned answer from the offline model: no language model read the prompt, "
        f"which has {len(call.prompt)} characters. Set GOOGLE_API_KEY and start without --offline to ask Gemini."
    )


_LANGUAGE = re.compile(r"\bcode in ([\w+#]+)", re.IGNORECASE)
_SAID = '"canned offline answer"'
_FUNCTIONS = {  # what begins a comment, and a function
    "python": ("#", f"def canned():\n    return {_SAID}"),
    "javascript": ("//", f"function canned() {{\n  return {_SAID};\n}}"),
    "typescript": ("//", f"function canned(): string {{\n  return {_SAID};\n}}"),
    "java": ("//", f"static String canned() {{\n    return {_SAID};\n}}"),
    "c": ("//", f"const char *canned(void) {{\n    return {_SAID};\n}}"),
    "c++": ("//", f"const char *canned() {{\n    return {_SAID};\n}}"),
    "c#": ("//", f"static string Canned() {{\n    return {_SAID};\n}}"),
    "go": ("//", f"func canned() string {{\n\treturn {_SAID}\n}}"),
    "rust": ("//", f"fn canned() -> &'static str {{\n    {_SAID}\n}}"),
    "ruby": ("#", f"def canned\n  {_SAID}\nend"),
    "bash": ("#", f"canned() {{\n  echo {_SAID}\n}}"),
}


def _code(call: Call) -> str:
    named = _LANGUAGE.search(call.system)
    language = named[1].lower() if named and named[1].lower() in _FUNCTIONS else "python"
    comment, function = _FUNCTIONS[language]
    told = f"{comment} Canned answer from the offline model to a description of {len(call.prompt)} characters."
    return f"```{language}\n{told}\n{function}\n```"


_FEELING = re.compile(
    r"(?P<negation>\b(?:not|never|no|hardly)\s|n't\s)?\b(?:"
    r"(?P<good>love|like|enjoy|great|good|best|nice|happy|excellent|amazing|awesome|wonderful|fantastic|perfect|brilliant|"
    r"recommend|delight|beautiful)|"
    r"(?:hate|dislike|bad|worst|poor|awful|terrible|horrible|broken|useless|angry|sad|annoy|disappoint|ugly|boring|"
    r"disgusting|fail|crash))(?:d|s|ed|es|ing|ly)?\b"
)
_LOOKS_GOOD = re.compile(r"\b(?:positive|pos|good|happy|praise|compliment|like|love|joy|favou?rable)\b")
_LOOKS_BAD = re.compile(r"\b(?:negative|neg|bad|unhappy|sad|complaint|criticism|dislike|hate|anger|unfavou?rable)\b")
_LOOKS_NEUTRAL = re.compile(r"\b(?:neutral|other|mixed|none|unknown)\b")


def _label(text: str, labels: Sequence[str]) -> str:
    """The label of the text's mood, else the one that shares most words with it, else a neutral one, else the first."""
    folded = text.casefold()
    mood = sum(-1 if bool(found["negation"]) is bool(found["good"]) else 1 for found in _FEELING.finditer(folded))
    looks = (_LOOKS_GOOD if mood > 0 else _LOOKS_BAD) if mood else None
    return (
        (looks and _looking(labels, looks)) or _closest(folded, labels) or _looking(labels, _LOOKS_NEUTRAL) or labels[0]
    )


def _looking(labels: Sequence[str], looks: re.Pattern[str]) -> str | None:
    return next((label for label in labels if looks.search(label.casefold())), None)


def _closest(folded: str, labels: Sequence[str]) -> str | None:
    words = set(re.findall(r"\w+", folded))

    def overlap(label: str) -> int:  # a label that stands in the text counts too: not all scripts put spaces
        return len(words.intersection(re.findall(r"\w+", label.casefold()))) + (label.casefold() in folded)

    best = max(labels, key=overlap)
    return best if overlap(best) else None


def _slowed(reply: Reply, seconds: float) -> Reply:
    def paced() -> Iterator[bytes]:
        for piece in reply.pieces:
            time.sleep(seconds)
            yield piece

    return Reply(paced(), reply.closes)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve canned answers until interrupted."""
    with _emulator(argv) as emulator:
        print(f"Gemini emulator (canned answers) on {emulator.url}", flush=True)
        with suppress(KeyboardInterrupt):
            emulator.closing.wait()
    return 0


def _emulator(argv: Sequence[str] | None) -> Emulator:
    parser = argparse.ArgumentParser(description="A local server that speaks Gemini's REST protocol.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100, help="0 takes a free one (default: 9100)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each piece of an answer")
    parser.add_argument("--chunks", type=int, default=4, help="pieces of a streamed answer (default: 4)")
    options = parser.parse_args(argv)
    answer = partial(canned, chunks=options.chunks)

    def slow(call: Call) -> Reply:
        return _slowed(answer(call), options.latency_ms / 1000)

    return Emulator(host=options.host, port=options.port, answer=slow if options.latency_ms else answer)
