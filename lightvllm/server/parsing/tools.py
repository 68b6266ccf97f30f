"""The request's `tools` and `tool_choice`: what they may be."""

from typing import Any

from lightvllm.server.parsing.formats import ToolFormat

# "none", "auto", "required", or {"type": "function", "function": {"name": ...}}; None is "auto" if there are tools.
ToolChoice = str | dict[str, Any] | None


def is_forced(tool_choice: ToolChoice) -> bool:
    """Whether the output must be a call: `tool_choice` is "required" or names a function."""
    raise NotImplementedError


def validate_tools(tools: list[dict[str, Any]] | None, tool_choice: ToolChoice, tool_format: ToolFormat | None) -> None:
    """Refuse tools and tool choices that make no sense.

    Args:
        tools: the request's, as plain JSON values.
        tool_choice: the request's, as plain JSON values.
        tool_format: how this model writes calls; with None only a grammar can make it call, so "auto" is refused.

    Raises:
        ParameterError: for "tools" or "tool_choice".
    """
    raise NotImplementedError
