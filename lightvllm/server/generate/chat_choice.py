"""One choice of a chat's answer: the model's text taken apart into what a client gets to see."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from lightvllm.engine.streams import CompletionDelta
from lightvllm.server.generate.chunks import ChatDelta, ChatLogprobs, ChatMessage, FunctionCall, ToolCall
from lightvllm.server.generate.logprobs import TokenNames, chat_logprobs
from lightvllm.server.parsing import ContentDelta, Delta, OutputParser, ReasoningDelta, ToolCallDelta
from lightvllm.server.protocol.chat import ChatCompletionRequest
from lightvllm.server.protocol.messages import NamedToolChoice


@dataclass
class ChoiceNews:
    """What is new of a choice.

    Attributes:
        opening: what its message begins with, whatever the model says.
        deltas: of the message, in order: content or reasoning, or a piece of one tool call each.
        finish_reason: set with the last.
    """

    index: int
    opening: list[ChatDelta]
    deltas: list[ChatDelta]
    logprobs: ChatLogprobs | None
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None


class ChoiceWriter:
    """Takes one completion's tokens and text.

    Args:
        role: who speaks.
        echo: text that the content begins with.
    """

    def __init__(
        self, index: int, request: ChatCompletionRequest, parser: OutputParser, names: TokenNames, role: str, echo: str
    ) -> None:
        self.index = index
        self.request = request
        self.parser = parser
        self.names = names
        self.role = role
        self.echo = echo
        self.has_begun = False
        self.has_calls = False

    def write(self, output: CompletionDelta) -> ChoiceNews:
        """What is new with this."""
        is_first, self.has_begun = not self.has_begun, True
        pieces = self.parser.push(output.text)
        if output.finish_reason is not None:
            ended_by_itself = output.finish_reason == "stop" and output.stop_reason is None
            pieces += self.parser.finish(is_cut=not ended_by_itself)
        opening = [ChatDelta(role=self.role, content="")] if is_first else []
        if is_first and self.echo:
            opening.append(ChatDelta(content=self.echo))
        return ChoiceNews(
            index=self.index,
            opening=opening,
            deltas=[delta for piece in pieces for delta in self._deltas(piece)],
            logprobs=self._logprobs(output),
            token_ids=output.token_ids,
            finish_reason=self._finish_reason(output.finish_reason),
            stop_reason=output.stop_reason,
        )

    def _deltas(self, piece: Delta) -> list[ChatDelta]:
        if isinstance(piece, ContentDelta):
            return [ChatDelta(content=piece.text)]
        if isinstance(piece, ReasoningDelta):
            return [ChatDelta(reasoning=piece.text)] if self.request.include_reasoning else []
        assert isinstance(piece, ToolCallDelta)
        self.has_calls = True
        calls = []
        if piece.name is not None:
            opening = FunctionCall(name=piece.name, arguments="")
            calls.append(
                ToolCall(index=piece.index, id=f"call_{secrets.token_hex(12)}", type="function", function=opening)
            )
        if piece.arguments:
            calls.append(ToolCall(index=piece.index, function=FunctionCall(arguments=piece.arguments)))
        return [ChatDelta(tool_calls=[call]) for call in calls]

    def _logprobs(self, output: CompletionDelta) -> ChatLogprobs | None:
        if not self.request.logprobs:
            return None
        entries = output.logprobs or []
        # A token that ends the output by its id, and not by its text, is no part of the message.
        is_hidden = (
            output.finish_reason == "stop"
            and not isinstance(output.stop_reason, str)
            and not self.request.include_stop_str_in_output
        )
        end = len(output.token_ids) - is_hidden
        return chat_logprobs(output.token_ids[:end], entries[:end], self.request.top_logprobs, self.names)

    def _finish_reason(self, reason: str | None) -> str | None:
        # As OpenAI has it: "tool_calls" says that the model chose to call; a function that was named is no choice.
        if reason == "stop" and self.has_calls and not isinstance(self.request.tool_choice, NamedToolChoice):
            return "tool_calls"
        return reason


def whole_message(deltas: Sequence[ChatDelta]) -> ChatMessage:
    """The message of which these are the pieces."""
    role = next(delta.role for delta in deltas if delta.role is not UNSET)
    content = "".join(delta.content for delta in deltas if delta.content is not UNSET)
    reasoning = "".join(delta.reasoning for delta in deltas if delta.reasoning is not UNSET)
    calls: list[ToolCall] = []
    for delta in deltas:
        for piece in [] if delta.tool_calls is UNSET else delta.tool_calls:
            if piece.id is not UNSET:
                calls.append(ToolCall(id=piece.id, type="function", function=piece.function))
            else:
                calls[-1].function.arguments += piece.function.arguments
    return ChatMessage(
        role=role,
        content=content if content or not (calls or reasoning) else None,
        reasoning=reasoning or None,
        tool_calls=calls or UNSET,
    )
