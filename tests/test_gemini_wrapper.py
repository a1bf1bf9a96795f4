"""One plain call to Gemini, at the wire: what each answer and each fault becomes, on time and in our own words."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import gemini_wrapper
from mtllm.domain.completion import Answer, FinishReason, Instruction
from mtllm.domain.errors import (
    ContentBlocked,
    InvalidRequest,
    MaxOutputTokensTooSmall,
    ModelUnavailable,
    NotConfigured,
    QuotaExhausted,
    Retry,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalidAnswer,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mtllm.domain.money import TokenUsage
from mtllm.emulator import EmulatedReply, GeminiCall
from mtllm.gemini import bodies
from mtllm.gemini import deadlines as calls
from mtllm.gemini.client import Gemini
from mtllm.settings import Settings
from tests.support.scripted_gemini import (
    PER_DAY,
    PER_MINUTE,
    ScriptedGemini,
    Step,
    after,
    blocked_prompt,
    cut,
    drip,
    empty_body,
    empty_object,
    finished,
    garbage,
    hang,
    invalid_key,
    no_candidates,
    no_usage,
    slow_headers,
    status,
    text,
    usage,
    wrong_content_type,
)

KEY = "AIza-a-key-that-nobody-may-see"
MODEL = "gemini-2.5-flash-lite"
ASK = Instruction("Say hello.", 0.7, 2048)
SHORT, SLACK = 0.3, 0.3
"""Seconds until a call that hangs is ended, and how much later than that it may return."""

Client = Callable[..., Gemini]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The SDK's import takes longer than the deadlines of these tests."""
    with Gemini(api_key=KEY, model=MODEL) as gemini:
        gemini.warm_up()


@pytest.fixture(params=["sdk", "rest"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Makes clients of a scripted Gemini, or of any URL, and closes them; through the SDK, and without it."""
    made: list[Gemini] = []

    def make(server: ScriptedGemini | str, max_connections: int = 4) -> Gemini:
        endpoint = server if isinstance(server, str) else server.url
        made.append(
            Gemini(api_key=KEY, model=MODEL, endpoint=endpoint, kind=request.param, max_connections=max_connections)
        )
        return made[-1]

    yield make
    for gemini in made:
        gemini.close()


def ask(gemini: Gemini, instruction: Instruction = ASK, *, seconds: float = 10.0) -> Answer:
    return gemini.generate(instruction, deadline=time.monotonic() + seconds)


def answer_to(client: Client, step: Step) -> Answer:
    with ScriptedGemini(step) as server:
        return ask(client(server))


def failure_of(client: Client, step: Step, *, seconds: float = 10.0) -> UpstreamFailure:
    with ScriptedGemini(step) as server, pytest.raises(UpstreamFailure) as raised:
        ask(client(server), seconds=seconds)
    assert server.count == 1
    return raised.value


# What is asked


def test_the_instruction_is_sent_as_it_is(client: Client) -> None:
    """Prompt, system instruction, temperature and limit arrive unchanged, the key in its header and not in the URL."""
    prompt = 'Ünïcode, "quotes",\nnewlines and 🎈 <|endoftext|>'
    with ScriptedGemini() as server:
        ask(client(server), Instruction(prompt, 0.25, 77, system="Be brief."))
        (call,) = server.calls
    assert (call.method, call.model, call.prompt, call.system) == ("generateContent", MODEL, prompt, "Be brief.")
    assert (call.temperature, call.max_output_tokens, call.labels) == (0.25, 77, ())
    assert call.headers["x-goog-api-key"] == KEY


def test_labels_constrain_the_answer(client: Client) -> None:
    """Labels go as an enum schema, whatever characters they have."""
    labels = ("a,b", 'with "quotes"', "new\nline", "🎈")
    with ScriptedGemini() as server:
        ask(client(server), Instruction("text", 0.0, 100, labels=labels))
        (call,) = server.calls
    assert call.labels == labels
    assert json.loads(call.raw)["generationConfig"]["responseMimeType"] == "text/x.enum"


def test_a_model_may_be_named_with_its_collection() -> None:
    """`models/x` is `x`; a slash at the end of the endpoint does no harm."""
    with ScriptedGemini() as server, Gemini(api_key=KEY, model=f"models/{MODEL}", endpoint=f"{server.url}/") as gemini:
        ask(gemini)
        assert server.calls[0].model == MODEL


# What is answered


def test_an_answer_has_text_model_and_usage(client: Client) -> None:
    """The plain case."""
    assert answer_to(client, text("Hello to you")) == Answer("Hello to you", MODEL, TokenUsage(3, 3), FinishReason.STOP)


def test_an_answer_that_speaks_of_errors_is_an_answer(client: Client) -> None:
    """Failures are told by status and structure, never by words."""
    said = '429 rate limit RESOURCE_EXHAUSTED {"error": {"code": 503}, "thought": true}'
    assert answer_to(client, text(said)).text == said


def test_thinking_is_output_and_cached_input_is_input(client: Client) -> None:
    """Output is the total less the prompt; the prompt includes its cached part."""
    counted = answer_to(client, usage("fine", thoughts=40, cached=7)).usage
    assert counted is not None
    assert counted.output == 41
    assert (counted.input, counted.cached_input) == (3 + 7, 7)


def test_no_usage_is_told(client: Client) -> None:
    """Without usageMetadata the caller has to estimate."""
    answer = answer_to(client, no_usage("fine"))
    assert (answer.text, answer.usage, answer.failure) == ("fine", None, None)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"promptTokenCount": 5, "candidatesTokenCount": 3}, TokenUsage(5, 3)),
        ({"promptTokenCount": 5, "totalTokenCount": 9, "candidatesTokenCount": 2}, TokenUsage(5, 4)),
        ({"promptTokenCount": 9, "totalTokenCount": 5, "candidatesTokenCount": 2}, TokenUsage(9, 2)),
        ({"promptTokenCount": 5, "totalTokenCount": 5}, TokenUsage(5, 0)),
        ({"promptTokenCount": 5, "totalTokenCount": 8, "cachedContentTokenCount": 99}, TokenUsage(5, 3, 5)),
        ({"promptTokenCount": -5, "candidatesTokenCount": 3}, TokenUsage(0, 3)),
    ],
)
def test_usage_with_gaps_and_contradictions(
    client: Client, metadata: dict[str, int], expected: TokenUsage | None
) -> None:
    """Missing counts are 0, a total below the prompt is no total, cached input is never more than input."""
    body = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": 1}], "usageMetadata": metadata}
    assert answer_to(client, garbage(json.dumps(body).encode())).usage == expected


def test_thoughts_are_left_out_and_parts_joined(client: Client) -> None:
    """A part marked as thought is no part of the answer."""
    parts = [{"text": "hmm", "thought": True}, {"text": "An "}, {"text": "answer", "thought": False}]
    body = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "modelVersion": "gemini-other"}
    answer = answer_to(client, garbage(json.dumps(body).encode()))
    assert (answer.text, answer.model, answer.failure) == ("An answer", "gemini-other", None)


def test_a_truncated_answer_says_so(client: Client) -> None:
    """MAX_TOKENS with text is an answer; without text it is a limit that was too small."""
    answer = answer_to(client, finished("MAX_TOKENS", "Half of"))
    assert (answer.text, answer.finish_reason, answer.failure) == ("Half of", FinishReason.MAX_TOKENS, None)
    empty = answer_to(client, finished("MAX_TOKENS", "", thoughts=100))
    assert isinstance(empty.failure, MaxOutputTokensTooSmall)
    assert empty.usage == TokenUsage(3, 100, thinking=100)


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"])
def test_a_blocked_answer_is_told_with_its_usage(client: Client, reason: str) -> None:
    """Whatever was generated before the block is no answer, and is billed."""
    answer = answer_to(client, finished(reason, "Begun but"))
    assert isinstance(answer.failure, ContentBlocked)
    assert answer.usage is not None


@pytest.mark.parametrize("reason", ["SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "JAILBREAK"])
def test_a_blocked_prompt_is_told_with_its_usage(client: Client, reason: str) -> None:
    """200 without candidates: the prompt's tokens are billed. Reasons that are new block too."""
    answer = answer_to(client, blocked_prompt(reason))
    assert isinstance(answer.failure, ContentBlocked)
    assert answer.usage == TokenUsage(3, 0)


@pytest.mark.parametrize(
    "step",
    [
        finished("STOP", ""),
        finished("STOP", " \n"),
        finished("OTHER", "Some text"),
        finished("MALFORMED_FUNCTION_CALL", "Some text"),
        finished("A_REASON_OF_NEXT_YEAR", "Some text"),
        garbage(b'{"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": 99}]}'),
        no_candidates(),
        empty_object(),
    ],
)
def test_an_answer_not_known_to_be_whole_is_no_answer(client: Client, step: Step) -> None:
    """Empty, ended for another reason, or for one that nobody knows yet."""
    assert isinstance(answer_to(client, step).failure, UpstreamInvalidAnswer)


# Errors in Gemini's way


@pytest.mark.parametrize(
    ("step", "error", "retry", "breaks"),
    [
        (status(400), UpstreamRejected, Retry.NEVER, False),
        (invalid_key(), UpstreamAuthFailed, Retry.NEVER, False),
        (status(401), UpstreamAuthFailed, Retry.NEVER, False),
        (status(403), UpstreamAuthFailed, Retry.NEVER, False),
        (status(404), ModelUnavailable, Retry.NEVER, False),
        (status(413), UpstreamRejected, Retry.NEVER, False),
        (status(429), UpstreamUnavailable, Retry.YES, True),
        (status(429, quota_id=PER_MINUTE), UpstreamUnavailable, Retry.YES, True),
        (status(429, quota_id=PER_DAY), QuotaExhausted, Retry.NEVER, True),
        (status(500), UpstreamError, Retry.ONCE, True),
        (status(502), UpstreamError, Retry.ONCE, True),
        (status(503), UpstreamUnavailable, Retry.YES, True),
        (status(504), UpstreamTimeout, Retry.NEVER, True),
        (garbage(b"<html>", code=503, content_type="text/html"), UpstreamUnavailable, Retry.YES, True),
        (cut(60, status(503)), UpstreamUnavailable, Retry.YES, True),
        (garbage(b"", code=302), UpstreamInvalidAnswer, Retry.NEVER, False),
        (garbage(b"", code=204), UpstreamInvalidAnswer, Retry.NEVER, False),
    ],
)
def test_a_status_has_one_meaning(
    client: Client, step: Step, error: type[UpstreamFailure], retry: Retry, breaks: bool
) -> None:
    """One call each (the SDK would send a 401 three times), and Gemini bills none of them."""
    failure = failure_of(client, step)
    assert type(failure) is error
    assert (failure.retry, failure.breaks, failure.maybe_billed) == (retry, breaks, False)


@pytest.mark.parametrize(
    ("step", "wait", "header"),
    [
        (status(429, retry_delay="45.837906927s"), 45.837906927, "46"),
        (status(503, retry_delay="373.801628ms"), 0.373801628, "1"),
        (status(429, retry_delay="999999999s"), 3600, "3600"),
        (status(429, retry_delay="soon"), None, "1"),
        (status(429), None, "1"),
        (status(429, reason="RATE_LIMIT_EXCEEDED", quotaResetDelay="2.5s"), 2.5, "3"),
        (status(429, quota_id=PER_DAY), None, "3600"),
        (status(429, quota_id=PER_DAY, retry_delay="120s"), 120, "120"),
    ],
)
def test_the_wait_that_gemini_asks_for_is_kept(client: Client, step: Step, wait: float | None, header: str) -> None:
    """RetryInfo to the fraction for the retry, rounded up for the caller, an absurd one capped."""
    failure = failure_of(client, step)
    assert failure.wait == (pytest.approx(wait) if wait else None)
    assert failure.headers() == {"Retry-After": header}


def test_a_retired_model_names_the_setting(client: Client) -> None:
    """The operator reads what to change; to which model, the chain knows (tests/test_chain.py)."""
    assert "GEMINI_MODEL" in failure_of(client, status(404)).message


# Faults of the protocol and of the wire


@pytest.mark.parametrize(
    "step",
    [
        garbage(),
        garbage(b"[1, 2]"),
        garbage(b'{"candidates": 7}'),
        garbage(b'{"usageMetadata": {"promptTokenCount": 99999999999999}}'),
        garbage(b'{"thought": ' + b"[" * 20_000),
        wrong_content_type(),
        empty_body(),
    ],
)
def test_an_unreadable_answer_may_have_been_billed(client: Client, step: Step) -> None:
    """200 with a body that is not Gemini's: not repeated, for Gemini may charge each time."""
    failure = failure_of(client, step)
    assert type(failure) is UpstreamInvalidAnswer
    assert (failure.retry, failure.breaks, failure.maybe_billed) == (Retry.NEVER, False, True)


def test_an_answer_without_end_is_not_held(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a size that no answer has, the rest is not read."""
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1000)
    assert answer_to(client, text("x" * 500)).text == "x" * 500
    failure = failure_of(client, text("x" * 1000))
    assert type(failure) is UpstreamInvalidAnswer
    assert failure.maybe_billed


@pytest.mark.parametrize("after_bytes", [150, 300])
def test_a_connection_cut_in_the_body_is_not_retried(client: Client, after_bytes: int) -> None:
    """Gemini answered, so it may charge."""
    failure = failure_of(client, cut(after_bytes))
    assert type(failure) is UpstreamError
    assert (failure.retry, failure.breaks, failure.maybe_billed) == (Retry.NEVER, True, True)


def test_a_connection_cut_before_any_byte_may_be_retried(client: Client) -> None:
    """The request may have been processed all the same."""
    failure = failure_of(client, cut(0))
    assert type(failure) is UpstreamError
    assert (failure.retry, failure.wait, failure.breaks, failure.maybe_billed) == (Retry.YES, None, True, True)


def test_what_is_not_http_is_no_answer(client: Client) -> None:
    """A status line cut in the middle, say."""
    assert type(failure_of(client, cut(10))) is UpstreamInvalidAnswer


def test_a_stale_connection_is_replaced_without_a_bill(client: Client) -> None:
    """Gemini closed a kept-alive connection just as the next request left: retry at once, nothing was billed."""
    with ScriptedGemini(text("one"), cut(0), text("two")) as server:
        gemini = client(server)
        ask(gemini)
        with pytest.raises(UpstreamError) as raised:
            ask(gemini)
        failure = raised.value
        assert (failure.retry, failure.wait, failure.maybe_billed) == (Retry.AT_ONCE, None, False)
        assert ask(gemini).text == "two"


def test_a_refused_connection_is_told(client: Client) -> None:
    """Nobody listens: nothing was sent, so nothing was billed."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        gemini = client(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UpstreamError) as raised:
            ask(gemini)
    failure = raised.value
    assert (failure.retry, failure.breaks, failure.maybe_billed) == (Retry.YES, True, False)


def test_an_unknown_host_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent; the name may resolve again in a moment."""

    def unknown(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UpstreamError) as raised:
        ask(client("http://gemini.invalid"))
    assert (raised.value.retry, raised.value.maybe_billed) == (Retry.YES, False)


def test_a_name_that_resolves_too_late_is_a_time_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving cannot be interrupted; nothing is sent after it when the time is over."""
    resolve = socket.getaddrinfo

    def slowly(*args: Any, **options: Any) -> Any:
        threading.Event().wait(0.1)
        return resolve(*args, **options)

    with ScriptedGemini() as server:
        gemini = client(server)
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        with pytest.raises(UpstreamTimeout) as raised:
            ask(gemini, seconds=0.05)
        assert server.count == 0
    assert not raised.value.maybe_billed


def test_a_peer_that_does_not_speak_tls_is_told(client: Client, no_tls: str) -> None:
    """https to a plain server: nothing was sent."""
    with pytest.raises(UpstreamError) as raised:
        ask(client(no_tls))
    assert (raised.value.retry, raised.value.breaks, raised.value.maybe_billed) == (Retry.YES, True, False)


# Time


@pytest.mark.parametrize("step", [hang(), drip(0.01), slow_headers(0.01), after(5.0), drip(0.01, status(503))])
def test_a_call_ends_at_its_deadline(client: Client, step: Step) -> None:
    """However Gemini is slow: silence, dripped headers, a dripped body. It may charge for what it did."""
    begun = time.monotonic()
    with ScriptedGemini(step) as server, pytest.raises(UpstreamFailure) as raised:
        ask(client(server), seconds=SHORT)
    assert SHORT - 0.01 <= time.monotonic() - begun <= SHORT + SLACK
    assert isinstance(raised.value, UpstreamTimeout | UpstreamUnavailable)


def test_a_time_out_says_what_it_is(client: Client) -> None:
    """It counts for the breaker, is not repeated, and may be billed."""
    failure = failure_of(client, hang(), seconds=SHORT)
    assert type(failure) is UpstreamTimeout
    assert (failure.retry, failure.breaks, failure.maybe_billed) == (Retry.NEVER, True, True)


def test_a_deadline_in_the_past_is_a_time_out(client: Client) -> None:
    """It ends at once and nothing is sent."""
    with ScriptedGemini() as server:
        gemini = client(server)
        with pytest.raises(UpstreamTimeout) as raised:
            ask(gemini, seconds=-1)
        assert server.count == 0
    assert not raised.value.maybe_billed
    assert not raised.value.breaks  # it says nothing about Gemini


@contextmanager
def mute_server(say: bytes = b"", *, every: float = 0.02) -> Iterator[str]:
    """A server that accepts, then sends `say` byte by byte for ever (or nothing); its host and port."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as peer:
            while not over.wait(every):
                if say:
                    try:
                        peer.send(say[:1])
                    except OSError:
                        break

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join()


@pytest.mark.parametrize("say", [b"", b"\x16"])
def test_a_tls_handshake_that_never_ends_is_ended(client: Client, say: bytes) -> None:
    """Silent or dripping, the handshake is part of the call; nothing was billed."""
    with mute_server(say) as address:
        gemini = client(f"https://{address}")
        gemini.warm_up()
        begun = time.monotonic()
        with pytest.raises(UpstreamFailure) as raised:
            ask(gemini, seconds=SHORT)
        assert time.monotonic() - begun <= SHORT + SLACK
    assert not raised.value.maybe_billed


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    pem = tmp_path / "server.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    names = "-addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", *options.split(), *names.split(), "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem


def test_a_call_over_tls_ends_at_its_deadline(
    client: Client, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads through TLS is woken like any other. The environment names whom to trust."""
    import ssl

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        with context.wrap_socket(listener.accept()[0], server_side=True) as peer:
            peer.recv(65536)
            done.wait()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        gemini = client(f"https://127.0.0.1:{listener.getsockname()[1]}")
        gemini.warm_up()
        begun = time.monotonic()
        with pytest.raises(UpstreamTimeout) as raised:
            ask(gemini, seconds=SHORT)
        assert time.monotonic() - begun <= SHORT + SLACK
        done.set()
        thread.join()
    assert raised.value.maybe_billed


# Connections and threads


def test_a_connection_is_kept(client: Client) -> None:
    """Calls one after the other use one connection, errors included."""
    with ScriptedGemini(text("a"), status(429), blocked_prompt(), text("b")) as server:
        gemini = client(server)
        for _ in range(4):
            with suppress(UpstreamUnavailable):
                ask(gemini)
        assert server.count == 4
    assert _connections_made(gemini) == 1


def _connections_made(gemini: Gemini) -> int:
    assert gemini._built is not None
    return int(gemini._built.session.pool.num_connections)


def test_threads_share_one_client(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """32 threads at once: each gets its own answer, 32 connections are kept, none is thrown away."""
    barrier = threading.Barrier(32)

    def echo(server: ScriptedGemini, call: GeminiCall) -> EmulatedReply:
        return text(f"You said {call.prompt}")(server, call)

    with ScriptedGemini(default=echo) as server:
        gemini = client(server, max_connections=32)

        def talk(number: int) -> list[str]:
            barrier.wait()
            return [ask(gemini, Instruction(f"{number}-{turn}", 0, 10)).text for turn in range(3)]

        with ThreadPoolExecutor(32) as threads:
            said = list(threads.map(talk, range(32)))
    assert said == [[f"You said {number}-{turn}" for turn in range(3)] for number in range(32)]
    assert "discarding connection" not in caplog.text
    assert _connections_made(gemini) <= 32


def test_the_deadline_of_one_call_leaves_the_others_alone(client: Client) -> None:
    """One of two calls at once hangs and is ended; the other, later one is answered."""
    release = threading.Event()
    with ScriptedGemini(hang(), after(release, text("late"))) as server, ThreadPoolExecutor(2) as threads:
        gemini = client(server)
        gemini.warm_up()
        hung = threads.submit(ask, gemini, seconds=SHORT)
        assert server.wait_for_calls(1)
        late = threads.submit(ask, gemini)
        assert isinstance(hung.exception(), UpstreamTimeout)
        release.set()
        assert late.result().text == "late"


class Connection:
    """What `Call.claim` needs to see of a connection."""

    owner: calls.BoundedCall | None = None
    wire: socket.socket | None = None


def test_a_late_cut_spares_the_next_call() -> None:
    """A connection that went on to another call is not shut down by the deadline of the one before."""
    near, far = socket.socketpair()
    with near, far:
        watchdog, connection = calls.Watchdog(), Connection()
        first, second = calls.BoundedCall(watchdog, 1.0), calls.BoundedCall(watchdog, 2.0)
        first.claim(connection, near)
        second.claim(connection, near)
        first.cut(calls.Cut.DEADLINE)
        far.sendall(b"fine")
        assert near.recv(4) == b"fine"
        second.cut(calls.Cut.CANCEL)
        second.cut(calls.Cut.DEADLINE)
        assert near.recv(4) == b""
    assert second.cut_by is calls.Cut.CANCEL


def test_a_call_that_was_cut_cannot_claim() -> None:
    """A deadline that passes while the connection is made shuts the new socket down too."""
    near, far = socket.socketpair()
    with near, far:
        call = calls.BoundedCall(calls.Watchdog(), 1.0)
        call.cut(calls.Cut.DEADLINE)
        call.claim(Connection(), near)
        assert far.recv(4) == b""


# Keys, proxies, logs, start


@pytest.mark.parametrize("step", [status(400), garbage(), cut(0), cut(150), invalid_key()])
def test_the_key_is_in_no_text_and_no_log(client: Client, step: Step, caplog: pytest.LogCaptureFixture) -> None:
    """Not in the message, not in any cause, not in a log record at DEBUG; nor is the URL or Gemini's text shown."""
    caplog.set_level(logging.DEBUG)
    with ScriptedGemini(step) as server, pytest.raises(UpstreamFailure) as raised:
        ask(client(server))
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert "127.0.0.1" not in raised.value.message
    assert caplog.records
    for record in caplog.records:
        assert KEY not in record.getMessage()
        assert KEY not in repr(vars(record))


@pytest.mark.parametrize("key", ["", "  ", "with\nnewline", "with\x00nul", "ключ"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    """At construction, and without showing it."""
    with pytest.raises(ValueError, match="Gemini key") as raised:
        Gemini(api_key=key, model=MODEL)
    assert not key.strip() or key not in str(raised.value)


def test_white_space_around_the_key_is_dropped(client: Client) -> None:
    """A trailing newline from a file does no harm."""
    with ScriptedGemini() as server, Gemini(api_key=f" {KEY}\n", model=MODEL, endpoint=server.url) as gemini:
        ask(gemini)
        assert server.calls[0].headers["x-goog-api-key"] == KEY


def test_proxies_are_ignored_for_the_loopback(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment cannot reach a server on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert answer_to(client, text("direct")).text == "direct"


def test_a_proxy_is_used_for_other_hosts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for the whole URL, of a host that does not exist."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as peer:
            asked.append(peer.recv(65536))
            peer.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UpstreamError):
            ask(client("http://gemini.invalid"))
        thread.join()
    assert asked[0].startswith(f"POST http://gemini.invalid/v1beta/models/{MODEL}:generateContent".encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "socks5://127.0.0.1:9"), ("HTTPS_PROXY", "http://"), ("REQUESTS_CA_BUNDLE", "/no/such/file")],
)
def test_what_the_environment_names_must_be_usable(
    client: Client, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A proxy that does not speak HTTP, one without a host, certificates that are not there: each call says so."""
    for other in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    gemini = client("https://gemini.invalid")
    for _ in range(2):
        with pytest.raises(UpstreamError, match="proxy or the certificates") as raised:
            ask(gemini)
        assert not raised.value.maybe_billed


def test_a_client_that_was_never_used_closes() -> None:
    """It knows its model, and there is nothing to close."""
    with Gemini(api_key=KEY, model=MODEL) as gemini:
        assert gemini.model == MODEL


def test_a_client_is_built_once(client: Client) -> None:
    """Threads that come first at the same time share one build."""
    gemini = client("http://127.0.0.1:9")
    barrier = threading.Barrier(8)

    def build(_: int) -> int:
        barrier.wait()
        return id(gemini._client())

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(build, range(8)))) == 1


def test_the_sdk_is_imported_by_the_first_call() -> None:
    """Importing and constructing load neither the SDK nor its HTTP library, and warm_up warns of nothing."""
    script = (
        "import sys, gemini_wrapper\n"
        f"gemini = gemini_wrapper.Gemini(api_key='key', model='{MODEL}')\n"
        "assert not {'google.generativeai', 'requests', 'urllib3'} & set(sys.modules)\n"
        "gemini.warm_up()\n"
        "assert 'google.generativeai' in sys.modules\n"
        "gemini.close()\n"
    )
    project = Path(gemini_wrapper.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# For Python callers


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the environment's settings for the module-level functions, and forgets the client they shared."""

    def configure(server: ScriptedGemini | None, **settings: object) -> None:
        chosen = {"google_api_key": KEY, "gemini_api_endpoint": server and server.url, **settings}
        monkeypatch.setattr("mtllm.settings.load_settings", lambda: Settings(**chosen))  # type: ignore[arg-type]

    gemini_wrapper._from_environment.cache_clear()
    yield configure
    if gemini_wrapper._from_environment.cache_info().currsize:
        gemini_wrapper._from_environment().close()
        gemini_wrapper._from_environment.cache_clear()


def test_python_callers_get_text_code_and_labels(environment: Callable[..., None]) -> None:
    """The three functions ask like the endpoints and read like them: code comes without its fence."""
    with ScriptedGemini(text("Hello"), text("```python\nx = 1\n```"), text(" positive\n")) as server:
        environment(server)
        assert gemini_wrapper.generate_text("Say hello") == "Hello"
        assert gemini_wrapper.generate_code("Set x") == "x = 1"
        assert gemini_wrapper.classify_text("I love it", ["positive", "negative"]) == "positive"


def test_python_callers_get_retries(environment: Callable[..., None]) -> None:
    """A passing failure is not seen."""
    with ScriptedGemini(status(503, retry_delay="0s"), text("Hello")) as server:
        environment(server)
        assert gemini_wrapper.generate_text("Say hello") == "Hello"
        assert server.count == 2


def test_a_label_outside_the_list_is_asked_for_once_more(environment: Callable[..., None]) -> None:
    """Then it is an error, never a label that was not given."""
    with ScriptedGemini(text("neutral"), text("negative"), text("neutral"), text("neutral")) as server:
        environment(server)
        assert gemini_wrapper.classify_text("Hm", ["positive", "negative"]) == "negative"
        with pytest.raises(UpstreamInvalidAnswer):
            gemini_wrapper.classify_text("Hm", ["positive", "negative"])
        assert server.count == 4


def test_python_callers_are_told_what_is_wrong(environment: Callable[..., None]) -> None:
    """An empty prompt, a blocked one, no key: each is its own error."""
    with ScriptedGemini(blocked_prompt()) as server:
        environment(server)
        with pytest.raises(InvalidRequest):
            gemini_wrapper.generate_text("")
        with pytest.raises(InvalidRequest):
            gemini_wrapper.classify_text("text", "ab")
        with pytest.raises(ContentBlocked):
            gemini_wrapper.generate_text("Say hello")


def test_without_a_key_nothing_is_asked(environment: Callable[..., None]) -> None:
    """The error names the setting."""
    environment(None, google_api_key=None)
    with pytest.raises(NotConfigured, match="GOOGLE_API_KEY"):
        gemini_wrapper.generate_text("Say hello")


BROKEN_IMPORT = """
import sys, time
from importlib.abc import MetaPathFinder

class NoDescriptors(MetaPathFinder):
    left = 1

    def find_spec(self, name, path, target=None):
        if name.endswith("services.file_service") and self.left:
            self.left = 0
            raise OSError(24, "Too many open files")

sys.meta_path.insert(0, NoDescriptors())
from mtllm.gemini.client import Gemini
from mtllm.domain.completion import Instruction

with Gemini(api_key="key", model="model", endpoint=sys.argv[1]) as gemini:
    try:
        gemini.warm_up()
    except OSError as problem:
        print(problem.strerror)
    print(gemini.generate(Instruction("hello", 0.5, 100), deadline=time.monotonic() + 60).finish_reason.value)
"""


def test_an_import_that_broke_off_is_made_anew(gemini: ScriptedGemini) -> None:
    """The SDK's packages import each other in circles: on halves of them every later call would fail."""
    command = [sys.executable, "-c", BROKEN_IMPORT, gemini.url]
    project = Path(gemini_wrapper.__file__).parent
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["Too many open files", "stop"], done.stderr
