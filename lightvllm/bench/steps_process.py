"""One step of `lightvllm bench steps`, in a process of its own: `python -m lightvllm.bench.steps_process JOB RESULT`.

Both are JSON files, `Job` and `Result`.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from lightvllm import kernels
from lightvllm.bench.figures import peak_resident_bytes
from lightvllm.bench.job import serve_job
from lightvllm.engine.step import StepInput
from lightvllm.learn.contiguous import ContiguousAttention, cached_tokens, naive_tokens
from lightvllm.llm import LLM
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import load_packed_model, torch_dtype
from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.memory import keep_freed_memory

Loop = Literal["naive_tokens", "cached_tokens"]
WARM_UP_TOKENS = 8  # of the prompt


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        model: checkpoint folder.
        dtype: number type of weights and activations.
        max_model_len: tokens that a contiguous cache has room for, and the engine's limit.
        loop: of `lightvllm.learn.contiguous`; None for the engine.
        options: of `LLM`.
        has_kernels: whether the compiled kernels are to be there.
        prompts: token ids.
        output_lens: of each request, tokens to generate.
        repeats: how often to run them all.
    """

    model: str
    dtype: str
    max_model_len: int
    loop: Loop | None
    options: dict[str, Any]
    has_kernels: bool
    prompts: list[list[int]]
    output_lens: list[int]
    repeats: int


@dataclass(frozen=True)
class Run:
    """One run of all requests, which are sent at once.

    Attributes:
        seconds: until the last one was done.
        first_token_times, latencies: when each request had its first and its last token.
        token_ids: that each generated.
        used_tokens, reserved_tokens: of the KV cache, summed over the steps: tokens that the requests had there, and
            those there was room for in what they had reserved. Both 0 without a cache.
    """

    seconds: float
    first_token_times: list[float]
    latencies: list[float]
    token_ids: list[list[int]]
    used_tokens: int
    reserved_tokens: int


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        peak_bytes: the most memory that the process held.
    """

    runs: list[Run]
    peak_bytes: int


class Runner(Protocol):
    """A way to generate."""

    def run(self, prompts: list[list[int]], output_lens: list[int]) -> Run:
        """Generate so many tokens greedily for each of the prompts."""
        ...


class LoopRunner:
    """A loop of `lightvllm.learn.contiguous`, for one request after the other."""

    def __init__(self, job: Job) -> None:
        self.config = ModelConfig.from_pretrained(job.model)
        self.dtype = torch_dtype(job.dtype, self.config)
        self.model = load_packed_model(Path(job.model), self.config, self.dtype, torch.device("cpu"), None)
        self.max_len = job.max_model_len
        self.is_cached = job.loop == "cached_tokens"

    def run(self, prompts: list[list[int]], output_lens: list[int]) -> Run:
        """See `Runner.run`."""
        first, last, outputs = [], [], []
        used = reserved = 0
        start = time.monotonic()
        for prompt, output_len in zip(prompts, output_lens, strict=True):
            cache = ContiguousAttention(self.config, self.max_len, self.dtype) if self.is_cached else None
            tokens = (
                naive_tokens(self.model, prompt, output_len)
                if cache is None
                else cached_tokens(self.model, prompt, output_len, cache)
            )
            times, token_ids = [], []
            for token in tokens:
                token_ids.append(token)
                times.append(time.monotonic() - start)
                if cache is not None:
                    used += cache.num_tokens
                    reserved += cache.max_len
            first.append(times[0])
            last.append(times[-1])
            outputs.append(token_ids)
        return Run(last[-1], first, last, outputs, used, reserved)


class EngineRunner:
    """The engine. Each run finds the prefix cache empty."""

    def __init__(self, job: Job) -> None:
        self.llm = LLM(
            job.model,
            dtype=job.dtype,
            device="cpu",
            max_model_len=job.max_model_len,
            skip_tokenizer_init=True,
            **job.options,
        )
        self.core = self.llm.engine.core
        self.core.on_scheduled = self._note_cache
        self.used = self.reserved = 0

    def run(self, prompts: list[list[int]], output_lens: list[int]) -> Run:
        """See `Runner.run`."""
        self.llm.reset_prefix_cache()
        self.used = self.reserved = 0
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        start = time.monotonic()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - start
        metrics: list[Any] = [output.metrics for output in outputs]  # whose times are all there: the requests are done
        return Run(
            seconds,
            [times.first_token_time - start for times in metrics],
            [times.last_token_time - start for times in metrics],
            [output.outputs[0].token_ids for output in outputs],
            self.used,
            self.reserved,
        )

    def _note_cache(self, step: StepInput) -> None:
        """What is in the cache when this step is done, and the room in the blocks that requests own."""
        scheduler = self.core.scheduler
        self.used += sum(request.num_computed_tokens for request in scheduler.running) + sum(step.num_scheduled_tokens)
        self.reserved += scheduler.block_pool.num_used * scheduler.config.block_size


def runner_of(job: Job) -> Runner:
    """What the job asks for, its model loaded."""
    return EngineRunner(job) if job.loop is None else LoopRunner(job)


def measure(job: Job) -> Result:
    """Load the model, warm up, and run.

    Raises:
        ValueError: the model does not load, or there are no compiled kernels where they are to be measured.
    """
    if job.has_kernels and not kernels.COMPILED:
        raise ValueError("the compiled CPU kernels are not there, see `lightvllm env`")
    assert job.has_kernels or not kernels.COMPILED, "the compiled kernels are there, but are to be left out"
    keep_freed_memory()  # as the engine does
    runner = runner_of(job)
    runner.run([job.prompts[0][:WARM_UP_TOKENS]], [2])
    runs = [runner.run(job.prompts, job.output_lens) for _ in range(job.repeats)]
    return Result(runs, peak_resident_bytes())


if __name__ == "__main__":
    sys.exit(serve_job(Job, measure))
