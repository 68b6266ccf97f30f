"""Grammars that leave a model nothing to write but tool calls that fit their functions."""

from typing import Any

from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.server.parsing.reasoning import ReasoningState
from lightvllm.server.parsing.tools import ToolChoice


def forced_grammar(
    tools: list[dict[str, Any]],
    tool_choice: ToolChoice,
    parallel_tool_calls: bool,
    tool_format: ToolFormat | None,
    reasoning: ReasoningState,
) -> str:
    """The Lark grammar (llguidance's dialect) of an output that calls, for `StructuredOutputsParams(grammar=...)`.

    Args:
        tools: the request's, validated.
        tool_choice: "required" or a named function.
        parallel_tool_calls: whether "required" allows more than one call; a named function is called exactly once.
        tool_format: how this model writes calls; None writes them as llama3_json does.
        reasoning: whether the output begins with reasoning, which is left free.

    Raises:
        ParameterError: for "tools", where a function's parameters cannot be enforced.
    """
    raise NotImplementedError
