"""The tasks of this API as data: where each is reached, what it takes, what the model is told, how its answer is read.

A task is one entry in `TASKS` and one request model; everything else (routes, cache, money, headers, OpenAPI) follows
from the entry.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from mtllm.domain.completion import AS_IS, Answer, FinishReason, Instruction, Terms
from mtllm.domain.errors import (
    MAX_FIELD_NAME_CHARS,
    MAX_REPORTED_FIELDS,
    ApiError,
    FieldError,
    InvalidJson,
    InvalidRequest,
    MaxOutputTokensTooSmall,
    UpstreamInvalidAnswer,
)
from mtllm.domain.thinking import ThinkingLevel
from mtllm.json_schema import find_misfit, find_schema_problem

MAX_CATEGORIES = 100
MAX_CATEGORY_CHARS = 200
MAX_OUTPUT_TOKENS = 8192
CLASSIFY_OUTPUT_TOKENS = 1024  # a label is short, but a thinking model pays its thoughts from the same limit


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    return text


def require_words(text: str) -> str:
    """Return `text`, or raise ValueError when it is only white space or holds NUL."""
    if text.isspace():
        raise ValueError("must contain more than white space")
    return _no_nul(text)


def require_distinct(labels: list[str]) -> list[str]:
    """Return `labels`, or raise ValueError when two differ in no more than case and blanks around them."""
    if len({label.strip().casefold() for label in labels}) != len(labels):
        raise ValueError("must be distinct, in more than case and blanks around them")
    return labels


Words = Annotated[str, Field(min_length=1, examples=["A text of any length."]), AfterValidator(require_words)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CATEGORY_CHARS), AfterValidator(require_words)]
Labels = Annotated[list[Label], Field(min_length=2, max_length=MAX_CATEGORIES), AfterValidator(require_distinct)]


def _accept_whole_float(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class AnswerOptions(NamedTuple):
    """What only the shape of an answer hangs on: a forced function, and whether a stream tells its usage at the end."""

    function: str = ""
    include_usage: bool = False


WholeNumber = Annotated[int, BeforeValidator(_accept_whole_float)]
"""An integer; JSON knows numbers only, and some clients write 10 as 10.0."""


_NO_OPTIONS = AnswerOptions()

Thinking = Annotated[ThinkingLevel, Field(strict=False)]
"""One of the levels, as a string."""


class TaskRequest(BaseModel):
    """The base of every request model: JSON types as they are (no coercion), unknown fields refused."""

    # Only names are worth pydantic's string cache, which would otherwise hold on to the last 16,384 short prompts.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, cache_strings="keys")

    model: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="The model that is to answer, one of those that this service allows; left out, its own choice.",
        examples=["gemini-2.5-flash-lite"],
    )
    dry_run: bool = Field(False, description="Tell what the request would cost at most, and ask nothing.")

    @property
    def own_limit(self) -> bool:
        """Return whether the limit of output tokens is ours and not the caller's."""
        return "max_output_tokens" not in self.model_fields_set

    @property
    def tag(self) -> str:
        """Return the caller's word for what the request belongs to, where the body has one."""
        return ""

    @property
    def options(self) -> AnswerOptions:
        """Return what the shape of the answer hangs on."""
        return _NO_OPTIONS


class GenerateTextRequest(TaskRequest):
    """Body of POST /api/v1/generate/text."""

    prompt: Words = Field(
        description="Goes to the model unchanged.", examples=["Explain HTTP caching in two sentences."]
    )
    temperature: float = Field(0.7, ge=0, le=2, allow_inf_nan=False, description="0 is the most repeatable.")
    max_output_tokens: WholeNumber = Field(2048, ge=1, le=MAX_OUTPUT_TOKENS, description="Thinking counts towards it.")
    thinking: Thinking | None = Field(
        None, description="How much the model may think; left out, GEMINI_THINKING. Thoughts are paid for as output."
    )
    stream: bool = Field(False, description="Answer as server-sent events.")


class GenerateCodeRequest(GenerateTextRequest):
    """Body of POST /api/v1/generate/code."""

    prompt: Words = Field(description="What the code shall do.", examples=["A function that reverses a string."])
    temperature: float = Field(0.2, ge=0, le=2, allow_inf_nan=False, description="0 is the most repeatable.")
    language: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9+#._ -]{1,40}$",
        description="The programming language of the answer; left out, the model chooses.",
        examples=["python"],
    )


class ClassifyTextRequest(TaskRequest):
    """Body of POST /api/v1/classify/text."""

    text: Words = Field(description="What is to be classified.", examples=["I love this product!"])
    categories: Labels = Field(
        description="The labels to choose from, distinct in more than case and blanks around them.",
        examples=[["positive", "negative"]],
    )


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return `schema`, or raise ValueError when it is no JSON schema."""
    problem = find_schema_problem(schema)
    if problem:
        raise ValueError(problem)
    return schema


def require_fit(text: str, schema: str) -> str:
    """Return `text`, or raise UpstreamInvalidAnswer when it is no JSON that fits `schema` (as JSON; empty: any)."""
    misfit = find_misfit(text, schema)
    if misfit:
        raise UpstreamInvalidAnswer(f"Gemini's answer could not be used: {misfit}.")
    return text


class ExtractJsonRequest(TaskRequest):
    """Body of POST /api/v1/extract/json."""

    text: Words = Field(description="What is to be read.", examples=["Ann Lee, 31, joined in May 2024 as an engineer."])
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] = Field(
        description="The JSON schema (draft 2020-12) that the answer must fit.",
        examples=[
            {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}},
                "required": ["name", "age"],
            }
        ],
    )
    max_output_tokens: WholeNumber = Field(2048, ge=1, le=MAX_OUTPUT_TOKENS, description="Thinking counts towards it.")


def _extract_instruction(request: Any) -> Instruction:
    system = "Read from the text of the user what the JSON schema asks for. Invent nothing that it does not say."
    schema = json.dumps(request.json_schema)
    return Instruction(request.text, 0.0, request.max_output_tokens, system=system, json_schema=schema)


def _fitting_json(instruction: Instruction, answer: Answer) -> str:
    if answer.finish_reason is FinishReason.MAX_TOKENS:
        raise MaxOutputTokensTooSmall("Gemini used up its output tokens before the JSON was complete.")
    return require_fit(answer.text, instruction.json_schema or "")


def _text_instruction(request: Any) -> Instruction:
    return Instruction(request.prompt, request.temperature, request.max_output_tokens)


def _code_instruction(request: Any) -> Instruction:
    language = f" in {request.language}" if request.language else ""
    system = f"You write code{language}. Answer with the code only, in one fenced block, without explanations."
    return Instruction(request.prompt, request.temperature, request.max_output_tokens, system=system)


def _classify_instruction(request: Any) -> Instruction:
    labels = tuple(request.categories)
    system = (
        "Classify the text of the user into exactly one of these categories and answer with that category alone. "
        f"The categories, as a JSON list: {json.dumps(labels, ensure_ascii=False)}"
    )
    return Instruction(request.text, 0.0, CLASSIFY_OUTPUT_TOKENS, system=system, labels=labels)


def _as_is(_instruction: Instruction, answer: Answer) -> str:
    return answer.text


OPENING_FENCE = re.compile(r"\A\s*(?P<ticks>`{3,})[^\n`]*\n")


def strip_fence(text: str, *, truncated: bool = False) -> str:
    """Return the code inside one fenced block that wraps all of `text`; anything else comes back as it is.

    With `truncated`, a block whose closing fence was cut off counts as wrapping too.
    """
    opening = OPENING_FENCE.match(text)
    if opening is None:
        return text
    ticks, body = opening["ticks"], text[opening.end() :]
    lines = body.rstrip().split("\n")
    fences = [number for number, line in enumerate(lines) if line.strip().startswith(ticks)]
    if fences == [len(lines) - 1] and lines[-1].strip() == ticks:
        return "\n".join(lines[:-1])
    return body if truncated and not fences else text


def _code_only(_instruction: Instruction, answer: Answer) -> str:
    return strip_fence(answer.text, truncated=answer.finish_reason is FinishReason.MAX_TOKENS)


def _one_of_the_labels(instruction: Instruction, answer: Answer) -> str:
    if answer.finish_reason is FinishReason.MAX_TOKENS:  # it may be the beginning of a longer label
        raise MaxOutputTokensTooSmall("Gemini used up its output tokens before the category was complete.")
    if answer.text in instruction.labels:
        return answer.text
    for reduce in (str.strip, _plain):
        meant = [label for label in instruction.labels if reduce(label) == reduce(answer.text)]
        if len(meant) == 1:
            return meant[0]
    raise UpstreamInvalidAnswer("Gemini's answer was not one of the categories.")


def _plain(label: str) -> str:
    """Return a label without what a model adds: capitals, quotes and marks around it, a full stop, wide letters."""
    return unicodedata.normalize("NFKC", label).strip(_AROUND_LABELS).casefold()


_AROUND_LABELS = " \t\r\n\"'`*_.\u00a0\u2018\u2019\u201c\u201d\u00ab\u00bb"


Shape = Literal["own", "openai"]


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of work: what the edge, the flow and the documentation need to know of it."""

    name: str
    """Short and stable: the task's name in the ledger, the logs, the metrics and the cache key."""
    path: str
    summary: str
    request_model: type[TaskRequest]
    prompt_field: str
    """The field of the request that holds the prompt; MAX_PROMPT_CHARS bounds it."""
    answer_field: str
    """The key of the answer in the response body."""
    instruct: Callable[[Any], Instruction]
    read: Callable[[Instruction, Answer], str]
    """The answer as the caller gets it; raises an ApiError for one that must not be passed on."""
    template_version: int = 1
    """Part of the cache key: raise it when `instruct` changes what the model is told."""
    thinking: ThinkingLevel | None = None
    """The level at which this task is always done; None: the caller's, else the service's."""
    repairs: int = 0
    """How often an answer that is invalid or cut short is asked for again."""
    answers_json: bool = False
    """The answer is a JSON value, not a text."""
    shape: Shape = "own"
    """In whose shape requests and answers are."""
    fenced: bool = False
    """The model wraps its answer in a fence, which is not passed on."""

    @property
    def streams(self) -> bool:
        """Return whether the answer can be sent as a stream of deltas."""
        return "stream" in self.request_model.model_fields


TASKS: tuple[Task, ...] = (
    Task(
        name="text",
        path="/api/v1/generate/text",
        summary="Generate text from a prompt",
        request_model=GenerateTextRequest,
        prompt_field="prompt",
        answer_field="generated_text",
        instruct=_text_instruction,
        read=_as_is,
    ),
    Task(
        name="code",
        path="/api/v1/generate/code",
        summary="Generate code from a description",
        request_model=GenerateCodeRequest,
        prompt_field="prompt",
        answer_field="generated_code",
        instruct=_code_instruction,
        read=_code_only,
        fenced=True,
    ),
    Task(
        name="classify",
        path="/api/v1/classify/text",
        summary="Classify a text into one of the given categories",
        request_model=ClassifyTextRequest,
        prompt_field="text",
        answer_field="classification",
        instruct=_classify_instruction,
        read=_one_of_the_labels,
        thinking=ThinkingLevel.MINIMAL,
        repairs=1,
    ),
    Task(
        name="extract",
        path="/api/v1/extract/json",
        summary="Read from a text what a JSON schema asks for",
        request_model=ExtractJsonRequest,
        prompt_field="text",
        answer_field="extracted",
        instruct=_extract_instruction,
        read=_fitting_json,
        thinking=ThinkingLevel.MINIMAL,
        answers_json=True,
        repairs=1,
    ),
)

TASK_BY_NAME = {task.name: task for task in TASKS}


class Job(NamedTuple):  # made at every request, and a NamedTuple takes a third of the time of a frozen dataclass
    """One validated request: the task, what to ask, and how the caller wants the answer."""

    task: Task
    instruction: Instruction
    stream: bool
    body_bytes: int
    model: str | None = None
    """The model that the caller named."""
    thinking: ThinkingLevel | None = None
    """How much thinking the caller wants."""
    own_limit: bool = True
    """The limit of output tokens is ours, so it may get room for thoughts."""
    own_temperature: bool = False
    """The caller gave the temperature."""
    tag: str = ""
    options: AnswerOptions = AnswerOptions()
    dry_run: bool = False
    """Only what it would cost is asked for."""

    def told(self, terms: Terms) -> Instruction:
        """Return the instruction as a model with these terms is told it."""
        return terms.fit(self.instruction, own_limit=self.own_limit)

    @property
    def input_bound(self) -> int:
        """Return an upper bound of the input tokens: no tokenizer makes more tokens than there are UTF-8 bytes.

        The body counts whole; our own instruction and the answer schema, which the body does not hold, come on top.
        """
        instruction = self.instruction
        return self.body_bytes + len("".join((instruction.system or "", *instruction.labels)).encode())

    def key(self, model: str, scope: str = "", endpoint: str = "", *, terms: Terms = AS_IS) -> bytes:
        """Return a digest over everything that changes the answer; `scope` keeps the answers of callers apart.

        `terms` are those of `model`; `endpoint` is the server that answers, empty for Google's.
        """
        asked = self.instruction
        # -0.0 is 0.0, and an integer a float: equal numbers are one key
        temperature = asked.temperature if terms.sends_temperature else None
        temperature = None if temperature is None else temperature + 0.0
        limit = terms.limit_of(asked, own_limit=self.own_limit)
        plan = terms.plan
        thinking = "" if plan is None else f" {plan.level or plan.budget}"
        canonical = "\0".join(  # no part holds a NUL, and all but the labels, which come last, are always there
            (
                f"{self.task.name} {self.task.template_version} {temperature!r} {limit}{thinking}{asked.more}",
                endpoint,
                model,
                scope,
                asked.system or "",
                asked.prompt,
                *asked.labels,
            )
        )
        return blake2b(canonical.encode(), digest_size=20).digest()


def parse(task: Task, body: bytes, *, max_chars: int) -> Job:
    """Return the job that `body` (JSON) asks for.

    Raises InvalidJson when it is not JSON, InvalidRequest naming each bad field when it is not what `task` takes.
    """
    try:
        request = task.request_model.model_validate_json(body)
    except ValidationError as error:
        raise explain(error) from None
    repeated = _find_repeated(request.model_fields_set, body)
    if repeated:
        raise InvalidRequest(details=tuple(FieldError(name, "is given more than once") for name in repeated))
    instruction = task.instruct(request)
    if len(instruction.prompt) + sum(len(turn.text) for turn in instruction.turns) > max_chars:
        raise InvalidRequest(details=(FieldError(task.prompt_field, f"must have at most {max_chars} characters"),))
    return Job(
        task,
        instruction,
        getattr(request, "stream", False),
        len(body),
        model=request.model,
        thinking=getattr(request, "thinking", None),
        own_limit=request.own_limit,
        own_temperature="temperature" in request.model_fields_set,
        tag=request.tag,
        options=request.options,
        dry_run=request.dry_run,
    )


def _find_repeated(given: set[str], body: bytes) -> list[str]:
    """Return the fields that the object of `body` names more than once: pydantic takes the last in silence.

    The object is read again only when a name occurs twice as it is usually written; a request pays one scan a field.
    """
    if not any(body.count(b'"%b"' % name.encode()) > 1 for name in given):
        return []
    names = [name for name, _ in json.loads(body, object_pairs_hook=list)]
    return sorted(name for name in given if names.count(name) > 1)


def explain(error: ValidationError) -> ApiError:
    """Return what is wrong with a body, as the error that its caller gets; it quotes nothing of it."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        where = problems[0]["msg"].removeprefix("Invalid JSON: ")  # what was expected, line and column; quotes nothing
        return InvalidJson(details=(FieldError("body", f"is not JSON: {where}"),))
    return InvalidRequest(details=tuple(map(_field_error, problems[:MAX_REPORTED_FIELDS])))


def _field_error(problem: Any) -> FieldError:
    field = ".".join(str(part) for part in problem["loc"]) or "body"
    message = _IN_WORDS.get(problem["type"]) or _reword(problem["msg"])
    return FieldError(field[:MAX_FIELD_NAME_CHARS], message, foreign=problem["type"] == "extra_forbidden")


def _reword(message: str) -> str:
    """Return pydantic's sentence as one about the field: "must be ...", as our own rules say it."""
    words = message.removeprefix("Value error, ").replace(" after validation", "")
    return re.sub(r"^(Input|String|List) should ", "must ", words)


_IN_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "string_pattern_mismatch": "must be 1 to 40 letters, digits, blanks or + # . _ -",  # language, the only pattern
}
"""What pydantic says in the words of whoever wrote the model."""
