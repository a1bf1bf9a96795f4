"""The emulator speaks Gemini's protocol."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import Emulator
from tests.support import scripted_gemini as play
from tests.support.gemini_client import GeminiClient, answer_to, asking, events, said
from tests.support.scripted_gemini import ScriptedGemini


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def gemini() -> Iterator[ScriptedGemini]:
    with ScriptedGemini() as running:
        yield running


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
        with GeminiClient(emulator.url) as client:
            for _ in range(3):
                assert client.post("generateContent", asking())[0] == 200
                assert client.post("streamGenerateContent", asking())[0] == 200
                assert client.post("generateContent", {})[0] == 400
            assert client.connection.sock is not None

    def test_a_plain_stream_is_a_json_array(self, emulator: Emulator) -> None:
        """Its deltas make the plain answer; only the last has a finish reason and the final usage."""
        plain = answer_to(emulator.url, asking())
        with GeminiClient(emulator.url) as client:
            _, pieces = client.post("streamGenerateContent", asking())
        assert len(pieces) == 4
        assert "".join(map(said, pieces)) == said(plain)
        assert [piece["candidates"][0].get("finishReason") for piece in pieces] == [None, None, None, "STOP"]
        assert pieces[-1]["usageMetadata"] == plain["usageMetadata"]

    def test_alt_sse_is_an_event_stream(self, emulator: Emulator) -> None:
        """The same deltas as server-sent events."""
        with GeminiClient(emulator.url) as client:
            response = client.open("streamGenerateContent?alt=sse", asking())
            assert response.headers["Content-Type"] == "text/event-stream"
            deltas = [said(event) for event in events(response)]
        assert "".join(deltas) == said(answer_to(emulator.url, asking()))

    @pytest.mark.parametrize("wrap", [lambda body: body, lambda body: {"generateContentRequest": body}])
    def test_counted_tokens_are_those_of_an_answer(self, emulator: Emulator, wrap: Callable[[Any], Any]) -> None:
        """countTokens tells the prompt's count, for contents as for a whole request."""
        body = asking("Count these words", system="Be brief")
        with GeminiClient(emulator.url) as client:
            _, counted = client.post("countTokens", wrap(body))
        assert counted["totalTokens"] == answer_to(emulator.url, body)["usageMetadata"]["promptTokenCount"]

    def test_models_are_listed_and_described(self, emulator: Emulator) -> None:
        """The list holds the offline model; any model has a description."""
        with GeminiClient(emulator.url) as client:
            _, models = client.get("/v1beta/models?key=k")
            _, model = client.get("/v1beta/models/gemini-x?key=k")
        assert [one["name"] for one in models["models"]] == ["models/offline-gemini"]
        assert model["name"] == "models/gemini-x"
        assert "generateContent" in model["supportedGenerationMethods"]

    def test_enums_come_as_numbers_to_those_who_ask(self, gemini: ScriptedGemini) -> None:
        """Google's SDK asks for `enum-encoding=int`; an unknown value stays a name."""
        gemini.answers(play.finished("RECITATION"), play.blocked_prompt("BLOCKLIST"), play.finished("NEW_REASON"))
        action = "generateContent?%24alt=json%3Benum-encoding%3Dint"
        with GeminiClient(gemini.url) as client:
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
        with GeminiClient(emulator.url) as client:
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
        with GeminiClient(emulator.url) as client:
            assert client.post("generateContent", raw)[0] == 400

    @pytest.mark.parametrize("line", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
    def test_what_is_not_http_is_refused(self, emulator: Emulator, line: bytes) -> None:
        """400 and the end of the connection."""
        with GeminiClient(emulator.url) as client:
            client.connection.connect()
            client.connection.sock.sendall(line)
            response = http.client.HTTPResponse(client.connection.sock)
            response.begin()
            assert response.status == 400
            assert response.will_close
            response.close()


def send_raw(emulator: Emulator, data: bytes) -> bytes:
    """Send bytes over a connection of their own and return all that comes back until it ends."""
    with socket.create_connection((urlsplit(emulator.url).hostname or "", urlsplit(emulator.url).port or 0)) as wire:
        wire.settimeout(10)
        wire.sendall(data)
        return b"".join(iter(lambda: wire.recv(65_536), b""))


class TestHttp:
    HEAD = b"POST /v1beta/models/m:generateContent?key=k HTTP/1.1\r\nHost: x\r\n"
    BODY = b'{"contents":[{"parts":[{"text":"hi"}]}]}'

    def chunked(self, *pieces: bytes) -> bytes:
        return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"

    def test_a_chunked_body_is_read_whole(self, emulator: Emulator) -> None:
        """And the next request on the connection is one, not the body's rest."""
        first = self.HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + self.chunked(self.BODY[:7], self.BODY[7:])
        second = b"GET /v1beta/models?key=k HTTP/1.1\r\nConnection: close\r\n\r\n"
        came = send_raw(emulator, first + second)
        assert came.count(b"HTTP/1.1 200 OK") == 2
        assert b"canned answer" in came
        assert b"models/offline-gemini" in came

    def test_expect_is_answered_before_the_body(self, emulator: Emulator) -> None:
        """A client that waits for 100 Continue sends its body only then."""
        address = (urlsplit(emulator.url).hostname or "", urlsplit(emulator.url).port or 0)
        with socket.create_connection(address, timeout=10) as wire:
            wire.sendall(self.HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(self.BODY))
            assert wire.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            wire.sendall(self.BODY)
            assert wire.recv(15) == b"HTTP/1.1 200 OK"

    def test_an_http_1_0_client_gets_no_chunks(self, emulator: Emulator) -> None:
        """The stream comes bare, and the end of the connection is its end."""
        head = b"POST /v1beta/models/m:streamGenerateContent?key=k HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
        came = send_raw(emulator, head % len(self.BODY) + self.BODY)
        top, _, body = came.partition(b"\r\n\r\n")
        assert b"chunked" not in top
        assert len(json.loads(body)) == 4

    @pytest.mark.parametrize(
        "fields",
        [
            b"Content-Length: -1\r\n",
            b"Content-Length: 1e3\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        ],
    )
    def test_a_length_that_is_none_is_refused(self, emulator: Emulator, fields: bytes) -> None:
        """400 and the end of the connection: what follows cannot be told from the body."""
        came = send_raw(emulator, self.HEAD + fields + b"\r\nGET /v1/models?key=k HTTP/1.1\r\n\r\n")
        assert came.startswith(b"HTTP/1.1 400 Bad Request")
        assert came.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize("size", [b"x", b"-1", b""])
    def test_a_chunk_size_that_is_none_is_refused(self, emulator: Emulator, size: bytes) -> None:
        """As a length that is none."""
        came = send_raw(emulator, self.HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n")
        assert came.startswith(b"HTTP/1.1 400 Bad Request")

    @pytest.mark.parametrize(
        "told", [b"Content-Length: 20971521\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1400001\r\n"]
    )
    def test_a_body_over_googles_limit_is_an_invalid_argument(self, emulator: Emulator, told: bytes) -> None:
        """20 MiB; it is refused before it is read."""
        came = send_raw(emulator, self.HEAD + told)
        assert json.loads(came.partition(b"\r\n\r\n")[2])["error"]["message"].startswith("Request payload size exceeds")

    def test_head_has_no_body(self, emulator: Emulator) -> None:
        """Its connection lives on."""
        with GeminiClient(emulator.url) as client:
            client.connection.request("HEAD", "/v1beta/models?key=k")
            response = client.connection.getresponse()
            assert (response.status, response.read()) == (200, b"")
            assert client.get("/v1beta/models?key=k")[0] == 200


class TestSpellings:
    @pytest.mark.parametrize("base", ["/v1", "/v1beta", "/v1alpha", "/gemini/v1beta", "/a/proxy/v1"])
    def test_every_version_and_prefix_is_served(self, emulator: Emulator, base: str) -> None:
        """google-genai 3 asks /v1, others /v1beta; a base URL's path comes before."""
        with GeminiClient(emulator.url) as client:
            client.connection.request("POST", f"{base}/models/m:generateContent?key=k", json.dumps(asking()))
            response = client.connection.getresponse()
            assert "canned" in said(json.loads(response.read()))

    @pytest.mark.parametrize(
        "config",
        [
            {"generationConfig": {"maxOutputTokens": 5}},
            {"generation_config": {"max_output_tokens": 5}},
            {"generation_config": {"maxOutputTokens": "5"}},
            {"generationConfig": {"max_output_tokens": 5.0}},
        ],
    )
    def test_both_spellings_of_a_field_are_read(self, emulator: Emulator, config: dict[str, Any]) -> None:
        """camelCase and snake_case, and a number as a string, as Google's JSON takes them."""
        payload = answer_to(emulator.url, {"contents": asking()["contents"], **config})
        assert payload["usageMetadata"]["candidatesTokenCount"] == 5

    def test_a_system_instruction_counts_in_either_spelling(self, emulator: Emulator) -> None:
        """LiteLLM writes system_instruction."""
        counts = {
            answer_to(emulator.url, {"contents": asking()["contents"], name: {"parts": [{"text": "Be brief."}]}})[
                "usageMetadata"
            ]["promptTokenCount"]
            for name in ("systemInstruction", "system_instruction")
        }
        assert counts == {4}

    def test_one_object_counts_as_a_list_of_one(self, emulator: Emulator) -> None:
        """As in the samples of Google's documentation."""
        assert "has 2 characters" in said(answer_to(emulator.url, {"contents": {"parts": {"text": "hi"}}}))

    def test_an_image_without_a_word_is_a_prompt(self, emulator: Emulator) -> None:
        """It counts 258 tokens."""
        part = {"inlineData": {"mimeType": "image/png", "data": "aGk="}}
        payload = answer_to(emulator.url, {"contents": [{"parts": [part]}]})
        assert payload["usageMetadata"]["promptTokenCount"] == 259

    def test_a_bearer_token_is_a_key(self, emulator: Emulator) -> None:
        """As an OAuth client sends it."""
        with GeminiClient(emulator.url) as client:
            client.connection.request("GET", "/v1/models", headers={"Authorization": "Bearer t"})
            assert client.connection.getresponse().status == 200


class TestBadRequests:
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b'{"contents": [', "Invalid JSON payload"),
            ({"contents": 5}, "Invalid value at 'contents'"),
            ({"contents": ["hi"]}, "Invalid value at 'contents[0]'"),
            ({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "valid role: user, model"),
            (asking(maxOutputTokens="many"), "'generation_config.max_output_tokens' (TYPE_INT32)"),
            (asking(maxOutputTokens=1.5), "'generation_config.max_output_tokens' (TYPE_INT32)"),
            (asking(maxOutputTokens=-1), "max_output_tokens: must be positive"),
            (asking(temperature=True), "'generation_config.temperature' (TYPE_FLOAT)"),
            (asking(temperature=2.5), "[0.0, 2.0]"),
            (asking(candidateCount=2), "Multiple candidates is not enabled"),
            (asking() | {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "without function_declarations"),
        ],
    )
    def test_the_error_says_what_is_wrong(self, emulator: Emulator, body: Any, words: str) -> None:
        """400 INVALID_ARGUMENT, with the field in the message and in `details`."""
        with GeminiClient(emulator.url) as client:
            status, payload = client.post("generateContent", body)
        error = payload["error"]
        assert (status, error["status"]) == (400, "INVALID_ARGUMENT")
        assert words in error["message"]
        assert error["details"][0]["fieldViolations"][0]["description"] == error["message"]

    def test_an_unknown_method_is_told_which_there_are(self, emulator: Emulator) -> None:
        """404 NOT_FOUND that names the three."""
        with GeminiClient(emulator.url) as client:
            status, payload = client.post("embedContent", asking())
        assert status == 404
        assert "streamGenerateContent" in payload["error"]["message"]
