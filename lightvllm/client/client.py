"""The synchronous client."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx2

from lightvllm.client import calls
from lightvllm.client.calls import Call, Messages, Prompt, StreamReader
from lightvllm.client.errors import APIError, error_of_response
from lightvllm.client.retry import RetryPolicy
from lightvllm.client.transport import connection_error, http_timeout
from lightvllm.client.types import ChatCompletion, ChatDelta, Completion, CompletionDelta, Model, TokenizedText, Usage

T = TypeVar("T")
D = TypeVar("D")


class Client:
    """Speaks to a server. May be used by several threads; `close` it, or use it as a context manager.

    What cannot reach the server, or is answered with 429, 502, 503 or 504, is tried again after a while, which doubles
    from attempt to attempt; a Retry-After of the server is honoured. A stream is tried again until the server accepts
    it, and never once it has begun.

    Args:
        url: of the server, such as "http://127.0.0.1:8000"; a path of /v1 at its end is fine.
        api_key: sent as a bearer token.
        model: the model to ask for. None asks for the first that the server lists.
        timeout: longest silence of the server, in seconds; None waits for ever.
        max_retries: further attempts after the first.

    Raises (each method that speaks to the server):
        APIError: the server refused or failed, with its status and error object.
        APIConnectionError: there was no answer, or not all of it.

    Examples:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     print(client.complete("Once upon a time", max_tokens=20, temperature=0).text)
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 2,
    ) -> None:
        self.url = calls.server_root(url)
        self.model = model
        self._retry = RetryPolicy(max_retries)
        self._http = httpx2.Client(
            base_url=self.url, headers=calls.headers(api_key), timeout=http_timeout(timeout), limits=httpx2.Limits()
        )

    def chat(self, messages: Messages, **options: Any) -> ChatCompletion:
        """Answer a conversation.

        Args:
            messages: each a dictionary with "role" and "content"; or a text, the one message of a user.
            options: further fields of the request: max_tokens, temperature, tools, response_format, ...
        """
        return self._ask(calls.chat_call(messages, self._with_model(options)))

    def complete(self, prompt: Prompt, **options: Any) -> Completion:
        """Complete a prompt, or several.

        Args:
            prompt: text or token ids, or a list of either.
            options: further fields of the request. max_tokens is 16 if it is not among them.
        """
        return self._ask(calls.complete_call(prompt, self._with_model(options)))

    @contextlib.contextmanager
    def stream_chat(self, messages: Messages, **options: Any) -> Iterator["Stream[ChatDelta]"]:
        """As `chat`, piece by piece. Leaving the context ends the request, which the server then gives up."""
        call = calls.chat_stream_call(messages, self._with_model(options))
        with self._open(call) as response:
            yield Stream(response, StreamReader(call.answer))

    @contextlib.contextmanager
    def stream_complete(self, prompt: Prompt, **options: Any) -> Iterator["Stream[CompletionDelta]"]:
        """As `complete`, piece by piece. Leaving the context ends the request, which the server then gives up."""
        call = calls.completion_stream_call(prompt, self._with_model(options))
        with self._open(call) as response:
            yield Stream(response, StreamReader(call.answer))

    def models(self) -> list[Model]:
        """What the server serves."""
        return self._ask(calls.models_call()).data

    def tokenize(self, text: Messages, **options: Any) -> TokenizedText:
        """The tokens of a text, or of the prompt that the chat template makes of messages.

        Args:
            options: further fields of the request: add_special_tokens, return_token_strs, ...
        """
        return self._ask(calls.tokenize_call(text, self._with_model(options)))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self._ask(calls.detokenize_call(tokens, self._with_model({}))).prompt

    def health(self) -> bool:
        """Whether the server is there and its engine answers. Asked once, and soon answered; raises nothing."""
        return self._trouble() is None

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server is healthy, for at most `timeout` seconds.

        Raises:
            TimeoutError: it is not, with what it, or trying to reach it, said last.
        """
        deadline = time.monotonic() + timeout
        while (trouble := self._trouble()) is not None:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{self.url} is not ready after {timeout:g} s: {trouble}")
            time.sleep(calls.READY_POLL_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _with_model(self, options: dict[str, Any]) -> dict[str, Any]:
        if "model" in options:
            return options
        if self.model is None:
            self.model = calls.first_model(self.models())
        return {"model": self.model} | options

    def _trouble(self) -> APIError | None:
        try:
            response = self._http.get("/health", timeout=calls.CONNECT_SECONDS)
        except httpx2.RequestError as error:
            return connection_error(self.url, error)
        if response.is_success:
            return None
        return error_of_response(response.status_code, response.content, None)

    def _ask(self, call: Call[T]) -> T:
        with self._open(call) as response:
            try:
                return call.read(response.read())
            except httpx2.RequestError as error:
                raise connection_error(self.url, error) from error

    @contextlib.contextmanager
    def _open(self, call: Call[Any]) -> Iterator[httpx2.Response]:
        """The response to a call that the server accepted, of which nothing is read yet."""
        num_failures = 0
        while True:
            failure: APIError
            try:
                request = self._http.build_request(call.method, call.path, json=call.body)
                response = self._http.send(request, stream=True)
                if response.is_success:
                    break
                failure = error_of_response(response.status_code, response.read(), response.headers.get("retry-after"))
            except httpx2.RequestError as error:
                failure = connection_error(self.url, error)
            num_failures += 1
            delay = self._retry.delay(num_failures, failure)
            if delay is None:
                raise failure
            time.sleep(delay)
        with contextlib.closing(response):
            yield response


class Stream(Generic[D]):
    """Deltas as the server sends them: iterate over it, once.

    Attributes:
        id, usage: of the request; the usage comes last.
    """

    def __init__(self, response: httpx2.Response, reader: StreamReader[D]) -> None:
        self._response = response
        self._reader: StreamReader[D] = reader

    @property
    def id(self) -> str:
        """Of the request; "" before the first delta."""
        return self._reader.id

    @property
    def usage(self) -> Usage | None:
        """What the request was counted as, once the stream has ended."""
        return self._reader.usage

    def __iter__(self) -> Iterator[D]:
        try:
            for content in self._response.iter_bytes():
                yield from self._reader.feed(content)
        except httpx2.RequestError as error:
            raise connection_error(str(self._response.url), error) from error
        self._reader.end()
