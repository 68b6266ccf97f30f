"""Running workloads on the engine, and beside transformers where asked to: what `bench latency` and `throughput` do."""

import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from tqdm import tqdm

from lightvllm.bench.figures import Figures, medians, peak_resident_bytes
from lightvllm.bench.internals import worker_of
from lightvllm.bench.workload import Workload
from lightvllm.llm import LLM
from lightvllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Run:
    """One run of a workload: its figures, and the tokens generated for each request."""

    figures: Figures
    token_ids: list[list[int]]
    num_cached_tokens: int = 0


class Contender(Protocol):
    """Something that can run a workload."""

    def run(self, workload: Workload, prompts: list[list[int]]) -> Run:
        """Generate exactly `workload.output_len` tokens greedily for each of the prompts."""
        ...


class Engine:
    """LightvLLM. Each run starts with an empty prefix cache."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def run(self, workload: Workload, prompts: list[list[int]]) -> Run:
        """See `Contender.run`."""
        self.llm.reset_prefix_cache()
        params = SamplingParams(temperature=0, max_tokens=workload.output_len, ignore_eos=True, detokenize=False)
        start = time.monotonic()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - start
        first_token_times, last_token_times = [], []
        for output in outputs:
            completion, metrics = output.outputs[0], output.metrics
            if len(completion.token_ids) != workload.output_len:
                raise ValueError(
                    f"output_len: a request ended after {len(completion.token_ids)} of {workload.output_len} tokens "
                    f"({completion.finish_reason}: {completion.stop_reason}); is max_model_len too small?"
                )
            assert metrics is not None
            assert metrics.first_token_time is not None
            assert metrics.last_token_time is not None
            first_token_times.append(metrics.first_token_time - start)
            last_token_times.append(metrics.last_token_time - start)
        return Run(
            Figures.from_times(workload, seconds, first_token_times, last_token_times),
            [output.outputs[0].token_ids for output in outputs],
            sum(output.num_cached_tokens or 0 for output in outputs),
        )


@dataclass(frozen=True)
class Memory:
    """What the engine held.

    Attributes:
        peak_bytes: on a GPU what PyTorch allocated there at most, on a CPU the process's peak resident size; up to the
            end of the first run, when nothing but the engine was loaded.
        peak_num_used_blocks, num_blocks: KV-cache blocks that requests owned at most, and those there are.
    """

    peak_bytes: int
    peak_num_used_blocks: int
    num_blocks: int

    @property
    def kv_cache_usage(self) -> float:
        """The fraction of the KV cache that requests owned at most."""
        return self.peak_num_used_blocks / self.num_blocks


@dataclass(frozen=True)
class Comparison:
    """The runs of each contender on the same prompts, which took turns.

    Attributes:
        runs: by contender; the engine's are under "lightvllm".
        num_same_outputs: requests to which all contenders gave the same tokens; None if there is only one.
        prefix_cache_hit_rate: the fraction of the engine's prompt tokens that the cache had, in its last run.
    """

    memory: Memory
    runs: dict[str, list[Figures]] = field(default_factory=dict)
    num_same_outputs: int | None = None
    prefix_cache_hit_rate: float = 0.0

    def medians(self) -> dict[str, Figures]:
        """Each contender's median run, figure by figure."""
        return {name: medians(runs) for name, runs in self.runs.items()}


def compare(llm: LLM, workload: Workload, repeats: int, against: str | None = None) -> Comparison:
    """Run a workload `repeats` times, after a warm-up that does not count.

    Args:
        against: "transformers" runs its `generate` in turns with the engine; None runs the engine alone.

    Raises:
        ValueError: the workload does not fit the model, or transformers is not installed.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is out of range, expected at least 1")
    prompts = workload.prompts(llm.model_config.vocab_size)
    contenders: dict[str, Contender] = {"lightvllm": Engine(llm)}
    last = {"lightvllm": contenders["lightvllm"].run(workload, prompts)}
    stats = llm.get_metrics()
    memory = Memory(_peak_bytes(llm), stats.peak_num_used_blocks, stats.num_blocks)
    if against is not None:
        from lightvllm.bench.transformers_baseline import TransformersBaseline

        contenders[against] = TransformersBaseline(llm)
        last[against] = contenders[against].run(workload, prompts)
    runs: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in tqdm(range(repeats), desc="Runs", disable=None, leave=False):
        for name, contender in contenders.items():
            last[name] = contender.run(workload, prompts)
            runs[name].append(last[name].figures)
    outputs = [run.token_ids for run in last.values()]
    same = sum(all(a == b for b in rest) for a, *rest in zip(*outputs, strict=True)) if len(outputs) > 1 else None
    return Comparison(memory, runs, same, last["lightvllm"].num_cached_tokens / workload.num_prompt_tokens)


def _peak_bytes(llm: LLM) -> int:
    device = worker_of(llm).device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
