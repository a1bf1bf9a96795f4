"""What the flow needs of a model and of a cache, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lru_cache import Found, StoredAnswer
from tasks import Answer, Instruction


class AnswerStream(Protocol):
    """An answer that is still coming: deltas while it is iterated, the whole `answer` when that ends."""

    @property
    def answer(self) -> Answer: ...

    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def partial_answer(self) -> Answer: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class Model(Protocol):
    """What the flow needs of a model. `deadline` is in monotonic seconds; failures are `UpstreamFailure`s."""

    def generate(self, instruction: Instruction, *, deadline: float) -> Answer: ...
    def stream(
        self, instruction: Instruction, *, gap_seconds: float, deadline: float, first_seconds: float
    ) -> AnswerStream: ...


class AnswerCache(Protocol):
    """What the flow needs of the response cache: this process's, or one shared by many."""

    def look_up(self, key: bytes, *, max_age: float | None = None) -> Found | None: ...
    def look_up_stale(self, key: bytes) -> Found | None: ...
    def store(self, key: bytes, answer: StoredAnswer) -> bool: ...
    def count_shared_hit(self, *, missed: bool = True) -> None: ...
