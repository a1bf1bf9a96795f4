"""The emulator as a server: its life, its clients, its command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtllm.emulator import Emulator
from mtllm.emulator.command import parse_options
from tests.gemini_client import GeminiClient, answer_to, asking, said


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


PROJECT = Path(__file__).resolve().parent.parent


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
    def test_its_options_shape_the_answers(self, options: list[str], pieces: int) -> None:
        """`--chunks` is how many pieces a stream has, `--latency` delays them and changes nothing else."""
        with parse_options(["--port", "0", *options]) as emulator, GeminiClient(emulator.url) as client:
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
