"""A chat's messages and tools, as a request brings them and as a chat template reads them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lightvllm.errors import ParameterError
from lightvllm.server import limits
from lightvllm.server.protocol.base import RequestModel, refused

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(RequestModel):
    """A part of a message. Pictures, sound and files are refused: the models here read text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: None = refused("every prefix is cached by itself")


class RefusalPart(RequestModel):
    """What an assistant said when it refused; the template sees it as text."""

    type: Literal["refusal"]
    refusal: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=limits.MAX_CONTENT_PARTS, fail_fast=True)]
AssistantParts = Annotated[
    list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]],
    Field(min_length=1, max_length=limits.MAX_CONTENT_PARTS, fail_fast=True),
]


class SystemMessage(RequestModel):
    """Instructions. `developer` is OpenAI's newer name; templates see `system`."""

    role: Literal["system", "developer"]
    content: str | Parts
    name: str | None = Field(None, max_length=256)


class UserMessage(RequestModel):
    """What the user says."""

    role: Literal["user"]
    content: str | Parts
    name: str | None = Field(None, max_length=256)


class CalledFunction(RequestModel):
    """A call that the model made: `arguments` is JSON, as text."""

    name: str
    arguments: str


class ToolCall(RequestModel):
    """A tool call in an assistant's message."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="Its place, as streams number them; the order of the list counts.")


class AssistantMessage(RequestModel):
    """What the model said before: as its answer came, it can be sent back."""

    role: Literal["assistant"]
    content: str | AssistantParts | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = Field(None, description="Older name of `reasoning`.")
    tool_calls: list[ToolCall] | None = Field(None, max_length=limits.MAX_TOOL_CALLS, fail_fast=True)
    name: str | None = Field(None, max_length=256)
    annotations: list[Any] | None = Field(None, max_length=0, description="Only empty.")
    audio: None = refused("the models here read text")
    function_call: None = refused("use tool_calls")

    @model_validator(mode="after")
    def _check(self) -> "AssistantMessage":
        said = [
            name for name in ("content", "refusal", "reasoning", "reasoning_content") if getattr(self, name) is not None
        ]
        if not said and not self.tool_calls:
            raise ValueError("an assistant's message needs content or tool_calls")
        if "content" in said and self.content and self.refusal:
            raise ValueError("an assistant's message has either content or a refusal")
        if "reasoning" in said and "reasoning_content" in said and self.reasoning != self.reasoning_content:
            raise ValueError("reasoning and reasoning_content are two names of one thing, but differ")
        return self


class ToolMessage(RequestModel):
    """What a tool answered."""

    role: Literal["tool"]
    content: str | Parts
    tool_call_id: str = Field(max_length=256)
    name: str | None = Field(None, max_length=256)


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES, fail_fast=True)]


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages in the form chat templates are written for: plain JSON, no nulls, roles and fields they know."""
    return [_template_message(message) for message in messages]


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, exclude={"annotations"})
    if message.role == "developer":
        fields["role"] = "system"
    if isinstance(message, AssistantMessage):
        refusal = fields.pop("refusal", None)
        if refusal is not None and not fields.get("content"):
            fields["content"] = refusal
        if isinstance(message.content, list):
            texts = [part.text if isinstance(part, TextPart) else part.refusal for part in message.content]
            fields["content"] = [{"type": "text", "text": text} for text in texts]
        for call in fields.get("tool_calls", []):
            call.pop("index", None)
    return fields


def num_characters(message: Message) -> int:
    """Of the message's texts: content, and what an assistant thought, refused and called."""
    content = message.content or ""
    size = (
        len(content)
        if isinstance(content, str)
        else sum(len(part.text if isinstance(part, TextPart) else part.refusal) for part in content)
    )
    if isinstance(message, AssistantMessage):
        size += sum(len(text or "") for text in (message.refusal, message.reasoning, message.reasoning_content))
        size += sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or [])
    return size


# ---- tools


class Function(RequestModel):
    """A function the model may call."""

    name: FunctionName
    description: str | None = Field(None, description="What it does, for the model to read.")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of an object; left out: no arguments.")
    strict: bool | None = Field(None, description="Enforce the schema in calls that the model makes by itself, too.")

    @model_validator(mode="after")
    def _check(self) -> "Function":
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object":
            raise ValueError(f'parameters must be the schema of an object, with "type": "object", got {kind!a:.80}')
        return self


class Tool(RequestModel):
    """A tool. There are only functions."""

    type: Literal["function"]
    function: Function
    defer_loading: None = refused("the model sees all tools")


Tools = Annotated[list[Tool], Field(min_length=1, max_length=limits.MAX_TOOLS, fail_fast=True)]


class NamedFunction(RequestModel):
    """The function to call."""

    name: FunctionName


class NamedToolChoice(RequestModel):
    """Call this function."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


def check_tools(tools: list[Tool] | None, tool_choice: ToolChoice | None) -> None:
    """Check what only both together can tell.

    Raises:
        ParameterError: two tools of one name, or a choice that names none of them.
    """
    names = [tool.function.name for tool in tools or []]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise ParameterError("tools", f"tools: two functions have the name {repeated!r}")
    if tool_choice is not None and tool_choice != "none" and not tools:
        raise ParameterError("tool_choice", "tool_choice: there are no tools to choose from")
    if isinstance(tool_choice, NamedToolChoice) and tool_choice.function.name not in names:
        raise ParameterError(
            "tool_choice", f"tool_choice: {tool_choice.function.name!r} is not among the tools, which are {names}"
        )
