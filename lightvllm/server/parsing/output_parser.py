"""A chat model's text, as it comes, into content, reasoning and tool calls."""

from typing import Any

from lightvllm.server.parsing.deltas import Delta
from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.server.parsing.reasoning import ReasoningState
from lightvllm.server.parsing.tools import ToolChoice


class OutputParser:
    """Takes one completion's text apart. What comes out does not depend on how the text was cut into pieces."""

    def push(self, text: str) -> list[Delta]:
        """The next text of the output; returns what is certain now and was not before."""
        raise NotImplementedError

    def finish(self, is_cut: bool) -> list[Delta]:
        """The output has ended; returns what was held back.

        Args:
            is_cut: the length limit or an abort ended it. Then what may be the beginning of a call is not content.
        """
        raise NotImplementedError


def make_output_parser(
    *,
    tool_format: ToolFormat | None,
    reasoning: ReasoningState,
    tools: list[dict[str, Any]] | None = None,
    tool_choice: ToolChoice = None,
    is_constrained: bool = False,
) -> OutputParser:
    """A parser for one completion.

    Args:
        tool_format: how this model writes calls; None finds none unless `tool_choice` forces them.
        reasoning: where the output begins, from `reasoning_state`.
        tools: the request's, validated.
        tool_choice: the request's, validated.
        is_constrained: the request's own `response_format` or `structured_outputs` masks the output from its first
            token. Then all of it is content.
    """
    raise NotImplementedError
