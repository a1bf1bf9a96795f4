"""Google's SDK of today."""

import enum as enums

from google import genai
from google.genai import types
from harness import CLOSED, LABELS, MODEL, URL, holds, refused, run, same
from pydantic import BaseModel, Field

client = genai.Client(api_key="k", http_options={"base_url": URL})
Mood = enums.Enum("Mood", {label: label for label in LABELS})


class Person(BaseModel):
    name: str
    age: int = Field(ge=18)
    friends: list["Person"] | None = None


def weather(city: str) -> str:
    """Tell the weather."""
    return city


def ask(prompt, **config):
    return client.models.generate_content(model=MODEL, contents=prompt, config=config)


def stream():
    pieces = client.models.generate_content_stream(model=MODEL, contents="hello")
    same(len([piece.text for piece in pieces]), 4)


async def text():
    holds(ask("hello").text, "canned")
    answer = await client.aio.models.generate_content(model=MODEL, contents="hello")
    holds(answer.text, "canned")


def limit():
    holds(ask("x", system_instruction="You write code.").text, "```python")
    same(ask("x", max_output_tokens=5).candidates[0].finish_reason.name, "MAX_TOKENS")


def structured():
    plain = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}
    same(ask("x", response_mime_type="application/json", response_schema=plain).parsed, {"n": 1})
    schema = Person.model_json_schema()
    Person.model_validate_json(ask("x", response_mime_type="application/json", response_json_schema=schema).text)


def enum():
    answer = ask("I love it", response_mime_type="text/x.enum", response_schema=Mood)
    same(answer.parsed, Mood.positive)
    schema = {"type": "string", "enum": LABELS}
    same(ask("I hate it", response_mime_type="text/x.enum", response_json_schema=schema).text, "negative")


def tools():
    answer = ask(
        "weather?",
        tools=[weather],
        tool_config={"function_calling_config": {"mode": "ANY"}},
        automatic_function_calling={"disable": True},
    )
    same(answer.function_calls[0].name, "weather")


def thinking():
    config = types.ThinkingConfig(include_thoughts=True)
    answer = client.models.generate_content(model="level-model", contents="x", config={"thinking_config": config})
    same(answer.usage_metadata.thoughts_token_count, 256)
    same(answer.candidates[0].content.parts[0].thought, True)


run(
    text=text,
    stream=stream,
    limit=limit,
    json=structured,
    enum=enum,
    tools=tools,
    count=lambda: same(client.models.count_tokens(model=MODEL, contents="hello").total_tokens, 2),
    models=lambda: holds([one.name for one in client.models.list()], MODEL),
    thinking=thinking,
    error=lambda: refused(lambda: client.models.generate_content(model=CLOSED, contents="x")),
)
