"""The bodies of the chat completions as the OpenAPI document describes them; `mtllm/chat/shape.py` writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OpenAIBody(BaseModel):
    """A body in OpenAI's shape, described by the strings below its fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class CalledFunction(OpenAIBody):
    """A function and its arguments, as JSON."""

    name: str
    arguments: str


class ToolCall(OpenAIBody):
    """The call of the forced function."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatAnswer(OpenAIBody):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    """The text; null where the answer is a call."""
    refusal: None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    """The forced function, where there is one."""


class ChatChoice(OpenAIBody):
    """The one answer."""

    index: Literal[0]
    message: ChatAnswer
    logprobs: None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptDetails(OpenAIBody):
    """Of the prompt's tokens."""

    cached_tokens: int = Field(ge=0)
    """From Gemini's own context cache."""


class CompletionDetails(OpenAIBody):
    """Of the answer's tokens."""

    reasoning_tokens: int = Field(ge=0)


class ChatUsage(OpenAIBody):
    """Tokens of the answer; of a cached one, the stored ones."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    """Thoughts included."""
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCost(OpenAIBody):
    """What this request cost: beside OpenAI's fields."""

    total: str
    """Dollars, as in X-Cost-Total."""
    nanodollars: int = Field(ge=0)


class ChatCompletion(OpenAIBody):
    """An answer in OpenAI's shape."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Epoch seconds; of a cached answer, when it was made."""
    model: str
    """The model that answered."""
    choices: list[ChatChoice]
    usage: ChatUsage
    cost: ChatCost
    ignored: list[str] = Field(default_factory=list)
    """Fields of the request that this model does not use; left out where there are none."""


class ListedModel(OpenAIBody):
    """One model that a request may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(OpenAIBody):
    """The models that a request may name."""

    object: Literal["list"]
    data: list[ListedModel]


class OpenAIProblem(OpenAIBody):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field, where one is at fault."""
    code: str
    """The same constants as elsewhere, and `model_not_found`."""


class OpenAIError(OpenAIBody):
    """An error in OpenAI's shape."""

    error: OpenAIProblem
