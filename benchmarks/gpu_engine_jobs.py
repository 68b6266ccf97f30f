"""What `gpu_engine.py` measures in processes of its own: `python -m gpu_engine_jobs JOB RESULT`, both JSON files."""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_rates import Rates, describe_gpu
from gpu_timeline import Timeline, record
from gpu_workload import run_engine, run_transformers

from lightvllm import LLM, SamplingParams
from lightvllm.bench.job import serve_job
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint

PROMPT_LEN = 128  # where only the number of requests matters
WARM_UP_STEPS, STEPS = 4, 48
PREFILLS = 3
WARM_UP_TOKENS = 8
TIMELINE_STEPS = 24
PATIENCE = 100  # steps without a first token, after which those that wait for it have no room


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        kind: of `KINDS`.
        folder: of the model; its config.json is enough, but for "checkpoint", which writes it.
        options: of `LLM`.
        arguments: of the kind's function.
    """

    kind: str
    folder: str
    options: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What the kind's function returned."""

    value: Any


@dataclass(frozen=True)
class Figures:
    """Seconds, of one engine.

    Attributes:
        load: from `LLM(...)` until it is there.
        token: of a request alone, from its first token to its last one, each.
        steps: number of requests -> a step in which each gets a token, the median.
        context_steps: tokens of context -> the same of one request behind so many.
        prefills: tokens of a prompt -> until its first token, the median.
        timelines: load -> what the GPU did.
    """

    load: float
    token: float
    steps: dict[int, float]
    context_steps: dict[int, float]
    prefills: dict[int, float]
    timelines: dict[str, Timeline]


class Driver:
    """Steps an engine through loads of random tokens, each of them new: the prefix cache knows none."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.draw = random.Random(0)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """So many of so many tokens."""
        vocabulary = range(self.llm.model_config.vocab_size)
        return [self.draw.choices(vocabulary, k=length) for _ in range(count)]

    def generate(self, count: int, prompt_len: int, output_len: int) -> list[Any]:
        """Greedily; each request's metrics."""
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = self.llm.generate(self.prompts(count, prompt_len), params, use_tqdm=False)
        return [output.metrics for output in outputs]

    def token(self, output_len: int) -> float:
        """Of a request alone, seconds for each token after its first."""
        self.generate(1, PROMPT_LEN, min(WARM_UP_TOKENS, output_len))
        (metrics,) = self.generate(1, PROMPT_LEN, output_len)
        return (metrics.last_token_time - metrics.first_token_time) / (output_len - 1)

    def prefill(self, length: int) -> float:
        """Seconds from sending a prompt to its first token, alone."""
        times = []
        for _ in range(PREFILLS + 1):
            start = time.perf_counter()
            self.generate(1, length, 1)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    @contextmanager
    def decoding(self, count: int, context: int) -> Iterator[Callable[[], None]]:
        """So many requests past their prompts; what it gives steps each of them once."""
        engine = self.llm.engine
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, detokenize=False)
        ids = [next(self.llm.request_ids) for _ in range(count)]
        try:
            for request_id, prompt in zip(ids, self.prompts(count, context), strict=True):
                engine.add_request(request_id, prompt, params)
            self._wait_for_first_tokens(count, context)
            for _ in range(WARM_UP_STEPS):
                engine.step()
            yield engine.step  # type: ignore[misc]
        finally:
            engine.abort_request(ids)

    def _wait_for_first_tokens(self, count: int, context: int) -> None:
        waiting, patience = count, PATIENCE
        while waiting:
            self.llm.engine.step()
            states = self.llm.engine.states.values()
            now = sum(state.metrics.first_token_time is None for state in states)
            waiting, patience = now, PATIENCE if now < waiting else patience - 1
            if not patience:
                raise ValueError(f"only {count - waiting} of {count} requests of {context} tokens run at a time")

    def step(self, count: int, context: int) -> float:
        """Seconds of a decode step."""
        times = []
        with self.decoding(count, context) as step:
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def decode_timeline(self, count: int) -> Timeline:
        """Of some decode steps."""
        with self.decoding(count, PROMPT_LEN) as step:
            return record(lambda: [step() for _ in range(TIMELINE_STEPS)] and None)

    def prefill_timeline(self, length: int) -> Timeline:
        """Of a prompt alone."""
        return record(lambda: self.generate(1, length, 1) and None)


def measure_engine(
    job: Job, batches: list[int], contexts: list[int], prefills: list[int], timelines: list[int], output_len: int
) -> Figures:
    """One engine through all loads.

    Args:
        timelines: numbers of requests whose decode steps are traced, with a prompt as long as the first of `prefills`.
    """
    start = time.perf_counter()
    with LLM(job.folder, **{"load_format": "dummy", "skip_tokenizer_init": True} | job.options) as llm:
        load = time.perf_counter() - start
        driver = Driver(llm)
        token = driver.token(output_len)
        steps = {count: driver.step(count, PROMPT_LEN) for count in batches}
        times = {length: driver.prefill(length) for length in dict.fromkeys([*prefills, *contexts])}
        context_steps = {length: driver.step(1, length) for length in contexts}
        traced = {}
        if timelines:
            driver.decode_timeline(1)  # the profiler starts
            traced = {f"decode of {count}": driver.decode_timeline(count) for count in timelines}
            traced[f"prefill of {prefills[0]}"] = driver.prefill_timeline(prefills[0])
    return Figures(load, token, steps, context_steps, times, traced)


def measure_rates(job: Job) -> dict[str, Any]:
    """The GPU and its rates."""
    with torch.inference_mode():
        return describe_gpu() | {"rates": Rates.measure()}


KINDS: dict[str, Callable[..., Any]] = {
    "rates": measure_rates,
    "engine": measure_engine,
    "workload": lambda job, count: run_engine(Path(job.folder), count, job.options),
    "transformers": lambda job, count, limit: run_transformers(Path(job.folder), count, job.options["device"], limit),
    "checkpoint": lambda job, shape, device: write_checkpoint(Path(job.folder), Shape(**shape), device=device),
}


def measure(job: Job) -> Result:
    """Do what the job says."""
    return Result(KINDS[job.kind](job, **job.arguments))


if __name__ == "__main__":
    sys.exit(serve_job(Job, measure))
