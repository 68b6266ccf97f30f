"""An engine without a model: `AsyncEngine`'s face, the real tokenizer, checks and streams, and scripted tokens."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.async_engine import Health
from lightvllm.engine.completions import RequestState
from lightvllm.engine.frontend import Frontend
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.request import CoreOutput
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import TokenLogprobs
from lightvllm.engine.streams import RequestFailed, RequestStream
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.errors import EngineOverloaded, EngineUnavailable, ParameterError
from lightvllm.sampling_params import SamplingParams

# What a completion says: text, or token ids. An end-of-sequence token follows unless the last id is one, or -1, which
# stands for a model that goes on: what it says is then repeated for as long as it may.
Reply = str | list[int]
FOREVER = -1


@dataclass
class Pace:
    """How the engine's tokens come.

    Attributes:
        tokens_per_step: tokens of each completion in one step.
        seconds_per_step: how long a step takes; 0 lets everybody else run once between two steps.
        all_at_once: all steps are made before anybody may look.
        fail_after: a step after which requests fail with `failure`.
    """

    tokens_per_step: int = 1
    seconds_per_step: float = 0.0
    all_at_once: bool = False
    fail_after: int | None = None
    failure: RequestFailed = field(default_factory=lambda: RequestFailed("engine", "the engine failed three times"))


@dataclass
class Submitted:
    """A request that was accepted, as the engine saw it."""

    request_id: str
    prompt: TokenizedPrompt
    params: SamplingParams
    priority: int
    timeout: float | None


class FakeEngine:
    """See the module.

    Args:
        reply: what every completion says; or a function of the prompt's text (None for token ids) and the
            completion's index.

    Attributes:
        submitted: all requests that were accepted.
        aborted: ids of requests that were aborted before they had finished.
        running: ids of requests that have not ended.
        refusal: raised by `add_request` instead of accepting.
    """

    def __init__(
        self,
        reply: Reply | Callable[[str | None, int], Reply] = "Hello, world.",
        *,
        pace: Pace | None = None,
        chat_template: str | None = None,
        max_model_len: int = 4096,
        num_cached_tokens: int = 0,
        scheduling_policy: str = "fcfs",
        default_sampling_params: dict[str, object] | None = None,
    ) -> None:
        self.frontend = _frontend(chat_template, scheduling_policy)
        assert self.frontend.tokenizer is not None
        self.tokenizer: Tokenizer = self.frontend.tokenizer
        self.model_config = self.frontend.model_config
        self.chat_template = self.frontend.chat_template
        self.default_sampling_params = default_sampling_params or {}
        self.max_model_len = max_model_len
        self.config = self.frontend.config
        self.reply = reply
        self.pace = pace or Pace()
        self.num_cached_tokens = num_cached_tokens
        self.submitted: list[Submitted] = []
        self.aborted: list[str] = []
        self.running: dict[str, asyncio.Task[None]] = {}
        self.refusal: ParameterError | EngineOverloaded | EngineUnavailable | None = None
        self.status = Health(True, "ok")

    @property
    def num_unfinished(self) -> int:
        return len(self.running)

    @property
    def num_unfinished_tokens(self) -> int:
        return sum(len(one.prompt.token_ids) for one in self.submitted if one.request_id in self.running)

    @property
    def eos_token_id(self) -> int:
        return self.model_config.eos_token_ids[0]

    async def start(self) -> None:
        pass

    async def stop(self, timeout: float) -> None:
        for task in list(self.running.values()):
            task.cancel()

    async def health(self) -> Health:
        return self.status

    def stats(self) -> EngineStats:
        raise NotImplementedError("a fake engine has no figures")

    async def reset_prefix_cache(self) -> None:
        pass

    async def add_request(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> RequestStream:
        if self.refusal is not None:
            raise self.refusal
        if request_id in self.running:
            raise ParameterError("request_id", f"request_id: {request_id!r} is in use")
        num_prompt_tokens = len(prompt.token_ids)
        if num_prompt_tokens + (params.max_tokens or 1) > self.max_model_len:
            raise ParameterError(
                "max_tokens",
                f"prompt of {num_prompt_tokens} tokens plus max_tokens of {params.max_tokens} is more than the "
                f"context of {self.max_model_len}",
            )
        state = self.frontend.open_request(request_id, prompt, params, priority=priority, stream=True)
        self.submitted.append(Submitted(request_id, prompt, params, priority, timeout))
        stream = RequestStream(state, self._abort)
        self.running[request_id] = asyncio.get_running_loop().create_task(self._run(state, stream, timeout))
        return stream

    def _abort(self, request_id: str) -> None:
        task = self.running.pop(request_id, None)
        if task is not None:
            task.cancel()
            self.aborted.append(request_id)

    async def _run(self, state: RequestState, stream: RequestStream, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._make_steps(state, stream)
        except TimeoutError:
            del self.running[state.request_id]
            stream.fail(RequestFailed("deadline", f"the request took longer than its {timeout:g} s"))

    async def _make_steps(self, state: RequestState, stream: RequestStream) -> None:
        scripts = [self._script(state, index) for index in range(state.params.n)]
        for step in range(max(len(script) for script in scripts)):
            if step == self.pace.fail_after:
                del self.running[state.request_id]
                stream.fail(self.pace.failure)
                return
            for index, script in enumerate(scripts):
                if step < len(script) and state.completions[index].finish_reason is None:
                    state.append(index, script[step])
            if state.num_unfinished == 0:
                break
            if not self.pace.all_at_once:
                stream.wake()
                await asyncio.sleep(self.pace.seconds_per_step)
        assert state.num_unfinished == 0, "the script does not come to an end"
        del self.running[state.request_id]
        stream.wake()

    def _script(self, state: RequestState, index: int) -> list[CoreOutput]:
        """What the core gives one completion, step by step."""
        token_ids, finish_reason, stop_reason = self._tokens(state, index)
        outputs = []
        size = self.pace.tokens_per_step
        for start in range(0, len(token_ids), size):
            new = token_ids[start : start + size]
            is_last = start + size >= len(token_ids)
            outputs.append(
                CoreOutput(
                    request_id=state.request_id,
                    new_token_ids=new,
                    logprobs=_logprobs(new, state.params.logprobs),
                    prompt_logprobs=(
                        _logprobs(state.prompt.token_ids[1:], state.params.prompt_logprobs)
                        if start == 0 and index == 0
                        else None
                    ),
                    finish_reason=finish_reason if is_last else None,
                    stop_reason=stop_reason if is_last else None,
                    num_cached_tokens=self.num_cached_tokens,
                    first_scheduled_time=0.0,
                )
            )
        return outputs

    def _tokens(self, state: RequestState, index: int) -> tuple[list[int], str, int | None]:
        """The tokens of a completion, why they end, and the stop token that does."""
        params = state.params
        reply = self.reply(state.prompt.text, index) if callable(self.reply) else self.reply
        token_ids = self.tokenizer.encode(reply, add_special_tokens=False) if isinstance(reply, str) else list(reply)
        most = self.max_model_len - len(state.prompt.token_ids)
        most = most if params.max_tokens is None else params.max_tokens
        if token_ids and token_ids[-1] == FOREVER:
            token_ids = (token_ids[:-1] * most)[:most]
        else:
            token_ids = [token_id for token_id in token_ids if token_id != self.eos_token_id] + [self.eos_token_id]
        for position, token_id in enumerate(token_ids[:most]):
            if token_id in (params.stop_token_ids or []):
                return token_ids[: position + 1], "stop", token_id
        if len(token_ids) <= most and token_ids[-1] == self.eos_token_id:
            return token_ids, "stop", None
        return token_ids[:most], "length", None


@cache
def _frontend(chat_template: str | None, scheduling_policy: Any) -> Frontend:
    """Loaded once: it takes longer than most tests."""
    return Frontend(
        EngineConfig(model=str(DEFAULT_MODEL), chat_template=chat_template, scheduling_policy=scheduling_policy)
    )


def logprob_of(token_id: int) -> float:
    """What the fake engine says of a token, wherever it stands: some number that another token does not have."""
    return -1.0 - token_id / 1000


def _logprobs(token_ids: Sequence[int], num_likeliest: int | None) -> list[TokenLogprobs] | None:
    """The likeliest tokens are 1, 2, ...: none of them is the chosen one, unless it is by chance."""
    if num_likeliest is None:
        return None
    likeliest = list(range(1, num_likeliest + 1))
    return [
        TokenLogprobs(
            [token_id, *likeliest],
            [logprob_of(token_id), *(logprob_of(other) for other in likeliest)],
            chosen_rank=max(token_id, 1),
        )
        for token_id in token_ids
    ]
