"""What a chat model's text means: content, reasoning and tool calls; and the grammars that force calls.

The chat endpoint goes through these in order:

1. `detect_formats` (once, at start): how this model marks its reasoning and its calls.
2. `validate_tools`: is the request's `tools` and `tool_choice` sound?
3. `reasoning_state`, on the rendered prompt: does the output begin within reasoning, may it, or not?
4. `forced_grammar`, if `tool_choice` is "required" or names a function; `strict_grammar`, if it is "auto".
5. `make_output_parser`, one for each completion: `push` each piece of text, `finish` at the end.
"""

from lightvllm.server.parsing.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallDelta
from lightvllm.server.parsing.formats import ReasoningFormat, ToolFormat, detect_formats, needs_special_tokens
from lightvllm.server.parsing.grammar import forced_grammar, strict_grammar
from lightvllm.server.parsing.output_parser import OutputParser, make_output_parser
from lightvllm.server.parsing.reasoning import ReasoningState, reasoning_state
from lightvllm.server.parsing.tools import ToolChoice, is_forced, validate_tools

__all__ = [
    "ContentDelta",
    "Delta",
    "OutputParser",
    "ReasoningDelta",
    "ReasoningFormat",
    "ReasoningState",
    "ToolCallDelta",
    "ToolChoice",
    "ToolFormat",
    "detect_formats",
    "forced_grammar",
    "is_forced",
    "make_output_parser",
    "needs_special_tokens",
    "reasoning_state",
    "strict_grammar",
    "validate_tools",
]
