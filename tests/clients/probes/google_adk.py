"""Google's Agent Development Kit."""

import os

os.environ.update(GOOGLE_GEMINI_BASE_URL=os.environ["GEMINI_URL"], GOOGLE_API_KEY="k")

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import InMemoryRunner
from google.genai import types
from harness import holds, run, same
from pydantic import BaseModel

MODEL, CLOSED = "gemini-any", "gemini-closed"
"""It takes names that begin with gemini."""


class Person(BaseModel):
    name: str
    age: int


async def ask(prompt, mode=StreamingMode.NONE, **how):
    agent = LlmAgent(name="probe", **{"model": MODEL, **how})
    runner = InMemoryRunner(agent=agent, app_name="probe")
    session = await runner.session_service.create_session(app_name="probe", user_id="u")
    message = types.Content(role="user", parts=[types.Part(text=prompt)])
    config = RunConfig(streaming_mode=mode)
    return [
        event
        async for event in runner.run_async(user_id="u", session_id=session.id, new_message=message, run_config=config)
    ]


def said(events):
    return "".join(part.text or "" for event in events if event.content for part in event.content.parts)


async def text():
    holds(said(await ask("hello")), "canned")


async def stream():
    events = await ask("hello", StreamingMode.SSE)
    same(sum(bool(event.partial) for event in events), 4)


async def limit():
    holds(said(await ask("x", instruction="You write code.")), "```python")
    config = types.GenerateContentConfig(max_output_tokens=5)
    same((await ask("x", generate_content_config=config))[-1].finish_reason.name, "MAX_TOKENS")


async def structured():
    same(Person.model_validate_json(said(await ask("x", output_schema=Person))).age, 1)


async def error():
    try:
        events = await ask("x", model=CLOSED)
    except Exception as problem:
        holds(problem, "no longer available")
    else:
        holds(events[-1].error_message, "no longer available")


run(text=text, stream=stream, limit=limit, json=structured, error=error)
