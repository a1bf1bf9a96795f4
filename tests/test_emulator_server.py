"""The emulator as a server: its life, its clients, its command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import FAULTS, Emulator
from mtllm.emulator.command import main, parse_options
from mtllm.project import PROJECT
from tests.support.gemini_client import GeminiClient, answer_to, asking, said


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


class TestLife:
    def test_closing_ends_idle_connections_and_threads(self) -> None:
        """After close, no thread of the server is left and its port refuses."""
        emulator = Emulator().start()
        with GeminiClient(emulator.url) as idle:
            idle.post("generateContent", asking())
            emulator.close()
            assert not [one for one in threading.enumerate() if one.name.startswith("gemini-emulator")]
            emulator.close()
        with GeminiClient(emulator.url) as late, pytest.raises(OSError):  # noqa: PT011  (refused or reset)
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
            with GeminiClient(emulator.url) as client:
                client.connection.connect()
                client.connection.sock.sendall(
                    b"POST /v1beta/models/m:generateContent HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
                )
            with GeminiClient(emulator.url) as client:
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
    def test_options_shape_the_answers(self, options: list[str], pieces: int) -> None:
        """`--chunks` is how many pieces a stream has, `--latency` delays them and changes nothing else."""
        with parse_options(["--port", "0", *options]) as emulator, GeminiClient(emulator.url) as client:
            _, stream = client.post("streamGenerateContent", asking())
            _, plain = client.post("generateContent", asking())
        assert len(stream) == pieces
        assert "".join(map(said, stream)) == said(plain)

    def test_the_emulator_serves_by_itself(self) -> None:
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


class TestCommandLine:
    def test_models_and_faults_are_options(self) -> None:
        """`--model` and `--fail` may be repeated."""
        options = ["--port", "0", "--model", "old=closed", "--model", "odd=swapped:new", "--fail", "503@100%"]
        with parse_options(options) as emulator, GeminiClient(emulator.url) as client:
            assert client.post("generateContent", asking(), model="old")[0] == 404
            assert client.post("generateContent", asking(), model="any")[0] == 503

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--model", "x=open"], "there are served, closed"),
            (["--fail", "503"], "such as 429@10%"),
            (["--fail", "teapot@1%"], "is no fault; there are 400"),
            (["--fail", "500@60%", "--fail", "503@60%"], "more than 100%"),
            (["--latency", "-1"], "from 0 to 3600"),
            (["--port", "x"], "invalid int value"),
        ],
    )
    def test_a_bad_option_is_told(self, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Status 2, and a sentence that says what would be right."""
        with pytest.raises(SystemExit) as left:
            main(options)
        assert left.value.code == 2
        assert words in capsys.readouterr().err

    def test_a_port_in_use_is_told(self, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
        """Status 1, without a traceback."""
        assert main(["--port", str(urlsplit(emulator.url).port)]) == 1
        assert "Try --port 0" in capsys.readouterr().err

    def test_help_names_roles_and_magic(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What a first reader needs."""
        with pytest.raises(SystemExit):
            main(["--help"])
        told = capsys.readouterr().out
        assert "swapped:OTHER" in told
        assert "[[emulate: FAULT]]" in told

    def test_the_faults_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A line each, and the page about the emulator has the same lines."""
        with pytest.raises(SystemExit) as left:
            main(["--list-faults"])
        assert not left.value.code
        lines = capsys.readouterr().out.splitlines()
        page = (PROJECT / "docs" / "emulator.md").read_text()
        assert len(lines) == len(FAULTS)
        assert all(line in page for line in lines)
