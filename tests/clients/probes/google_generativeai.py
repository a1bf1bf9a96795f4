"""The SDK that the service is built on."""

import google.generativeai as genai
from harness import CLOSED, LABELS, MODEL, URL, holds, refused, run, same

genai.configure(api_key="k", transport="rest", client_options={"api_endpoint": URL})
model = genai.GenerativeModel(MODEL)


def weather(city: str) -> str:
    """Tell the weather."""
    return city


def ask(prompt, **config):
    return model.generate_content(prompt, generation_config=config)


def stream():
    same(len([piece.text for piece in model.generate_content("hello", stream=True)]), 4)


def limit():
    limited = genai.GenerativeModel(MODEL, system_instruction="You write code.")
    holds(limited.generate_content("x").text, "```python")
    same(ask("x", max_output_tokens=5).candidates[0].finish_reason.name, "MAX_TOKENS")


def structured():
    schema = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}
    same(ask("x", response_mime_type="application/json", response_schema=schema).text, '{"n": 1}')


def enum():
    schema = {"type": "STRING", "enum": LABELS}
    same(ask("I love it", response_mime_type="text/x.enum", response_schema=schema).text, "positive")


def tools():
    rule = {"function_calling_config": {"mode": "ANY"}}
    answer = model.generate_content("weather?", tools=[weather], tool_config=rule)
    same(answer.candidates[0].content.parts[0].function_call.name, "weather")


run(
    text=lambda: holds(ask("hello").text, "canned"),
    stream=stream,
    limit=limit,
    json=structured,
    enum=enum,
    tools=tools,
    count=lambda: same(model.count_tokens("hello").total_tokens, 2),
    models=lambda: holds([one.name for one in genai.list_models()], MODEL),
    error=lambda: refused(lambda: genai.GenerativeModel(CLOSED).generate_content("x")),
)
