"""The chat task: a request as OpenAI's clients write it, and what Gemini is told of it.

https://platform.openai.com/docs/api-reference/chat/create, as far as text goes. What would change the answer and is not
served here is refused by name, never ignored.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mtllm.domain.completion import Answer, FinishReason, Instruction, Turn
from mtllm.domain.thinking import ThinkingLevel
from mtllm.tasks import AnswerOptions, Task, TaskRequest, WholeNumber, check_schema, require_fit, require_words

DEFAULT_LIMIT = 8192
MOST_TOKENS = 65_536
"""The most that any of Gemini's models gives in one answer."""
MOST_MESSAGES = 1000
PATH = "/v1/chat/completions"

_EFFORTS = {
    "none": ThinkingLevel.MINIMAL,
    "minimal": ThinkingLevel.MINIMAL,
    "low": ThinkingLevel.LOW,
    "medium": ThinkingLevel.MEDIUM,
    "high": ThinkingLevel.HIGH,
    "xhigh": ThinkingLevel.HIGH,
}


class ChatPart(BaseModel):
    """Part of a request in OpenAI's shape: JSON types as they are, unknown fields refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, cache_strings="keys")


class TextPart(ChatPart):
    """A part of a message; only texts are served."""

    type: Literal["text"]
    text: str


class Message(ChatPart):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], Field(examples=["Explain HTTP caching in two sentences."])]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """Return the words of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


JsonSchema = Annotated[dict[str, Any], AfterValidator(check_schema)]


class NamedSchema(ChatPart):
    """A JSON schema with a name."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: JsonSchema = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(ChatPart):
    """What the answer must be: text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with type json_schema, and only then")
        return self


class Function(ChatPart):
    """A function whose arguments the answer must be."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: JsonSchema = {}
    strict: bool | None = None


class Tool(ChatPart):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: Function


class ChosenFunction(ChatPart):
    """The function that must be called."""

    name: str


class ToolChoice(ChatPart):
    """One forced function."""

    type: Literal["function"]
    function: ChosenFunction


class StreamOptions(ChatPart):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def _nothing(value: object) -> object:
    """Take 0, false, null and empty values of fields that would change the answer otherwise."""
    if value:
        raise ValueError("is not served here")
    return None


def _one(value: object) -> object:
    if value not in (None, 1):
        raise ValueError("must be 1: one answer is served for each request")
    return value


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Unserved = Annotated[None, BeforeValidator(_nothing)]
Anything = Annotated[Any, Field(None, description="Taken, and without effect here.")]
Stop = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=500)], ...], Field(max_length=5)]


class ChatRequest(TaskRequest):
    """Body of POST /v1/chat/completions, in OpenAI's shape."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: WholeNumber | None = Field(None, ge=1)
    max_completion_tokens: WholeNumber | None = Field(None, ge=1)
    stop: Annotated[Stop | None, BeforeValidator(_as_tuple)] = None
    seed: WholeNumber | None = Field(None, ge=-(2**31), le=2**31 - 1)
    n: Annotated[int | None, BeforeValidator(_one)] = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["required", "auto", "none"] | ToolChoice | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1000, description="Stands in the ledger as the request's tag.")
    logprobs: Unserved = None
    top_logprobs: Unserved = None
    logit_bias: Unserved = None
    frequency_penalty: Unserved = None
    presence_penalty: Unserved = None
    audio: Unserved = None
    functions: Unserved = None
    function_call: Unserved = None
    web_search_options: Unserved = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: Anything = None
    store: Anything = None
    metadata: Anything = None
    service_tier: Anything = None
    prediction: Anything = None
    verbosity: Anything = None
    prompt_cache_key: Anything = None
    safety_identifier: Anything = None

    @model_validator(mode="after")
    def _can_be_asked(self) -> ChatRequest:
        if not any(message.role == "user" for message in self.messages) or self.messages[-1].role != "user":
            raise ValueError("messages must end with one of the user's")
        require_words(self.messages[-1].text or " ")
        for message in self.messages:
            if "\x00" in message.text:
                raise ValueError("messages must not contain NUL characters")
        if self.tools and self.function is None:
            raise ValueError(
                "tools are served where tool_choice forces one function: required (with one tool) or named"
            )
        return self

    @property
    def function(self) -> Function | None:
        """Return the function whose arguments the answer must be."""
        functions = {tool.function.name: tool.function for tool in self.tools or ()}
        if isinstance(self.tool_choice, ToolChoice):
            return functions.get(self.tool_choice.function.name)
        return next(iter(functions.values())) if self.tool_choice == "required" and len(functions) == 1 else None

    @property
    def thinking(self) -> ThinkingLevel | None:
        """Return how much the model may think."""
        return None if self.reasoning_effort is None else _EFFORTS[self.reasoning_effort]

    @property
    def limit(self) -> int | None:
        """Return the caller's limit of output tokens."""
        given = self.max_completion_tokens or self.max_tokens
        return None if given is None else min(given, MOST_TOKENS)

    @property
    def tag(self) -> str:
        """Return `user` as a tag: what a tag cannot hold becomes an underscore."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.user or "")[:64]

    @property
    def options(self) -> AnswerOptions:
        """Return what the shape of the answer hangs on."""
        usage = self.stream_options is not None and bool(self.stream_options.include_usage)
        return AnswerOptions(self.function.name if self.function else "", usage)

    @property
    def own_limit(self) -> bool:
        """Return whether the limit of output tokens is ours."""
        return self.limit is None


def _instruct(request: Any) -> Instruction:
    spoken = [message for message in request.messages if message.role in ("user", "assistant")]
    told = [m.text for m in request.messages if m.role in ("system", "developer")]
    system = "\n\n".join(filter(None, (*told, _describe_format(request))))
    return Instruction(
        prompt=spoken[-1].text,
        temperature=request.temperature,
        max_output_tokens=request.limit or DEFAULT_LIMIT,
        system=system or None,
        turns=tuple(Turn(message.role == "assistant", message.text) for message in spoken[:-1]),
        json_schema=_schema_of(request),
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop or (),
    )


def _describe_format(request: ChatRequest) -> str:
    """Return what the caller says of the function or the schema; empty where it says nothing."""
    if request.function is not None:
        described = request.function.description
        return f"The answer is the arguments of the function {request.function.name}: {described}" if described else ""
    wanted = request.response_format and request.response_format.json_schema
    return (wanted.description or "") if wanted else ""


def _schema_of(request: ChatRequest) -> str | None:
    wanted = request.response_format
    if request.function is not None:
        schema: dict[str, Any] = request.function.parameters or {"type": "object"}
    elif wanted is None or wanted.type == "text":
        return None
    elif wanted.json_schema is None:
        schema = {"type": "object"}
    else:
        schema = wanted.json_schema.schema_ or {"type": "object"}
    return json.dumps(schema)


def _read(instruction: Instruction, answer: Answer) -> str:
    """Return the answer; a JSON answer that was cut passes as what it is, with the finish reason `length`."""
    if instruction.json_schema is None or answer.finish_reason is FinishReason.MAX_TOKENS:
        return answer.text
    return require_fit(answer.text, instruction.json_schema)


CHAT = Task(
    name="chat",
    path=PATH,
    summary="Answer a conversation, in OpenAI's shape",
    request_model=ChatRequest,
    prompt_field="messages",
    answer_field="content",
    instruct=_instruct,
    read=_read,
    repairs=1,
    shape="openai",
)
