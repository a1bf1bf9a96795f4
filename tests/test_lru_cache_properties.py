"""LRUCache against a model of ten lines, over random operations."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from lru_cache import LRUCache
from tests.support.fakes import FakeClock

KEYS = st.sampled_from("abcdef")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("put"), KEYS, st.integers(0, 12), st.sampled_from([None, 0, 1, 5, 30])),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("advance"), st.integers(0, 12)),
        st.tuples(st.just("clear")),
    ),
    max_size=80,
)


class Model:
    """What an LRU cache is, as a list of (key, value, expires), oldest use first; a value weighs itself."""

    def __init__(self, max_size: int, max_bytes: int, ttl: int) -> None:
        self.max_size, self.max_bytes, self.ttl, self.now = max_size, max_bytes, ttl, 0
        self.entries: list[tuple[str, int, int]] = []

    def get(self, key: str) -> int | None:
        entry = next((entry for entry in self.entries if entry[0] == key), None)
        self.delete(key)
        if entry is None or self.now >= entry[2]:
            return None
        self.entries.append(entry)
        return entry[1]

    def put(self, key: str, value: int, ttl: int | None) -> bool:
        self.delete(key)
        ttl = self.ttl if ttl is None else ttl
        kept = ttl > 0 and value <= self.max_bytes
        if kept:
            self.entries.append((key, value, self.now + ttl))
        while len(self.entries) > self.max_size or sum(entry[1] for entry in self.entries) > self.max_bytes:
            del self.entries[0]
        return kept

    def delete(self, key: str) -> bool:
        before = len(self.entries)
        self.entries = [entry for entry in self.entries if entry[0] != key]
        return len(self.entries) < before

    def advance(self, seconds: int) -> None:
        self.now += seconds

    def clear(self) -> int:
        size = len(self.entries)
        self.entries = []
        return size


@settings(max_examples=150, deadline=None)
@given(max_size=st.integers(0, 5), max_bytes=st.integers(0, 30), operations=OPERATIONS)
def test_the_cache_does_what_the_model_does(max_size: int, max_bytes: int, operations: list[tuple[Any, ...]]) -> None:
    """Every operation answers as the model's; the bounds hold after each; hits and misses add up to the gets."""
    clock = FakeClock(0.0)
    cache = LRUCache[str, int](max_size, 10, max_bytes=max_bytes, weigh=lambda value: value, monotonic=clock)
    model = Model(max_size, max_bytes, ttl=10)
    gets = 0
    for name, *arguments in operations:
        if name == "advance":
            clock.advance(*arguments)
            model.advance(*arguments)
            continue
        assert getattr(cache, name)(*arguments) == getattr(model, name)(*arguments)
        gets += name == "get"
        stats = cache.get_stats()
        assert stats["size"] == cache.size() == len(model.entries) <= max_size
        assert stats["bytes"] == sum(value for _, value, _ in model.entries) <= max_bytes
        assert stats["hits"] + stats["misses"] == gets
