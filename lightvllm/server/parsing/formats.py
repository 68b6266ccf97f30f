"""The ways in which models mark their tool calls and their reasoning, and how a chat template tells which."""

from typing import Literal

# hermes: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call> (Qwen 2.5, Qwen 3, Hermes).
# llama3_json: {"name": ..., "parameters": {...}}, perhaps after <|python_tag|> (Llama 3.1 and later).
ToolFormat = Literal["hermes", "llama3_json"]
# think: <think>...</think> before the answer (Qwen 3, DeepSeek-R1).
ReasoningFormat = Literal["think"]


def detect_formats(chat_template: str | None) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """Tell by what the chat template itself writes how its model marks tool calls and reasoning; None is not at all."""
    raise NotImplementedError


def needs_special_tokens(tool_format: ToolFormat | None) -> bool:
    """Whether tool calls can be told only with `skip_special_tokens` off, as their marks may be special tokens."""
    raise NotImplementedError
