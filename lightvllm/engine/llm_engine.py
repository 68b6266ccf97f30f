"""The engine of an offline program: prompts and sampling parameters in, text out, all in this process."""

from collections.abc import Iterable

from lightvllm.engine.completions import RequestState
from lightvllm.engine.core import EngineCore
from lightvllm.engine.frontend import Frontend
from lightvllm.engine.prompts import Prompt
from lightvllm.engine.request import CoreOutput, Request
from lightvllm.errors import EngineAsleep, ParameterError
from lightvllm.outputs import RequestOutput
from lightvllm.sampling_params import SamplingParams


class LLMEngine:
    """Runs requests on an engine core in this process.

    Args:
        core: schedules and computes.
        frontend: makes requests of prompts.
    """

    def __init__(self, core: EngineCore, frontend: Frontend) -> None:
        self.core = core
        self.frontend = frontend
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
            EngineAsleep: the engine sleeps.
        """
        if request_id in self.states:
            raise ParameterError("request_id", f"request_id: {request_id!r} is in use")
        tokenized = self.frontend.tokenize(prompt, add_special_tokens)
        state = self.frontend.open_request(request_id, tokenized, params, priority=priority, stream=stream)
        self.states[request_id] = state
        for index, message in enumerate(state.core_requests()):
            try:
                self.core.add_request(Request.from_message(message))
            except (ValueError, EngineAsleep):
                self.abort_request([request_id])
                raise
            self.owner_of[message.request_id] = (state, index)

    def abort_request(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests now; returns what they have so far. Ids of finished or unknown requests mean nothing."""
        outputs = []
        for request_id in request_ids:
            state = self.states.get(request_id)
            if state is None:
                continue
            core_ids = [core_id for core_id in state.core_ids if core_id in self.owner_of]
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
