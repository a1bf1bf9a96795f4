"""LiteLLM, which writes snake_case."""

import litellm
from harness import CLOSED, LABELS, URL, holds, refused, run, same
from pydantic import BaseModel

MODEL = "gemini-2.5-flash"
"""It sends system instructions and schemas only to names that its own table knows."""


class Person(BaseModel):
    name: str
    age: int


def complete(messages, model=MODEL, **how):
    base = f"{URL}/v1beta"
    return litellm.completion(model=f"gemini/{model}", messages=messages, api_key="k", api_base=base, **how)


def ask(prompt, model=MODEL, **how):
    messages = [{"role": "user", "content": prompt}]
    return complete(messages, model, **how)


def said(*arguments, **how):
    return ask(*arguments, **how).choices[0].message.content


def limit():
    messages = [{"role": "system", "content": "You write code."}, {"role": "user", "content": "x"}]
    holds(complete(messages).choices[0].message.content, "```python")
    same(ask("x", max_tokens=5).choices[0].finish_reason, "length")


def enum():
    schema = {"name": "mood", "schema": {"type": "string", "enum": LABELS}}
    same(said("I love it", response_format={"type": "json_schema", "json_schema": schema}), '"positive"')


def tools():
    function = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    answer = ask("weather?", tools=[{"type": "function", "function": function}], tool_choice="required")
    same(answer.choices[0].message.tool_calls[0].function.name, "weather")


run(
    text=lambda: holds(said("hello"), "canned"),
    stream=lambda: holds("".join(one.choices[0].delta.content or "" for one in ask("hello", stream=True)), "canned"),
    limit=limit,
    json=lambda: same(Person.model_validate_json(said("x", response_format=Person)).age, 1),
    enum=enum,
    tools=tools,
    error=lambda: refused(lambda: ask("x", model=CLOSED)),
)
