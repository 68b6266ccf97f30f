"""The front of the engine: prompts and sampling parameters in, text out. What must survive a crash lives here."""

from collections.abc import Iterable
from copy import copy

from lightvllm.engine.completions import RequestState
from lightvllm.engine.core import EngineCore
from lightvllm.engine.prompts import Prompt, tokenize_prompt
from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.model_config import ModelConfig
from lightvllm.outputs import RequestOutput
from lightvllm.sampling_params import SamplingParams, validate_for_model
from lightvllm.seeds import child_seed, request_seed


class LLMEngine:
    """Runs requests on an engine core in this process.

    Args:
        core: schedules and computes.
        tokenizer: None if prompts are token ids and outputs need no text.
        model_config: for the vocabulary's size and the end-of-sequence tokens.
        seed: of the random draws of requests without a seed of their own.
        max_logprobs: the most log-probabilities a request may ask for at each token; -1 is no limit.
    """

    def __init__(
        self,
        core: EngineCore,
        tokenizer: Tokenizer | None,
        model_config: ModelConfig,
        *,
        seed: int = 0,
        max_logprobs: int = 20,
    ) -> None:
        self.core = core
        self.tokenizer = tokenizer
        self.model_config = model_config
        self.seed = seed
        self.max_logprobs = max_logprobs
        self.num_requests = 0
        self._last_checked: tuple[SamplingParams, SamplingParams] | None = None  # as given, and ready to use
        self.states: dict[str, RequestState] = {}
        # The core knows each completion as a request of its own -> whose it is, and which.
        self.owner_of: dict[str, tuple[RequestState, int]] = {}

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
        stream: bool = False,
    ) -> None:
        """Accept a request.

        Args:
            priority: lower goes first, under the "priority" policy.
            add_special_tokens: whether the tokenizer puts its own around a text (not around a rendered chat template).
            stream: have `step` return this request's output after every token, not only the finished one.

        Raises:
            ValueError: a prompt or parameter that cannot work, or a request that can never fit, with the numbers.
        """
        if request_id in self.states:
            raise ValueError(f"request_id: {request_id!r} is in use")
        if priority and self.core.scheduler.config.policy != "priority":
            raise ValueError('priority: it only means something with scheduling_policy="priority"')
        tokenized = tokenize_prompt(prompt, self.tokenizer, self.model_config.vocab_size, add_special_tokens)
        params = self._checked(params)
        state = RequestState(request_id, tokenized, params, self.tokenizer, stream)
        seed = request_seed(self.seed, self.num_requests) if params.seed is None else params.seed
        sibling_params = copy(params)
        sibling_params.prompt_logprobs = None  # the first completion's serve all
        for index in range(params.n):
            core_id = f"{request_id}/{index}" if params.n > 1 else request_id
            request = Request(
                core_id,
                tokenized.token_ids,
                params if index == 0 else sibling_params,
                seed=child_seed(seed, index),
                eos_token_ids=self.model_config.eos_token_ids,
                priority=priority,
                cache_salt=tokenized.cache_salt,
            )
            try:
                self.core.add_request(request)
            except ValueError:
                self.abort_request([request_id])
                raise
            self.states[request_id] = state
            self.owner_of[core_id] = (state, index)
        self.num_requests += 1

    def _checked(self, params: SamplingParams) -> SamplingParams:
        """The caller's parameters, which may change while the request runs, checked and copied: once for equal ones."""
        if self._last_checked is None or self._last_checked[0] != params:
            self._last_checked = (copy(params), self._check(copy(params)))
        return self._last_checked[1]

    def _check(self, params: SamplingParams) -> SamplingParams:
        if self.tokenizer is None:
            if params.stop or params.bad_words:
                raise ValueError("stop, bad_words: text needs a tokenizer, which skip_tokenizer_init left out")
        elif params.bad_words:
            params.resolve_bad_words(self.tokenizer)
        validate_for_model(params, self.model_config.vocab_size, self.max_logprobs)
        return params

    def abort_request(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now; returns what they have so far. Ids of finished or unknown requests mean nothing."""
        outputs = []
        for request_id in request_ids:
            state = self.states.get(request_id)
            if state is None:
                continue
            core_ids = [core_id for core_id, (owner, _) in self.owner_of.items() if owner is state]
            for output in self.core.abort(core_ids):
                self._take(output)
            for core_id in core_ids:
                self.owner_of.pop(core_id, None)
            self.states.pop(request_id, None)
            outputs.append(state.output())
        return outputs

    def step(self) -> list[RequestOutput]:
        """Compute one step; returns the requests it finished, and the streamed ones it gave something."""
        changed: dict[str, RequestState] = {}
        for output in self.core.step():
            state = self._take(output)
            if state is not None and (state.stream or state.num_unfinished == 0):
                changed[state.request_id] = state
        return [state.output() for state in changed.values()]

    def _take(self, output: CoreOutput) -> RequestState | None:
        owner = self.owner_of.get(output.request_id)
        if owner is None:
            return None
        state, index = owner
        if state.append(index, output):
            self.core.abort([output.request_id])
        if state.completions[index].finish_reason is not None:
            del self.owner_of[output.request_id]
            if state.num_unfinished == 0:
                self.states.pop(state.request_id, None)
        return state

    def has_unfinished_requests(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.states)
