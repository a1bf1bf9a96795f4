"""The interfaces of a model and of a cache, as the flow uses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mtllm.domain.completion import Answer, CacheHit, Instruction, StoredAnswer


class AnswerStream(Protocol):
    """An answer that is still coming: deltas while it is iterated, the whole `answer` when that ends."""

    @property
    def answer(self) -> Answer: ...
    @property
    def model(self) -> str: ...

    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def partial_answer(self) -> Answer: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class Model(Protocol):
    """The interface of whoever answers for models. `deadline` is in monotonic seconds; failures `UpstreamFailure`s."""

    def generate(self, instruction: Instruction, *, deadline: float, model: str = "") -> Answer: ...
    def stream(
        self, instruction: Instruction, *, gap_seconds: float, deadline: float, first_seconds: float, model: str = ""
    ) -> AnswerStream: ...


class TokenCounting(Protocol):
    """The interface of whoever counts an instruction's tokens for nothing; `deadline` is in monotonic seconds."""

    def count_tokens(self, model: str, instruction: Instruction, *, deadline: float) -> int: ...


class AnswerCache(Protocol):
    """The interface of the response cache: this process's, or one shared by many."""

    def look_up(self, key: bytes, *, max_age: float | None = None) -> CacheHit | None: ...
    def look_up_stale(self, key: bytes) -> CacheHit | None: ...
    def store(self, key: bytes, answer: StoredAnswer) -> bool: ...
    def count_shared_hit(self, *, missed: bool = True) -> None: ...
