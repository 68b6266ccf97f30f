"""A chat model's text, as it comes, into content, reasoning and tool calls."""

from typing import Any

from lightvllm.server.parsing.deltas import ContentDelta, Delta, ReasoningDelta, merged
from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.server.parsing.reasoning import ReasoningSplitter, ReasoningState
from lightvllm.server.parsing.tool_calls import ToolCallParser
from lightvllm.server.parsing.tools import ToolChoice, function_names, is_forced

# A text is read in pieces of this many characters: the parsers copy the rest of one at each tag.
_PIECE = 4096


class OutputParser:
    """Takes one completion's text apart: first the reasoning, then the tool calls.

    What comes out, put together, does not depend on how the text was cut into pieces.
    """

    def __init__(self, splitter: ReasoningSplitter, calls: ToolCallParser | None) -> None:
        self._splitter = splitter
        self._calls = calls

    def push(self, text: str) -> list[Delta]:
        """The next text of the output; returns what is certain now and was not before."""
        deltas: list[Delta] = []
        for start in range(0, len(text), _PIECE):
            deltas += self._answer(*self._splitter.push(text[start : start + _PIECE]))
        return merged(deltas)

    def finish(self, is_cut: bool) -> list[Delta]:
        """The output has ended; returns what was held back.

        Args:
            is_cut: something else than the model's own end-of-sequence token ended it: the length limit, a stop string,
                an abort. Then what may be the beginning of a call or of a tag is dropped, and is content otherwise.
        """
        deltas = self._answer(*self._splitter.finish(is_cut))
        if self._calls is not None:
            deltas += self._calls.finish(is_cut)
        return merged(deltas)

    def _answer(self, reasoning: list[ReasoningDelta], text: str) -> list[Delta]:
        answer: list[Delta] = []
        if text:
            answer = [ContentDelta(text)] if self._calls is None else self._calls.push(text)
        return [*reasoning, *answer]


def make_output_parser(
    *,
    tool_format: ToolFormat | None,
    reasoning: ReasoningState,
    tools: list[dict[str, Any]] | None = None,
    tool_choice: ToolChoice = None,
    parallel_tool_calls: bool = True,
    is_constrained: bool = False,
    skip_special_tokens: bool = True,
) -> OutputParser:
    """A parser for one completion.

    Args:
        tool_format: how this model writes calls; None is llama3_json if `tool_choice` forces one.
        reasoning: where the output begins, from `reasoning_state`.
        tools: the request's, validated.
        tool_choice: the request's, validated.
        parallel_tool_calls: whether there may be more than one call; if not, those after the first are left out.
        is_constrained: the request's own `response_format` or `structured_outputs` masks the output from its first
            token. Then all of it is content.
        skip_special_tokens: the request's; leaves special tokens out of the content although
            `needs_special_tokens` kept them in the text.
    """
    calls = None
    if tools and tool_choice != "none" and not is_constrained:
        if tool_format is None and is_forced(tool_choice):
            tool_format = "llama3_json"
        if tool_format is not None:
            calls = ToolCallParser(
                tool_format,
                function_names(tools, tool_choice),
                max_calls=None if parallel_tool_calls else 1,
                skip_special_tokens=skip_special_tokens,
            )
    return OutputParser(ReasoningSplitter("off" if is_constrained else reasoning), calls)
