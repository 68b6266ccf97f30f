"""The ways in which models mark their tool calls and their reasoning, and how a chat template tells which."""

import re
from typing import Literal

# hermes: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call> (Qwen 2.5, Qwen 3, Hermes).
# llama3_json: {"name": ..., "parameters": {...}}, perhaps after <|python_tag|> (Llama 3.1 and later).
ToolFormat = Literal["hermes", "llama3_json"]
# think: <think>...</think> before the answer (Qwen 3, DeepSeek-R1).
ReasoningFormat = Literal["think"]

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def detect_formats(chat_template: str | None) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """Tell by what the chat template itself writes how its model marks tool calls and reasoning; None is not at all.

    <tool_call> alone does not make hermes: other models write XML or a bare name behind it.
    """
    source = (chat_template or "").replace("\\", "")  # templates quote JSON within their own strings
    tool_format: ToolFormat | None = None
    if "<tool_call>" in source and '"arguments"' in source:
        tool_format = "hermes"
    elif "<|python_tag|>" in source or re.search(r'\{"name":[^{}]*"parameters":', source):
        tool_format = "llama3_json"
    return tool_format, "think" if THINK_OPEN in source or THINK_CLOSE in source else None


def needs_special_tokens(tool_format: ToolFormat | None) -> bool:
    """Whether tool calls can be told only with `skip_special_tokens` off, as their marks may be special tokens.

    <|python_tag|> always is one, <tool_call> in some checkpoints. The parser leaves other special tokens out of the
    content then.
    """
    return tool_format is not None
