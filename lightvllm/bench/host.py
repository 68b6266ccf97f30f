"""What the engine itself costs: the time of a step that is not the model's, with many requests in decode."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightvllm.bench.figures import percentile
from lightvllm.bench.internals import worker_of
from lightvllm.bench.workload import Workload
from lightvllm.llm import LLM
from lightvllm.sampling_params import SamplingParams

WARMUP_STEPS = 4


@dataclass(frozen=True)
class HostTime:
    """Medians over the steps, in seconds; a step generates one token for each request.

    Attributes:
        step: the whole step.
        model: the forward pass and the logits.
        outside: step less model: everything the engine does around the model, sampling included.
        outside_p99: the 99th percentile of it.
        sampling: of that, choosing tokens from the logits.
    """

    num_requests: int
    num_steps: int
    step: float
    model: float
    outside: float
    outside_p99: float
    sampling: float


class _Stopwatch:
    """Adds up the time spent in the calls it is wrapped around."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._synchronize()
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self._synchronize()
            self.seconds += time.perf_counter() - start
            return result

        return timed

    def take(self) -> float:
        """The seconds since the last time."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _TimedModel:
    """Stands in for the model in its runner."""

    def __init__(self, model: Any, stopwatch: _Stopwatch) -> None:
        self.config = model.config
        self.forward: Callable[..., Tensor] = stopwatch.around(model)
        self.compute_logits: Callable[[Tensor], Tensor] = stopwatch.around(model.compute_logits)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.forward(*args, **kwargs)


def measure_host_time(llm: LLM, num_requests: int = 256, num_steps: int = 64, input_len: int = 100) -> HostTime:
    """Run `num_requests` greedy requests until all decode, then time `num_steps` steps. The engine is idle afterwards.

    Raises:
        ValueError: the engine cannot run that many at a time.
    """
    limit = llm.config.max_num_seqs
    if num_requests > limit:
        raise ValueError(f"num_requests: {num_requests} is more than max_num_seqs, which is {limit}")
    if num_steps < 1:
        raise ValueError(f"num_steps: {num_steps} is out of range, expected at least 1")
    workload = Workload(num_requests=num_requests, input_len=input_len, output_len=1, seed=llm.config.seed)
    # Some are done with their prompt before others, and none may end before the last step.
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=None, detokenize=llm.tokenizer is not None)
    request_ids = [next(llm.request_ids) for _ in range(num_requests)]
    runner = worker_of(llm).runner
    model, sampler = runner.model, runner.sampler
    try:
        for request_id, prompt in zip(request_ids, workload.prompts(llm.model_config.vocab_size), strict=True):
            llm.engine.add_request(request_id, prompt, params)
        while any(state.metrics.first_token_time is None for state in llm.engine.states.values()):
            llm.engine.step()
        in_model, in_sampler = _Stopwatch(runner.device), _Stopwatch(runner.device)
        runner.model = _TimedModel(model, in_model)  # type: ignore[assignment]
        runner.sampler.sample = in_sampler.around(sampler.sample)  # type: ignore[method-assign]
        steps = [_time_step(llm, num_requests, in_model, in_sampler) for _ in range(WARMUP_STEPS + num_steps)]
    finally:
        runner.model = model
        vars(sampler).pop("sample", None)
        llm.engine.abort_request(request_ids)
    return _summarize(num_requests, steps[WARMUP_STEPS:])


def _time_step(llm: LLM, num_requests: int, in_model: _Stopwatch, in_sampler: _Stopwatch) -> tuple[float, float, float]:
    """Seconds of the step, in the model, in the sampler."""
    start = time.perf_counter()
    llm.engine.step()
    step = time.perf_counter() - start
    if llm.get_metrics().num_running != num_requests:
        raise ValueError(
            f"num_requests: only {llm.get_metrics().num_running} of {num_requests} run at a time; "
            f"raise kv_cache_memory_bytes, or ask for fewer steps"
        )
    return step, in_model.take(), in_sampler.take()


def _summarize(num_requests: int, steps: list[tuple[float, float, float]]) -> HostTime:
    whole, model, sampling = (list(column) for column in zip(*steps, strict=True))
    outside = [a - b for a, b in zip(whole, model, strict=True)]
    return HostTime(
        num_requests=num_requests,
        num_steps=len(steps),
        step=statistics.median(whole),
        model=statistics.median(model),
        outside=statistics.median(outside),
        outside_p99=percentile(outside, 99),
        sampling=statistics.median(sampling),
    )
