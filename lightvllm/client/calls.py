"""What is sent and how the answer is read, without the sending: shared by the two clients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from lightvllm.client.errors import APIConnectionError, error_of_object
from lightvllm.client.sse import EventDecoder
from lightvllm.client.types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    DetokenizedText,
    Model,
    ModelList,
    TokenizedText,
    Usage,
)

T = TypeVar("T")
D = TypeVar("D", covariant=True)

Messages = str | Sequence[dict[str, Any]]  # a text is one message of the user
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]

CONNECT_SECONDS = 10.0  # a server that does not take the connection in this time is not there
READY_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the type of its answer."""

    method: str
    path: str
    answer: type[T]
    body: dict[str, Any] | None = None

    def read(self, content: bytes) -> T:
        """The answer.

        Raises:
            APIConnectionError: it is not of the type; whatever answers there is not such a server.
        """
        try:
            return msgspec.json.decode(content, type=self.answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise APIConnectionError(f"{self.path}: the server's answer is not as expected: {error}") from None


def chat_call(messages: Messages, options: dict[str, Any]) -> Call[ChatCompletion]:
    """A chat whose answer comes whole."""
    return Call("POST", "/v1/chat/completions", ChatCompletion, _chat_body(messages, options))


def complete_call(prompt: Prompt, options: dict[str, Any]) -> Call[Completion]:
    """A completion that comes whole."""
    return Call("POST", "/v1/completions", Completion, _unstreamed(options) | {"prompt": prompt})


def chat_stream_call(messages: Messages, options: dict[str, Any]) -> Call[ChatChunk]:
    """A chat whose answer comes in pieces, the usage last."""
    return Call("POST", "/v1/chat/completions", ChatChunk, _streamed(_chat_body(messages, options)))


def completion_stream_call(prompt: Prompt, options: dict[str, Any]) -> Call[CompletionChunk]:
    """A completion that comes in pieces, the usage last."""
    return Call("POST", "/v1/completions", CompletionChunk, _streamed(_unstreamed(options) | {"prompt": prompt}))


def models_call() -> Call[ModelList]:
    """Which models there are."""
    return Call("GET", "/v1/models", ModelList)


def tokenize_call(text: Messages, options: dict[str, Any]) -> Call[TokenizedText]:
    """A text, or what the chat template makes of messages, as tokens."""
    body = options | ({"prompt": text} if isinstance(text, str) else {"messages": list(text)})
    return Call("POST", "/tokenize", TokenizedText, body)


def detokenize_call(tokens: Sequence[int], options: dict[str, Any]) -> Call[DetokenizedText]:
    """Tokens as a text."""
    return Call("POST", "/detokenize", DetokenizedText, options | {"tokens": list(tokens)})


def first_model(models: Sequence[Model]) -> str:
    """The one to ask for where the user named none."""
    if not models:
        raise APIConnectionError("model: none was named, and the server lists none")
    return models[0].id


def server_root(url: str) -> str:
    """The address that all paths are under. What other clients are given ends in /v1, and is understood, too."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url: {url!r} is no address of a server, expected one such as 'http://127.0.0.1:8000'")
    return url.rstrip("/").removesuffix("/v1")


def headers(api_key: str | None) -> dict[str, str]:
    """Those of every request."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _chat_body(messages: Messages, options: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _unstreamed(options) | {"messages": turns}


def _unstreamed(options: dict[str, Any]) -> dict[str, Any]:
    if "stream" in options:
        raise ValueError("stream: not an option of this method; stream_chat and stream_complete are for streams")
    return options


def _streamed(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"stream": True, "stream_options": {"include_usage": True} | body.get("stream_options", {})}


class _Chunk(Protocol[D]):
    """What a `ChatChunk` and a `CompletionChunk` have in common."""

    @property
    def id(self) -> str: ...
    @property
    def choices(self) -> Sequence[D]: ...
    @property
    def usage(self) -> Usage | None: ...
    @property
    def error(self) -> Any: ...


class StreamReader(Generic[D]):
    """Turns the bytes of a stream into deltas.

    Attributes:
        id: of the request, once the first delta is there.
        usage: once the server has said it, which it does last.
        is_done: the server has said that the stream is whole.
    """

    def __init__(self, chunk: type[_Chunk[D]]) -> None:
        self.id = ""
        self.usage: Usage | None = None
        self.is_done = False
        self._events = EventDecoder()
        self._chunk = msgspec.json.Decoder(chunk)

    def feed(self, content: bytes) -> Iterator[D]:
        """The deltas that are complete with these bytes.

        Raises:
            APIError: the server broke the stream off, in its words.
            APIConnectionError: the stream is not one of deltas.
        """
        for event in self._events.feed(content):
            if event == b"[DONE]":
                self.is_done = True
            elif not self.is_done:
                yield from self._read(event)

    def _read(self, event: bytes) -> Sequence[D]:
        try:
            chunk = self._chunk.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise APIConnectionError(f"the stream is not as expected: {error}") from None
        if chunk.error is not None:
            raise error_of_object(chunk.error)
        self.id = chunk.id or self.id
        self.usage = chunk.usage or self.usage
        return chunk.choices

    def end(self) -> None:
        """The server sends no more.

        Raises:
            APIConnectionError: it should have.
        """
        if not self.is_done:
            raise APIConnectionError("the stream ended before the server said [DONE]: the answer may lack its end")
