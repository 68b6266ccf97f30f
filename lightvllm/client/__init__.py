"""A typed client of a LightvLLM server, or of any other that speaks OpenAI's protocol. Imports nothing of the engine.

Example:
    >>> from lightvllm.client import Client
    >>> with Client("http://127.0.0.1:8000") as client:
    ...     print(client.chat("How many moons has Mars?", max_tokens=50).text)
    ...     with client.stream_chat("And Jupiter?") as stream:
    ...         for delta in stream:
    ...             print(delta.text, end="", flush=True)
"""

from lightvllm.client.async_client import AsyncClient
from lightvllm.client.client import Client
from lightvllm.client.errors import APIConnectionError, APIError
from lightvllm.client.types import (
    ChatChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionDelta,
    FunctionCall,
    Model,
    TokenizedText,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = [
    "APIConnectionError",
    "APIError",
    "AsyncClient",
    "ChatChoice",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "Client",
    "Completion",
    "CompletionChoice",
    "CompletionDelta",
    "FunctionCall",
    "Model",
    "TokenizedText",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]
