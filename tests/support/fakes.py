"""Stand-ins that the tests pass in: a clock that moves only when told, a model that says what it is told."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from mtllm.domain.completion import Answer, Instruction


class FakeClock:
    """Call it for the time in seconds; `advance` moves it. Serves as `clock`, `monotonic` and (advancing) `sleep`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    sleep = advance


class FakeModel:
    """Answers each call with the next of `answer_with` (raising the exceptions among them), then with `default`.

    `calls` are the instructions it got. Calls wait for `gate`, which is open until cleared.
    """

    def __init__(self, default: Answer) -> None:
        self.default = default
        self.calls: list[Instruction] = []
        self.gate = threading.Event()
        self.gate.set()
        self.finished = threading.Semaphore(0)
        self._script: deque[Answer | BaseException] = deque()
        self._joined: Callable[[], bool] | None = None
        self._called = threading.Condition()

    @property
    def model(self) -> str:
        return self.default.model

    def answer_with(self, *answers: Answer | BaseException) -> None:
        self._script.extend(answers)

    def release_after_joined(self, joined: Callable[[], bool]) -> None:
        """Hold calls until `joined()` holds instead of until the gate opens."""
        self._joined = joined

    def wait_for_calls(self, count: int) -> None:
        with self._called:
            assert self._called.wait_for(lambda: len(self.calls) >= count, timeout=10)

    def generate(self, instruction: Instruction, *, deadline: float, model: str = "") -> Answer:
        with self._called:
            self.calls.append(instruction)
            answer = self._script.popleft() if self._script else self.default
            self._called.notify_all()
        self._wait()
        self.finished.release()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stream(
        self, instruction: Instruction, *, gap_seconds: float, deadline: float, first_seconds: float, model: str = ""
    ) -> Any:
        raise NotImplementedError("streams are tested at the wire")

    def _wait(self) -> None:
        while self._joined is not None and not self._joined():
            threading.Event().wait(0.001)
        if self._joined is None:
            assert self.gate.wait(timeout=10)
