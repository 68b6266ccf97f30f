"""The engine for a server: the core in a process of its own, requests as streams, and crashes that nobody notices."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from lightvllm.config import EngineConfig
from lightvllm.engine.observer import EngineObserver
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.engine.trace import StepTrace
from lightvllm.model_config import ModelConfig
from lightvllm.outputs import Logprob
from lightvllm.sampling_params import SamplingParams


@dataclass(slots=True)
class CompletionDelta:
    """What a completion got since the last delta.

    Attributes:
        index: which of the request's `n`.
        text: new text, certain: no half characters, no part of a stop string.
        token_ids, logprobs: the new tokens; those whose text is still held back are among them. `logprobs` is parallel,
            None unless asked for.
        finish_reason, stop_reason: as in `lightvllm.outputs.CompletionOutput`; set in its last delta.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: Literal["stop", "length", "abort", "error"] | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestDelta:
    """What a request got since the last delta: only those completions that got anything.

    Attributes:
        num_cached_tokens: prompt tokens that the prefix cache had.
        prompt_logprobs: in the first delta, if asked for: as in `lightvllm.outputs.RequestOutput`.
        finished: all completions are; no delta follows.
    """

    outputs: list[CompletionDelta]
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False


class RequestFailed(RuntimeError):
    """A request ended by no fault of its sender's, or past its deadline; raised from its stream.

    Attributes:
        kind: "deadline": it took longer than it may. "engine": a step failed because of it, or it was running in
            three engine crashes without a token between. "shutdown": the server stops.
    """

    def __init__(self, kind: Literal["deadline", "engine", "shutdown"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Health:
    """Whether the engine answers, and if not, what is being done about it."""

    is_healthy: bool
    status: Literal["starting", "ok", "restarting", "hung", "stopping", "failed"]
    message: str = ""


class RequestStream:
    """The deltas of one request. A reader that is slow gets fewer and larger ones: nothing piles up but its output."""

    request_id: str

    def __aiter__(self) -> AsyncIterator[RequestDelta]:
        """Raises `RequestFailed` where the request fails. Leaving the loop early does not abort: call `abort`."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give the request up and free its cache blocks. Nothing happens if it has finished."""
        raise NotImplementedError


class AsyncEngine:
    """See the module.

    Attributes:
        tokenizer, model_config, chat_template, default_sampling_params: as in `lightvllm.llm.LLM`. There is always a
            tokenizer.
        max_model_len: the most tokens, prompt and output, of one request. Known once started.
        num_unfinished, num_unfinished_tokens: requests that wait or run, and their prompt tokens.
    """

    tokenizer: Tokenizer
    model_config: ModelConfig
    chat_template: str | None
    default_sampling_params: dict[str, object]
    max_model_len: int
    num_unfinished: int
    num_unfinished_tokens: int

    def __init__(
        self,
        config: EngineConfig,
        observer: EngineObserver | None = None,
        *,
        max_queued_requests: int = 1024,
        max_queued_tokens: int = 1 << 20,
        engine_timeout: float = 120.0,
    ) -> None: ...

    async def start(self) -> None:
        """Start the engine process and wait until its model is loaded.

        Raises:
            ValueError: a setting or a checkpoint that does not work.
        """

    async def add_request(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> RequestStream:
        """Accept a request. When this returns it is valid, and will be answered.

        Args:
            params: checked here against the model; `params.stop` and the like are resolved.
            timeout: seconds from now after which it is given up with `RequestFailed("deadline")`.

        Raises:
            ParameterError: (a ValueError) what cannot work, prompt + max_tokens beyond the context included.
            EngineOverloaded: the queue is full.
            EngineUnavailable: no engine answers, and none will soon.
        """
        raise NotImplementedError

    async def health(self) -> Health:
        """Ask the engine whether it lives."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """The figures of the last step."""
        raise NotImplementedError

    def watch(self) -> AsyncIterator[StepTrace]:
        """The engine's steps as they happen, while the iterator is open; steps nobody had time to read are left out."""
        raise NotImplementedError

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""

    async def stop(self, timeout: float) -> None:
        """Accept nothing more, let what runs finish for so many seconds, fail the rest, end the process."""
