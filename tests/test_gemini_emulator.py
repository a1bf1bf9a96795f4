"""The emulator speaks Gemini's protocol; the scripted one misbehaves exactly as told."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import Emulator, Usage
from mtllm.emulator.command import parse_options
from tests import scripted_gemini as play
from tests.scripted_gemini import CUT, IDLE, Fault, ScriptedGemini

MODEL = "offline-gemini"
LABELS = ["positive", "negative", "neutral"]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as running:
        yield running


PROJECT = Path(__file__).resolve().parent.parent


class Client:
    """One keep-alive connection that speaks plain HTTP."""

    def __init__(self, url: str, *, timeout: float = 10) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def open(self, action: str, body: Any, *, model: str = MODEL, key: str | None = "k") -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", **({"x-goog-api-key": key} if key else {})}
        raw = body if isinstance(body, bytes) else json.dumps(body)
        self.connection.request("POST", f"/v1beta/models/{model}:{action}", raw, headers)
        return self.connection.getresponse()

    def post(self, action: str, body: Any, **how: Any) -> tuple[int, Any]:
        response = self.open(action, body, **how)
        return response.status, json.loads(response.read())

    def get(self, path: str) -> tuple[int, Any]:
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())


def asking(prompt: str = "Hello", *, system: str = "", **config: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": config}
    return {**body, "systemInstruction": {"parts": [{"text": system}]}} if system else body


def choosing(text: str, labels: list[str]) -> dict[str, Any]:
    schema = {"type": "STRING", "enum": labels}
    return asking(text, responseMimeType="text/x.enum", responseSchema=schema)


def said(payload: Any) -> str:
    return "".join(part["text"] for part in payload["candidates"][0]["content"]["parts"])


def answer_to(url: str, body: Any, **how: Any) -> Any:
    with Client(url) as client:
        status, payload = client.post("generateContent", body, **how)
    assert status == 200
    return payload


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    while line := response.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


class TestProtocol:
    def test_an_answer_has_the_shape_of_geminis(self, emulator: Emulator) -> None:
        """Candidate, finish reason, usage that adds up, the model that was asked for, and a response id."""
        payload = answer_to(emulator.url, asking("Hello"), model="gemini-2.5-flash-lite")
        usage = payload["usageMetadata"]
        assert payload["candidates"][0]["finishReason"] == "STOP"
        assert payload["candidates"][0]["content"]["role"] == "model"
        assert payload["modelVersion"] == "gemini-2.5-flash-lite"
        assert payload["responseId"]
        assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"]

    def test_the_same_call_has_the_same_answer(self) -> None:
        """Determinism holds across servers, response id included."""
        answers = []
        for _ in range(2):
            with Emulator() as emulator:
                answers.append(answer_to(emulator.url, asking("Twice")))
        assert answers[0] == answers[1]

    def test_one_connection_serves_many_calls(self, emulator: Emulator) -> None:
        """The connection is kept alive through answers, streams and errors."""
        with Client(emulator.url) as client:
            for _ in range(3):
                assert client.post("generateContent", asking())[0] == 200
                assert client.post("streamGenerateContent", asking())[0] == 200
                assert client.post("generateContent", {})[0] == 400
            assert client.connection.sock is not None

    def test_a_plain_stream_is_a_json_array(self, emulator: Emulator) -> None:
        """Its deltas make the plain answer; only the last has a finish reason and the final usage."""
        plain = answer_to(emulator.url, asking())
        with Client(emulator.url) as client:
            _, pieces = client.post("streamGenerateContent", asking())
        assert len(pieces) == 4
        assert "".join(map(said, pieces)) == said(plain)
        assert [piece["candidates"][0].get("finishReason") for piece in pieces] == [None, None, None, "STOP"]
        assert pieces[-1]["usageMetadata"] == plain["usageMetadata"]

    def test_alt_sse_is_an_event_stream(self, emulator: Emulator) -> None:
        """The same deltas as server-sent events."""
        with Client(emulator.url) as client:
            response = client.open("streamGenerateContent?alt=sse", asking())
            assert response.headers["Content-Type"] == "text/event-stream"
            deltas = [said(event) for event in events(response)]
        assert "".join(deltas) == said(answer_to(emulator.url, asking()))

    @pytest.mark.parametrize("wrap", [lambda body: body, lambda body: {"generateContentRequest": body}])
    def test_counted_tokens_are_those_of_an_answer(self, emulator: Emulator, wrap: Callable[[Any], Any]) -> None:
        """countTokens tells the prompt's count, for contents as for a whole request."""
        body = asking("Count these words", system="Be brief")
        with Client(emulator.url) as client:
            _, counted = client.post("countTokens", wrap(body))
        assert counted["totalTokens"] == answer_to(emulator.url, body)["usageMetadata"]["promptTokenCount"]

    def test_models_are_listed_and_described(self, emulator: Emulator) -> None:
        """The list holds the offline model; any model has a description."""
        with Client(emulator.url) as client:
            _, models = client.get("/v1beta/models?key=k")
            _, model = client.get("/v1beta/models/gemini-x?key=k")
        assert [one["name"] for one in models["models"]] == ["models/offline-gemini"]
        assert model["name"] == "models/gemini-x"
        assert "generateContent" in model["supportedGenerationMethods"]

    def test_enums_come_as_numbers_to_those_who_ask(self, gemini: ScriptedGemini) -> None:
        """Google's SDK asks for `enum-encoding=int`; an unknown value stays a name."""
        gemini.answers(play.finished("RECITATION"), play.blocked_prompt("BLOCKLIST"), play.finished("NEW_REASON"))
        action = "generateContent?%24alt=json%3Benum-encoding%3Dint"
        with Client(gemini.url) as client:
            recited, blocked, unknown = (client.post(action, asking())[1] for _ in range(3))
        assert recited["candidates"][0]["finishReason"] == 4
        assert blocked["promptFeedback"]["blockReason"] == 3
        assert unknown["candidates"][0]["finishReason"] == "NEW_REASON"

    @pytest.mark.parametrize(
        ("verb", "path", "status", "name"),
        [
            ("POST", "/v1beta/models/m:generateContent", 403, "PERMISSION_DENIED"),
            ("POST", "/v1beta/models/m:generateContent?key=k", 400, "INVALID_ARGUMENT"),
            ("POST", "/v1beta/models/m:embedContent?key=k", 404, "NOT_FOUND"),
            ("GET", "/v1beta/models/m:generateContent?key=k", 404, "NOT_FOUND"),
            ("PUT", "/v1beta/models/m?key=k", 404, "NOT_FOUND"),
            ("GET", "/elsewhere?key=k", 404, "NOT_FOUND"),
        ],
    )
    def test_errors_are_googles(self, emulator: Emulator, verb: str, path: str, status: int, name: str) -> None:
        """No key, no contents, no such path: JSON with code, message and status."""
        with Client(emulator.url) as client:
            client.connection.request(verb, path)
            response = client.connection.getresponse()
            error = json.loads(response.read())["error"]
        assert (response.status, error["code"], error["status"]) == (status, status, name)
        assert error["message"]

    @pytest.mark.parametrize(
        "raw", [b"{", b"null", b"[1]", b"\xff", b"[" * 100_000, b'{"contents": 5}', b'{"contents": [7]}']
    )
    def test_a_bad_body_is_an_invalid_argument(self, emulator: Emulator, raw: bytes) -> None:
        """Whatever is sent as a body gets an answer of Google's form."""
        with Client(emulator.url) as client:
            assert client.post("generateContent", raw)[0] == 400

    @pytest.mark.parametrize("line", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
    def test_what_is_not_http_is_refused(self, emulator: Emulator, line: bytes) -> None:
        """400 and the end of the connection."""
        with Client(emulator.url) as client:
            client.connection.connect()
            client.connection.sock.sendall(line)
            response = http.client.HTTPResponse(client.connection.sock)
            response.begin()
            assert response.status == 400
            assert response.will_close
            response.close()


class TestCannedAnswers:
    def test_text_says_that_it_is_canned(self, emulator: Emulator) -> None:
        """And tells the prompt's length without repeating it."""
        text = said(answer_to(emulator.url, asking("A secret of 27 characters.")))
        assert "canned" in text
        assert "26 characters" in text
        assert "secret" not in text

    @pytest.mark.parametrize(
        ("language", "fence", "function"),
        [("", "python", "def "), ("Python", "python", "def "), ("JavaScript", "javascript", "function "),
         ("C++", "c++", "char *"), ("Cobol", "python", "def ")],
    )  # fmt: skip
    def test_code_is_a_function_in_a_fence(self, emulator: Emulator, language: str, fence: str, function: str) -> None:
        """In the language asked for when it is known, else in Python, and canned as its comment says."""
        wanted = f" in {language}" if language else ""
        system = f"You write code{wanted}. Answer with the code only, in one fenced block, without explanations."
        code = said(answer_to(emulator.url, asking("Reverse a string", system=system)))
        assert code.startswith(f"```{fence}\n")
        assert code.endswith("\n```")
        assert function in code
        assert "Canned" in code

    def test_canned_python_runs(self, emulator: Emulator) -> None:
        """The function is one."""
        code = said(answer_to(emulator.url, asking("x", system="You write code in python.")))
        names: dict[str, Any] = {}
        exec(code.removeprefix("```python\n").removesuffix("```"), names)
        assert "canned" in names["canned"]()

    @pytest.mark.parametrize(
        ("text", "labels", "label"),
        [
            ("I love this product!", LABELS, "positive"),
            ("I hated it. Terrible.", LABELS, "negative"),
            ("I don't like it", LABELS, "negative"),
            ("Not bad at all", LABELS, "positive"),
            ("The train leaves at noon.", LABELS, "neutral"),
            ("The train leaves at noon.", ["a", "b"], "a"),
            ("The match ended in extra time; sports at its peak", ["politics", "sports"], "sports"),
            ("I love sports", ["politics", "sports"], "sports"),
            ("今日は天気がいい", ["料理", "天気"], "天気"),
            ("I LOVE IT", ["Negative", "POSITIVE"], "POSITIVE"),
        ],
    )
    def test_a_text_is_classified_by_mood_and_words(
        self, emulator: Emulator, text: str, labels: list[str], label: str
    ) -> None:
        """Mood first, then shared words, then neutral, then the first."""
        assert said(answer_to(emulator.url, choosing(text, labels))) == label

    def test_labels_may_hold_any_characters(self, emulator: Emulator) -> None:
        """Commas, quotes, newlines, symbols beyond the BMP: the answer is always exactly one of the labels."""
        labels = ['a, "b"', "a", "line\nbreak", "\U0001f600", "\\", "{}", "ß", " padded ", "<|endoftext|>", "\u2028"]
        for label in labels:
            assert said(answer_to(emulator.url, choosing(f"it says {label} here", labels))) in labels
        assert said(answer_to(emulator.url, choosing("so \U0001f600", labels[2:5]))) == "\U0001f600"

    def test_the_limit_cuts_the_answer(self, emulator: Emulator) -> None:
        """MAX_TOKENS, and no more tokens than allowed; a label is never cut."""
        payload = answer_to(emulator.url, asking(maxOutputTokens=3))
        assert payload["candidates"][0]["finishReason"] == "MAX_TOKENS"
        assert payload["usageMetadata"]["candidatesTokenCount"] == 3
        label = "a label of many words"
        body = choosing("x", [label, "b"])
        body["generationConfig"]["maxOutputTokens"] = 1
        assert said(answer_to(emulator.url, body)) == label


class TestLife:
    def test_closing_ends_idle_connections_and_threads(self) -> None:
        """After close, no thread of the server is left and its port refuses."""
        emulator = Emulator().start()
        with Client(emulator.url) as idle:
            idle.post("generateContent", asking())
            emulator.close()
            assert not [one for one in threading.enumerate() if one.name.startswith("gemini-emulator")]
            emulator.close()
        with Client(emulator.url) as late, pytest.raises(OSError):  # noqa: PT011  (refused or reset)
            late.post("generateContent", asking())

    def test_closing_before_the_start_is_harmless(self) -> None:
        """There is nothing to close."""
        Emulator().close()

    def test_a_port_in_use_is_an_error(self, emulator: Emulator) -> None:
        """It is told at the start."""
        with pytest.raises(OSError, match="in use"):
            Emulator(port=urlsplit(emulator.url).port or 0).start()

    def test_many_clients_at_once(self, emulator: Emulator) -> None:
        """32 connections are served side by side, each with its own answer."""
        together = threading.Barrier(32)

        def ask(number: int) -> str:
            together.wait()
            return said(answer_to(emulator.url, asking("x" * number)))

        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(ask, range(1, 33)))
        assert all(f"has {number} characters" in text for number, text in enumerate(answers, 1))

    def test_clients_that_leave_are_ignored(self, emulator: Emulator, capfd: pytest.CaptureFixture[str]) -> None:
        """Before the body, or before the answer: nothing on stderr, and others are served."""
        for _ in range(5):
            with Client(emulator.url) as client:
                client.connection.connect()
                client.connection.sock.sendall(
                    b"POST /v1beta/models/m:generateContent HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
                )
            with Client(emulator.url) as client:
                client.connection.request("POST", "/v1beta/models/m:streamGenerateContent?key=k", json.dumps(asking()))
        assert answer_to(emulator.url, asking())
        assert capfd.readouterr().err == ""

    def test_a_failed_accept_is_not_the_end(self) -> None:
        """A client that left before it was accepted does not stop the server."""
        emulator = Emulator()
        ours, theirs = socket.socketpair()

        class Listener:
            failures = 1

            def accept(self) -> tuple[socket.socket, None]:
                if self.failures:
                    self.failures -= 1
                    raise ConnectionAbortedError
                emulator.closing.set()
                return ours, None

        listener: Any = Listener()
        emulator._accept(listener)
        assert theirs.recv(1) == b""
        theirs.close()

    @pytest.mark.parametrize(("options", "pieces"), [([], 4), (["--chunks", "2", "--latency", "0.0001"], 2)])
    def test_its_options_shape_the_answers(self, options: list[str], pieces: int) -> None:
        """`--chunks` is how many pieces a stream has, `--latency` delays them and changes nothing else."""
        with parse_options(["--port", "0", *options]) as emulator, Client(emulator.url) as client:
            _, stream = client.post("streamGenerateContent", asking())
            _, plain = client.post("generateContent", asking())
        assert len(stream) == pieces
        assert "".join(map(said, stream)) == said(plain)

    def test_it_serves_by_itself(self) -> None:
        """`python -m mtllm.emulator` prints its address and answers."""
        command = [sys.executable, "-m", "mtllm.emulator", "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT
        ) as process:
            assert process.stdout is not None
            assert "canned" in said(answer_to(process.stdout.readline().split()[-1], asking()))
            process.terminate()
            _, complaints = process.communicate(timeout=10)
        assert complaints == ""


class TestScript:
    def test_steps_are_taken_in_order_then_the_default(self, gemini: ScriptedGemini) -> None:
        """And every call is recorded, with what it asked."""
        gemini.answers(play.text("one"), play.text("two"))
        answers = [said(answer_to(gemini.url, asking(f"p{number}", temperature=0.5))) for number in range(3)]
        assert answers[:2] == ["one", "two"]
        assert "canned" in answers[2]
        assert [call.prompt for call in gemini.calls] == ["p0", "p1", "p2"]
        assert (gemini.count, gemini.calls[0].temperature, gemini.calls[0].key) == (3, 0.5, "k")

    def test_a_quota_error_has_googles_details(self, gemini: ScriptedGemini) -> None:
        """QuotaFailure, RetryInfo and ErrorInfo, as a document; in an array where an array was asked for."""
        step = play.status(429, retry_delay="45.837906927s", quota_id=play.PER_DAY, reason="RATE_LIMIT_EXCEEDED")
        gemini.answers(step, step, step)
        with Client(gemini.url) as client:
            status, plain = client.post("generateContent", asking())
            _, array = client.post("streamGenerateContent", asking())
            _, event = client.post("streamGenerateContent?alt=sse", asking())
        assert status == 429
        assert plain["error"]["status"] == "RESOURCE_EXHAUSTED"
        quota, retry, info = plain["error"]["details"]
        assert quota["violations"][0]["quotaId"] == play.PER_DAY
        assert retry["retryDelay"] == "45.837906927s"
        assert info["reason"] == "RATE_LIMIT_EXCEEDED"
        assert array == [plain]
        assert event == plain

    def test_what_was_billed_is_counted(self, gemini: ScriptedGemini) -> None:
        """Answers, blocked prompts, cut replies and finished streams are; errors and unreported usage are not."""
        gemini.answers(
            play.usage("12345678", thoughts=7, cached=100),
            play.blocked_prompt(),
            play.status(503),
            play.no_usage(),
            play.stream("1234", "5678", thoughts=1),
            play.stream("1234", Fault(503)),
        )
        with Client(gemini.url) as client:
            used = client.post("generateContent", asking("1234"))[1]["usageMetadata"]
            for action in ["generateContent"] * 3 + ["streamGenerateContent"] * 2:
                client.post(action, asking("1234"))
        assert used == {
            "promptTokenCount": 101,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 7,
            "cachedContentTokenCount": 100,
            "totalTokenCount": 110,
        }
        assert gemini.delivered == Usage(prompt=103, candidates=4, thoughts=8, cached=100)

    def test_the_default_answers_are_billed(self, gemini: ScriptedGemini) -> None:
        """The totals are those that the replies reported, streamed or not."""
        with Client(gemini.url) as client:
            _, plain = client.post("generateContent", asking())
            _, pieces = client.post("streamGenerateContent", asking(maxOutputTokens=5))
            client.post("countTokens", asking())
        reported = plain["usageMetadata"]["totalTokenCount"] + pieces[-1]["usageMetadata"]["totalTokenCount"]
        assert gemini.delivered.total == reported

    @pytest.mark.parametrize(
        ("step", "content"),
        [
            (play.garbage(b"\xff{"), b"\xff{"),
            (play.empty_body(), b""),
            (play.empty_object(), b"{}"),
            (play.wrong_content_type(), b"<html><body>Sign in to continue</body></html>"),
        ],
    )
    def test_unreadable_replies(self, gemini: ScriptedGemini, step: play.Step, content: bytes) -> None:
        """200 with a body that no client can use."""
        gemini.answers(step)
        with Client(gemini.url) as client:
            response = client.open("generateContent", asking())
            assert (response.status, response.read()) == (200, content)

    def test_no_candidates(self, gemini: ScriptedGemini) -> None:
        """Usage and nothing else."""
        gemini.answers(play.no_candidates(), play.finished("SAFETY"))
        assert "candidates" not in answer_to(gemini.url, asking())
        assert answer_to(gemini.url, asking())["candidates"][0]["content"]["parts"] == []

    @pytest.mark.parametrize("length", [0, 10, 200])
    def test_a_cut_reply_ends_early(self, gemini: ScriptedGemini, length: int) -> None:
        """So many bytes arrive and no more; the answer is billed all the same."""
        gemini.answers(play.cut(length))
        with Client(gemini.url) as client, pytest.raises(http.client.HTTPException):
            client.open("generateContent", asking()).read()
        assert gemini.delivered.total > 0

    def test_a_connection_may_die_between_calls(self, gemini: ScriptedGemini) -> None:
        """The whole reply arrives, without a word that the connection ends after it."""
        gemini.answers(play.cut(None))
        with Client(gemini.url) as client:
            assert client.post("generateContent", asking())[0] == 200
            with pytest.raises((http.client.RemoteDisconnected, OSError)):
                client.post("generateContent", asking())
        assert gemini.count == 1

    @pytest.mark.parametrize("step", [play.drip(0.0001), play.slow_headers(0.0001), play.after(0.001)])
    def test_slow_replies_arrive_whole(self, gemini: ScriptedGemini, step: play.Step) -> None:
        """Slowness changes when, not what."""
        gemini.answers(step)
        assert said(answer_to(gemini.url, asking())).startswith("An answer that is long")

    @pytest.mark.parametrize(
        "step", [play.hang(), play.drip(60), play.slow_headers(60), play.after(Event()), play.stream("a", IDLE)]
    )
    def test_no_step_outlives_the_server(self, step: play.Step) -> None:
        """Closing ends a call that hangs, whatever it waits for; the client sees its connection end."""
        gemini = ScriptedGemini(step).start()
        with Client(gemini.url) as client, ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: client.open("streamGenerateContent?alt=sse", asking()).read())
            assert gemini.wait_for_calls(1)
            gemini.close()
            with pytest.raises((http.client.HTTPException, OSError)):
                reading.result()

    def test_the_gate_holds_replies_not_calls(self, gemini: ScriptedGemini) -> None:
        """Calls are counted while it is closed, and answered once it opens."""
        gemini.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(answer_to, gemini.url, asking()) for _ in range(4)]
            assert gemini.wait_for_calls(4)
            assert not any(one.done() for one in asked)
            gemini.gate.set()
            assert all(one.result() for one in asked)
        assert not gemini.wait_for_calls(5, timeout=0)

    def test_a_stream_moves_when_told(self, gemini: ScriptedGemini) -> None:
        """A delta passes as soon as its event or semaphore lets it, and not before."""
        event, steps = Event(), Semaphore(0)
        gemini.answers(play.stream("a", event, "b", steps, "c", finish="MAX_TOKENS", usage="last"))
        with Client(gemini.url) as client:
            pieces = events(client.open("streamGenerateContent?alt=sse", asking()))
            assert said(next(pieces)) == "a"
            event.set()
            assert said(next(pieces)) == "b"
            assert gemini.delivered == Usage()
            steps.release()
            last = next(pieces)
        assert (said(last), last["candidates"][0]["finishReason"]) == ("c", "MAX_TOKENS")
        assert last["usageMetadata"]["totalTokenCount"] == gemini.delivered.total

    def test_a_stream_may_fail_in_the_middle(self, gemini: ScriptedGemini) -> None:
        """By an error document, or by the end of the connection."""
        gemini.answers(play.stream("a", Fault(500)), play.stream("a", CUT))
        with Client(gemini.url) as client:
            first, error = events(client.open("streamGenerateContent?alt=sse", asking()))
            assert (said(first), error["error"]["status"]) == ("a", "INTERNAL")
            broken = client.open("streamGenerateContent?alt=sse", asking())
            with pytest.raises(http.client.IncompleteRead):
                broken.read()

    def test_a_caller_who_leaves_a_stream_is_counted(self, gemini: ScriptedGemini) -> None:
        """As soon as a write fails."""
        gemini.answers(play.stream("a", *["b"] * 50_000))
        with Client(gemini.url) as client:
            response = client.open("streamGenerateContent?alt=sse", asking())
            assert said(next(events(response))) == "a"
            response.close()
        assert gemini.wait_for_departures(1)
        assert gemini.departed == 1
        assert gemini.delivered == Usage()

    def test_an_invalid_key_is_a_bad_request(self, gemini: ScriptedGemini) -> None:
        """Google answers 400 with the reason API_KEY_INVALID."""
        gemini.answers(play.invalid_key())
        with Client(gemini.url) as client:
            status, payload = client.post("generateContent", asking())
        assert (status, payload["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")


def test_googles_own_sdk_reads_it(gemini: ScriptedGemini, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, streamed, counted and constrained calls of google-generativeai over REST parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genai: Any = pytest.importorskip("google.generativeai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    genai.configure(api_key="k", transport="rest", client_options={"api_endpoint": gemini.url})
    model = genai.GenerativeModel(MODEL)
    enum = {"response_mime_type": "text/x.enum", "response_schema": {"type": "STRING", "enum": LABELS}}

    assert "canned" in model.generate_content("Hello").text
    pieces = [piece.text for piece in model.generate_content("Hello", stream=True)]
    assert len(pieces) == 4
    assert "canned" in "".join(pieces)
    assert model.count_tokens("Hello there").total_tokens == 3
    assert model.generate_content("I love it", generation_config=enum).text == "positive"
    assert gemini.calls[-1].labels == tuple(LABELS)
    assert gemini.calls[0].numeric_enums
