"""What a server answers, as types. Fields that a server adds and that are not here are passed over."""

from typing import Any

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Attributes:
    cached_tokens: prompt tokens that the prefix cache had.
    """

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a request was counted as, over all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """Attributes:
    arguments: JSON text, as the model wrote it.
    """

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A function that the model wants to have called."""

    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    """What the model said.

    Attributes:
        reasoning: what it thought before, where the server tells the two apart.
    """

    role: str
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the `n` answers of a chat.

    Attributes:
        logprobs: as the server gives them, with `logprobs=True`.
        token_ids: with `return_token_ids=True`.
    """

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """The answer to a chat."""

    id: str
    model: str
    choices: list[ChatChoice]
    created: int = 0
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].message.content or ""


class CompletionChoice(msgspec.Struct, frozen=True):
    """One of the `n` completions of one prompt.

    Attributes:
        logprobs: as the server gives them, with `logprobs=N`.
        token_ids: with `return_token_ids=True`.
    """

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class Completion(msgspec.Struct, frozen=True):
    """What one or several prompts were completed with."""

    id: str
    model: str
    choices: list[CompletionChoice]
    created: int = 0
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first choice."""
        return self.choices[0].text


class FunctionCallDelta(msgspec.Struct, frozen=True):
    """A further piece of a function call; the name comes whole, in the first."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A further piece of the tool call with this index; the first has its id."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionCallDelta | None = None


class MessageDelta(msgspec.Struct, frozen=True):
    """What a message got."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatDelta(msgspec.Struct, frozen=True):
    """What one of the `n` answers got, in a stream. The first of each has its role, the last its finish reason."""

    index: int
    delta: MessageDelta
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None

    @property
    def text(self) -> str:
        """New text of the answer; "" where the delta has other news."""
        return self.delta.content or ""

    @property
    def reasoning(self) -> str:
        """New text of the reasoning."""
        return self.delta.reasoning or ""


class CompletionDelta(msgspec.Struct, frozen=True):
    """What one of the `n` completions of one prompt got, in a stream. The last of each has its finish reason."""

    index: int
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """An event of a chat's stream."""

    id: str = ""
    model: str = ""
    choices: list[ChatDelta] = []
    usage: Usage | None = None
    error: Any = None


class CompletionChunk(msgspec.Struct, frozen=True):
    """An event of a completion's stream."""

    id: str = ""
    model: str = ""
    choices: list[CompletionDelta] = []
    usage: Usage | None = None
    error: Any = None


class Model(msgspec.Struct, frozen=True):
    """A model that the server has.

    Attributes:
        root: where the server has it from.
        max_model_len: longest prompt plus output, in tokens.
    """

    id: str
    root: str | None = None
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    """The server's models."""

    data: list[Model]


class TokenizedText(msgspec.Struct, frozen=True):
    """Attributes:
    count: number of tokens.
    max_model_len: longest prompt plus output, in tokens.
    token_strs: with `return_token_strs=True`.
    """

    count: int
    tokens: list[int]
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class DetokenizedText(msgspec.Struct, frozen=True):
    """A text made of tokens."""

    prompt: str
