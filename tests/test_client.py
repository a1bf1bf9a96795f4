"""`mtllm.client` against the service behind a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from app import Api
from mtllm.client import AsyncClient, Client, Refused, Reply, Unreachable
from tests.support.scripted_gemini import ScriptedGemini
from tests.support.serving import free_port, serving


@pytest.fixture
def url(make_app: Callable[..., Api]) -> Iterator[str]:
    """The address of a service that allows three requests a second."""
    with serving(make_app(RATE_LIMITS="3/second")) as port:
        yield f"http://127.0.0.1:{port}"


def test_each_task_answers_with_its_cost(url: str, gemini: ScriptedGemini) -> None:
    """A first answer is paid for, its repetition is not, and the session's sum says so."""
    with Client(url) as client:
        first, again = client.generate_text("one"), client.generate_text("one")
        assert (first.cached, again.cached, again.cost) == (False, True, 0)
        assert first.cost > 0
        assert first.text == again.text
        assert client.spent == first.cost


def test_an_error_is_told_by_its_code(url: str) -> None:
    """What the service refuses is not sent again, and its message names the field."""
    with (
        Client(url, sleep=lambda _: pytest.fail("it waits")) as client,
        pytest.raises(Refused, match="prompt") as refused,
    ):
        client.generate_text("")
    assert (refused.value.code, refused.value.status) == ("invalid_request", 400)


def test_retry_after_is_obeyed_within_patience(make_app: Callable[..., Api]) -> None:
    """The client waits as long as it was told; where that is too long the caller learns it at once."""
    waits: list[float] = []

    class Asleep(Exception):
        """Ends the call at its first wait."""

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise Asleep

    with serving(make_app(RATE_LIMITS="1/minute")) as port:
        with Client(f"http://127.0.0.1:{port}", sleep=sleep) as client:
            client.generate_text("one")
            with pytest.raises(Asleep):
                client.generate_text("two")
        with (
            Client(f"http://127.0.0.1:{port}", patience=0, sleep=sleep) as client,
            pytest.raises(Refused) as refused,
        ):
            client.generate_text("two")
    assert refused.value.code == "rate_limited"
    assert len(waits) == 1
    assert 1 <= waits[0] <= 60


def test_a_service_that_is_not_there() -> None:
    """It is asked again within patience, then the caller is told."""
    waits: list[float] = []
    with (
        Client(f"http://127.0.0.1:{free_port()}", patience=4, sleep=waits.append) as client,
        pytest.raises(Unreachable, match="did not answer"),
    ):
        client.generate_text("one")
    assert waits == [0.5, 1, 2]


def test_a_stream_ends_with_the_whole_reply(url: str) -> None:
    """The pieces joined are the text of the reply, and its cost is the session's."""
    with Client(url) as client:
        *pieces, reply = client.stream_text("one")
        assert isinstance(reply, Reply)
        assert "".join(map(str, pieces)) == reply.text
        assert client.spent == reply.cost > 0


def test_the_asynchronous_client_does_the_same(url: str) -> None:
    """Plain and streamed answers, and errors, as from the plain client."""

    async def ask() -> None:
        async with AsyncClient(url) as client:
            reply = await client.generate_text("one")
            told = [said async for said in client.stream_text("one")]
            assert isinstance(told[-1], Reply)
            assert told[-1].text == reply.text
            with pytest.raises(Refused):
                await client.classify_text("one", [])

    asyncio.run(ask())
