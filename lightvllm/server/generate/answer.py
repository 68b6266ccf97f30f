"""The answer to a request that generates: what those of both endpoints have in common."""

import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import msgspec
from starlette.requests import Request

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.streams import RequestDelta
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.errors import to_api_error
from lightvllm.server.generate.chunks import PromptTokensDetails, Usage
from lightvllm.server.generate.submit import submitted
from lightvllm.server.logs import note
from lightvllm.server.protocol.sampling import GenerationFields, StreamOptions

logger = logging.getLogger(__name__)

_encoder = msgspec.json.Encoder()


class Answer(ABC):
    """One request's answer, whole or as it comes. Both are made in the same way: the whole one in a single step.

    Args:
        http: for the engine, the model's name, the request's id, and the access line.
        prefix: of the answer's id.

    Attributes:
        id: the same in the answer and in all its chunks.
        created: seconds since 1970.
    """

    def __init__(
        self,
        http: Request,
        request: GenerationFields,
        prompts: Sequence[TokenizedPrompt],
        params: SamplingParams,
        prefix: str,
    ) -> None:
        self.engine: AsyncEngine = http.app.state.engine
        self.prompts = prompts
        self.params = params
        self.id = f"{prefix}-{request.request_id or http.state.request_id}"
        self.created = int(time.time())
        self.model: str = request.model or http.app.state.model_names[0]
        self.options = request.stream_options or StreamOptions.model_validate({})
        self.usage = UsageCount(prompts)
        self._http = http
        self._fields = request
        note(http, request_id=self.id, model=self.model, user=request.user)

    async def whole(self) -> bytes:
        """The answer as JSON, once all of it is there.

        Raises:
            As `AsyncEngine.add_request` and `RequestStream`.
        """
        try:
            async with submitted(self.engine, self._fields, self._engine_id(), self.prompts, self.params) as generation:
                deltas = await generation.final()
            for index, delta in enumerate(deltas):
                self._receive(index, delta)
            return _encoder.encode(self._whole(deltas))
        finally:
            self.usage.note(self._http)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, without the final `[DONE]`; raises as `whole` does."""
        try:
            async with (
                submitted(self.engine, self._fields, self._engine_id(), self.prompts, self.params) as generation,
                aclosing(generation.deltas()) as batches,
            ):
                async for batch in batches:
                    chunks: list[msgspec.Struct] = []
                    for index, delta in batch:
                        self._receive(index, delta)
                        chunks += self._chunks(index, delta)
                    if chunks:
                        yield b"".join(map(_event, chunks))
            if self.options.include_usage:
                yield _event(self._usage_chunk())
        finally:
            self.usage.note(self._http)

    def _engine_id(self) -> str:
        """Clients may use an id twice at a time, the engine may not."""
        return f"{self.id}-{secrets.token_hex(4)}"

    def _receive(self, prompt_index: int, delta: RequestDelta) -> None:
        """Called with all that the engine says of a prompt, before anything is made of it."""
        self.usage.add(prompt_index, delta)

    @abstractmethod
    def _whole(self, deltas: Sequence[RequestDelta]) -> msgspec.Struct:
        """The answer, of which each prompt's delta is all."""

    @abstractmethod
    def _chunks(self, prompt_index: int, delta: RequestDelta) -> Iterable[msgspec.Struct]:
        """The chunks that tell what is new of a prompt."""

    @abstractmethod
    def _usage_chunk(self) -> msgspec.Struct:
        """The last chunk, which has the usage and nothing else."""


class UsageCount:
    """Counts an answer's tokens as they come."""

    def __init__(self, prompts: Sequence[TokenizedPrompt]) -> None:
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._num_output_tokens = 0
        self._num_cached_tokens = [0] * len(prompts)
        self._finish_reasons: list[str] = []
        self._first_token: float | None = None  # seconds until the first of all

    def add(self, prompt_index: int, delta: RequestDelta) -> None:
        """Count what is new of a prompt."""
        if self._first_token is None:
            self._first_token = delta.time_to_first_token
        self._num_cached_tokens[prompt_index] = delta.num_cached_tokens
        for output in delta.outputs:
            self._num_output_tokens += len(output.token_ids)
            if output.finish_reason is not None:
                self._finish_reasons.append(output.finish_reason)

    def usage(self, num_unsaid: int = 0) -> Usage:
        """So far, but for so many tokens. A prompt counts once, however many choices it has."""
        num_output_tokens = self._num_output_tokens - num_unsaid
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            total_tokens=self._num_prompt_tokens + num_output_tokens,
            completion_tokens=num_output_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._num_cached_tokens)),
        )

    def note(self, http: Request) -> None:
        """Put it into the access line."""
        note(
            http,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=sum(self._num_cached_tokens),
            output_tokens=self._num_output_tokens,
            ttft=self._first_token,
            finish_reasons=self._finish_reasons or None,
        )


def describe_error(error: Exception) -> bytes:
    """The error object as JSON, for a stream that has begun."""
    api_error = to_api_error(error)
    if api_error.status == 500:
        logger.error("a stream failed", exc_info=error)
    return _encoder.encode(api_error.body())


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encoder.encode(chunk) + b"\n\n"
