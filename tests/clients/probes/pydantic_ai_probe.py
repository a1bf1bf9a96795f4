"""pydantic-ai, whose structured output is a forced function call, JSON mode or a prompt."""

import enum

from harness import CLOSED, LABELS, MODEL, URL, holds, refused, run, same
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google import GoogleProvider

provider = GoogleProvider(api_key="k", base_url=URL)


class Person(BaseModel):
    name: str
    age: int


Mood = enum.Enum("Mood", {label: label for label in LABELS})


def agent(name=MODEL, **how):
    return Agent(GoogleModel(name, provider=provider), **how)


async def stream():
    async with agent().run_stream("hello") as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    holds("".join(pieces), "canned")


def limit():
    holds(agent(instructions="You write code.").run_sync("x").output, "```python")
    same(agent().run_sync("x", model_settings={"max_tokens": 5}).output, "This is a canned ans")


run(
    text=lambda: holds(agent().run_sync("hello").output, "canned"),
    stream=stream,
    limit=limit,
    json=lambda: same(type(agent(output_type=NativeOutput(Person)).run_sync("x").output), Person),
    enum=lambda: same(agent(output_type=NativeOutput(Mood)).run_sync("I love it").output, Mood.positive),
    tools=lambda: same(type(agent(output_type=Person).run_sync("x").output), Person),
    error=lambda: refused(lambda: agent(CLOSED).run_sync("x")),
)
