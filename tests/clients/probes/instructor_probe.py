"""instructor over google-genai, by forced function calls and by JSON mode."""

import instructor
from google import genai
from harness import CLOSED, MODEL, URL, refused, run, same
from pydantic import BaseModel

client = genai.Client(api_key="k", http_options={"base_url": URL})


class Person(BaseModel):
    name: str
    age: int


def ask(mode, model=MODEL):
    made = instructor.from_genai(client, mode=mode)
    messages = [{"role": "user", "content": "who?"}]
    return made.chat.completions.create(model=model, response_model=Person, messages=messages, max_retries=1)


def stream():
    made = instructor.from_genai(client, mode=instructor.Mode.GENAI_STRUCTURED_OUTPUTS)
    messages = [{"role": "user", "content": "who?"}]
    partial = made.chat.completions.create_partial(model=MODEL, response_model=Person, messages=messages)
    same(list(partial)[-1].age, 1)


run(
    stream=stream,
    json=lambda: same(ask(instructor.Mode.GENAI_STRUCTURED_OUTPUTS).age, 1),
    tools=lambda: same(ask(instructor.Mode.GENAI_TOOLS).age, 1),
    error=lambda: refused(lambda: ask(instructor.Mode.GENAI_TOOLS, CLOSED)),
)
