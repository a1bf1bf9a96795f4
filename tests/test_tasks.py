"""Tasks as data: what they take, what the model is told, what is read from its answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from mtllm import tasks
from mtllm.domain.completion import Answer, FinishReason, Instruction
from mtllm.domain.errors import InvalidJson, InvalidRequest, MaxOutputTokensTooSmall, UpstreamInvalidAnswer
from mtllm.project import PROJECT
from mtllm.settings import load_settings
from mtllm.tasks import TASK_BY_NAME, parse, strip_fence
from tests.support.scripted_gemini import ScriptedGemini, text

TEXT, CODE, CLASSIFY = (TASK_BY_NAME[name] for name in ("text", "code", "classify"))


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_defaults_are_the_tasks_own() -> None:
    """0.7 for text, 0.2 for code, 0 for classification."""
    asked = [
        parse(TEXT, body(prompt="x"), max_chars=9).instruction,
        parse(CODE, body(prompt="x"), max_chars=9).instruction,
        parse(CLASSIFY, body(text="x", categories=["a", "b"]), max_chars=9).instruction,
    ]
    assert [instruction.temperature for instruction in asked] == [0.7, 0.2, 0.0]
    assert [instruction.max_output_tokens for instruction in asked[:2]] == [2048, 2048]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "too long"}, "prompt"),
        ({"prompt": "x", "temperature": 2.1}, "temperature"),
        ({"prompt": "x", "temperature": "1"}, "temperature"),
        ({"prompt": "x", "temperature": True}, "temperature"),
        ({"prompt": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"prompt": "x", "max_output_tokens": 8193}, "max_output_tokens"),
        ({"prompt": "x", "max_output_tokens": 1.5}, "max_output_tokens"),
        ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "language": "python"}, "language"),
    ],
)
def test_each_bad_field_of_a_prompt_is_named(fields: dict[str, Any], field: str) -> None:
    """No coercion: JSON types as they are."""
    with pytest.raises(InvalidRequest) as caught:
        parse(TEXT, body(**fields), max_chars=5)
    assert [detail.field for detail in caught.value.details] == [field]


@pytest.mark.parametrize(
    "categories",
    ["abc", [], ["a"], ["a", "a"], ["a", ""], ["a", 1], ["a", "x" * 201], [str(n) for n in range(101)], ["a", "b\x00"]],
)
def test_categories_are_two_to_a_hundred_distinct_strings(categories: Any) -> None:
    """Of 1 to 200 characters."""
    with pytest.raises(InvalidRequest):
        parse(CLASSIFY, body(text="x", categories=categories), max_chars=5)


def test_labels_go_to_the_model_as_they_are_written() -> None:
    """Case and blanks around a label are kept."""
    job = parse(CLASSIFY, body(text="x", categories=["a", "B", " c"]), max_chars=5)
    assert job.instruction.labels == ("a", "B", " c")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}x', b"[" * 10_000])
def test_what_is_not_json_says_so(raw: bytes) -> None:
    """Lone surrogates are not text."""
    with pytest.raises(InvalidJson):
        parse(TEXT, raw, max_chars=5)


@pytest.mark.parametrize(
    ("raw", "where"),
    [(b'{"prompt": "x" x', "at line 1 column 16"), (b'{"prompt": "\\udc00"}', "lone leading surrogate")],
)
def test_what_is_not_json_says_where(raw: bytes, where: str) -> None:
    """Whoever wrote it finds the place, also in JSON that looks right."""
    with pytest.raises(InvalidJson, match=where):
        parse(TEXT, raw, max_chars=5)


@pytest.mark.parametrize(("fields", "told"), [({"more": 1}, "is not a field"), ({"language": "c;"}, "1 to 40 letters")])
def test_problems_are_told_in_words(fields: dict[str, Any], told: str) -> None:
    """Not in those of the library that found them; an exception that a Python caller prints names them too."""
    with pytest.raises(InvalidRequest, match=told):
        parse(CODE, body(prompt="x", **fields), max_chars=5)


def test_few_of_many_bad_fields_are_told() -> None:
    """The answer is bounded, whatever was sent."""
    with pytest.raises(InvalidRequest) as caught:
        parse(TEXT, body(prompt="x", **{f"{n:0300}": 1 for n in range(1000)}), max_chars=5)
    assert len(caught.value.details) == 20
    assert max(len(detail.field) for detail in caught.value.details) == 100


def test_the_bound_of_input_counts_what_the_body_does_not_hold() -> None:
    """No tokenizer makes more tokens than there are bytes of body, system instruction and schema."""
    raw = body(text="x", categories=["ä", "b"])
    job = parse(CLASSIFY, raw, max_chars=5)
    assert job.instruction.system is not None
    assert job.input_bound == len(raw) + len(job.instruction.system.encode()) + len("äb".encode())


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("plain", "plain"),
        ("```\nx\n```", "x"),
        ("  ```python\nx\n```  \n", "x"),
        ("````\n```\nx\n```\n````", "```\nx\n```"),
        ("```\n```", ""),
        ("```x```", "```x```"),
        ("```\nx\n``` and more", "```\nx\n``` and more"),
        ("```\nx", "```\nx"),
        ("~~~\nx\n~~~", "~~~\nx\n~~~"),
        ("Here it is:\n```\nx\n```", "Here it is:\n```\nx\n```"),
        ("```\nx\n````", "```\nx\n````"),
    ],
)
def test_unfenced(said: str, code: str) -> None:
    """One block around all of it, or nothing is changed."""
    assert strip_fence(said) == code


def test_a_cut_block_loses_its_opening_fence() -> None:
    """Where the token limit ended the answer there is no closing one."""
    assert strip_fence("```python\nx = ", truncated=True) == "x = "
    answer = Answer("```go\nx", "m", None, FinishReason.MAX_TOKENS)
    assert CODE.read(Instruction("p", 0, 1), answer) == "x"


@pytest.mark.parametrize(("said", "label"), [("a", "a"), (" b\n", "b"), ("  c ", "  c ")])
def test_a_label_is_spelled_as_given(said: str, label: str) -> None:
    """White space that the model added is not the label's."""
    instruction = Instruction("p", 0, 1, labels=("a", "b", "  c "))
    assert CLASSIFY.read(instruction, Answer(said, "m", None)) == label


@pytest.mark.parametrize(
    "said",
    ["Negative", "NEGATIVE.", '"negative"', "'negative'", "**negative**", "`negative`", "“Negative.”", "\uff4eegative"],
)
def test_a_label_in_other_dress_is_that_label(said: str) -> None:
    """Case, quotes, marks, a full stop and wide letters are the model's; the caller gets the label as written."""
    asked = Instruction("p", 0, 1, labels=("positive", "negative", "very negative"))
    assert CLASSIFY.read(asked, Answer(said, "m", None)) == "negative"


@pytest.mark.parametrize(("said", "label"), [("c++", "C++"), ("C", "C"), (".net", ".NET"), ("Net", "net")])
def test_labels_that_differ_in_marks_stay_apart(said: str, label: str) -> None:
    """The nearest spelling counts; only where one label alone is meant."""
    labels = ("C", "C++", ".NET") if label != "net" else ("C", "net")
    assert CLASSIFY.read(Instruction("p", 0, 1, labels=labels), Answer(said, "m", None)) == label


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        ("d", ("a", "b")),
        ("a", (" a", "a ")),
        ("", ("a", "b")),
        ("a, b", ("a", "b")),
        ("A", ("a.", '"a"')),
        ("not a", ("a", "b")),
    ],
)
def test_anything_else_is_no_answer(said: str, labels: tuple[str, ...]) -> None:
    """Never a label outside the list, nor a guess between two."""
    with pytest.raises(UpstreamInvalidAnswer):
        CLASSIFY.read(Instruction("p", 0, 1, labels=labels), Answer(said, "m", None))


def test_a_fourth_task_is_one_entry_and_one_model(environment: dict[str, str], gemini: ScriptedGemini) -> None:
    """The example of docs/architecture.md, as it is written there."""
    [example] = re.findall(
        r"```python\n(class Summarize.*?)```", (PROJECT / "docs" / "architecture.md").read_text(), re.DOTALL
    )
    definitions, entry = example.split("\n\n\nTask(")
    scope = dict(vars(tasks))
    exec(definitions, scope)
    summarize = eval(f"Task({entry}", scope)
    app = create_app(load_settings(environment, env_file=None), (*tasks.TASKS, summarize))
    client: FlaskClient = app.test_client()
    gemini.answers(text("Short."))
    answer = client.post("/api/v1/summarize/text", json={"text": "Long.", "sentences": 1})
    again = client.post("/api/v1/summarize/text", json={"text": "Long.", "sentences": 1})
    stats: Any = client.get("/stats").json
    document: Any = client.get("/api/v1/openapi.json").json
    app.service.close()
    assert answer.json is not None
    assert answer.json["summary"] == "Short."
    assert again.headers["X-Cached"] == "true"
    assert "at most 1 sentences" in (gemini.calls[0].system or "")
    assert stats["requests_by_task"]["summarize"] == {"paid": 1, "hit": 1, "shared": 0, "stale": 0, "errors": {}}
    assert document["paths"]["/api/v1/summarize/text"]["post"]["operationId"] == "summarize_text"
    assert "SummarizeResponse" in document["components"]["schemas"]


@pytest.mark.parametrize("numbers", [("0", "0.0", "-0.0", "-0", "0e0"), ("1", "1.0", "10e-1")])
def test_equal_numbers_are_one_key(numbers: tuple[str, ...]) -> None:
    """However a temperature is written, the same number asks the same question."""
    jobs = [parse(TEXT, b'{"prompt": "x", "temperature": %s}' % number.encode(), max_chars=9) for number in numbers]
    assert len({job.key("model") for job in jobs}) == 1


def test_the_endpoint_is_part_of_the_key() -> None:
    """Another server's answer is another answer; no endpoint is Google's."""
    job = parse(TEXT, body(prompt="x"), max_chars=9)
    endpoints = ("", "http://127.0.0.1:9100", "http://127.0.0.1:9100/v1")
    assert len({job.key("model", "", endpoint) for endpoint in endpoints}) == 3
    assert job.key("model", "", "") == job.key("model")
    assert job.key("model", "a", "b") != job.key("model", "b", "a")


def test_a_label_cut_short_is_no_label() -> None:
    """What the token limit cut may be the beginning of a longer label."""
    asked = Instruction("p", 0, 1, labels=("negative", "positive", "positive-strong"))
    with pytest.raises(MaxOutputTokensTooSmall):
        CLASSIFY.read(asked, Answer("positive", "m", None, FinishReason.MAX_TOKENS))
