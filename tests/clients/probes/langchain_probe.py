"""LangChain's ChatGoogleGenerativeAI."""

from harness import CLOSED, LABELS, MODEL, URL, holds, refused, run, same
from langchain_google_genai import ChatGoogleGenerativeAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def chat(model=MODEL, **how):
    return ChatGoogleGenerativeAI(model=model, google_api_key="k", base_url=URL, max_retries=1, **how)


def limit():
    holds(chat().invoke([("system", "You write code."), ("human", "x")]).content, "```python")
    same(chat(max_tokens=5).invoke("x").response_metadata["finish_reason"], "MAX_TOKENS")


def enum():
    schema = {"title": "Mood", "type": "string", "enum": LABELS}
    answer = chat(response_mime_type="application/json", response_schema=schema).invoke("I love it")
    same(answer.content, '"positive"')


run(
    text=lambda: holds(chat().invoke("hello").content, "canned"),
    stream=lambda: holds("".join(piece.text for piece in chat().stream("hello")), "canned"),
    limit=limit,
    json=lambda: same(chat().with_structured_output(Person, method="json_schema").invoke("x").age, 1),
    enum=enum,
    tools=lambda: same(chat().with_structured_output(Person, method="function_calling").invoke("x").age, 1),
    count=lambda: same(chat().get_num_tokens("hello"), 2),
    error=lambda: refused(lambda: chat(CLOSED).invoke("x")),
)
