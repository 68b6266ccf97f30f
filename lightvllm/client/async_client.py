"""The asynchronous client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
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


class AsyncClient:
    """`lightvllm.client.Client` for asyncio: the same methods, arguments and errors. May be used by several tasks.

    Examples:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:
        ...     async with client.stream_chat("How many moons has Mars?") as stream:
        ...         async for delta in stream:
        ...             print(delta.text, end="", flush=True)
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
        self._http = httpx2.AsyncClient(
            base_url=self.url, headers=calls.headers(api_key), timeout=http_timeout(timeout), limits=httpx2.Limits()
        )

    async def chat(self, messages: Messages, **options: Any) -> ChatCompletion:
        """See `Client.chat`."""
        return await self._ask(calls.chat_call(messages, await self._with_model(options)))

    async def complete(self, prompt: Prompt, **options: Any) -> Completion:
        """See `Client.complete`."""
        return await self._ask(calls.complete_call(prompt, await self._with_model(options)))

    @contextlib.asynccontextmanager
    async def stream_chat(self, messages: Messages, **options: Any) -> AsyncIterator["AsyncStream[ChatDelta]"]:
        """See `Client.stream_chat`."""
        call = calls.chat_stream_call(messages, await self._with_model(options))
        async with self._open(call) as response:
            yield AsyncStream(response, StreamReader(call.answer))

    @contextlib.asynccontextmanager
    async def stream_complete(self, prompt: Prompt, **options: Any) -> AsyncIterator["AsyncStream[CompletionDelta]"]:
        """See `Client.stream_complete`."""
        call = calls.completion_stream_call(prompt, await self._with_model(options))
        async with self._open(call) as response:
            yield AsyncStream(response, StreamReader(call.answer))

    async def models(self) -> list[Model]:
        """See `Client.models`."""
        return (await self._ask(calls.models_call())).data

    async def tokenize(self, text: Messages, **options: Any) -> TokenizedText:
        """See `Client.tokenize`."""
        return await self._ask(calls.tokenize_call(text, await self._with_model(options)))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """See `Client.detokenize`."""
        return (await self._ask(calls.detokenize_call(tokens, await self._with_model({})))).prompt

    async def health(self) -> bool:
        """See `Client.health`."""
        return await self._trouble() is None

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """See `Client.wait_until_ready`."""
        deadline = asyncio.get_running_loop().time() + timeout
        while (trouble := await self._trouble()) is not None:
            if asyncio.get_running_loop().time() >= deadline:
                raise TimeoutError(f"{self.url} is not ready after {timeout:g} s: {trouble}")
            await asyncio.sleep(calls.READY_POLL_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _with_model(self, options: dict[str, Any]) -> dict[str, Any]:
        if "model" in options:
            return options
        if self.model is None:
            self.model = calls.first_model(await self.models())
        return {"model": self.model} | options

    async def _trouble(self) -> APIError | None:
        try:
            response = await self._http.get("/health", timeout=calls.CONNECT_SECONDS)
        except httpx2.RequestError as error:
            return connection_error(self.url, error)
        if response.is_success:
            return None
        return error_of_response(response.status_code, response.content, None)

    async def _ask(self, call: Call[T]) -> T:
        async with self._open(call) as response:
            try:
                return call.read(await response.aread())
            except httpx2.RequestError as error:
                raise connection_error(self.url, error) from error

    @contextlib.asynccontextmanager
    async def _open(self, call: Call[Any]) -> AsyncIterator[httpx2.Response]:
        """The response to a call that the server accepted, of which nothing is read yet."""
        num_failures = 0
        while True:
            failure: APIError
            try:
                request = self._http.build_request(call.method, call.path, json=call.body)
                response = await self._http.send(request, stream=True)
                if response.is_success:
                    break
                body = await response.aread()
                failure = error_of_response(response.status_code, body, response.headers.get("retry-after"))
            except httpx2.RequestError as error:
                failure = connection_error(self.url, error)
            num_failures += 1
            delay = self._retry.delay(num_failures, failure)
            if delay is None:
                raise failure
            await asyncio.sleep(delay)
        async with contextlib.aclosing(response):
            yield response


class AsyncStream(Generic[D]):
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

    async def __aiter__(self) -> AsyncIterator[D]:
        try:
            async for content in self._response.aiter_bytes():
                for delta in self._reader.feed(content):
                    yield delta
        except httpx2.RequestError as error:
            raise connection_error(str(self._response.url), error) from error
        self._reader.end()
