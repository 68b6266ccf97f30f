"""The server's own cost: the same requests on the bare engine and over HTTP, in turns."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightvllm.bench.load.dataset import LoadRequest
from lightvllm.bench.load.metrics import output_len, time_per_output_token
from lightvllm.bench.load.run import run_load
from lightvllm.bench.load.server_process import running_server
from lightvllm.bench.load.stream import Target
from lightvllm.bench.workload import Workload
from lightvllm.llm import LLM
from lightvllm.sampling_params import SamplingParams

# Every token shows: also the special ones, which random prompts lead to.
SAMPLING = {"temperature": 0.0, "ignore_eos": True, "skip_special_tokens": False}
REQUEST_TIMEOUT = 600.0
MODEL = "model"


@dataclass(frozen=True)
class Latency:
    """Medians over the requests of a run, or over runs, in seconds.

    Attributes:
        time_to_first_token: from sending all requests to a request's first token.
        time_per_output_token: the mean time between its tokens after the first.
    """

    time_to_first_token: float
    time_per_output_token: float


@dataclass(frozen=True)
class Overhead:
    """What so many requests at the same time saw. What the server adds is the difference."""

    concurrency: int
    engine: Latency
    server: Latency


def measure_overhead(
    llm: LLM,
    options: Mapping[str, Any],
    concurrencies: Sequence[int],
    input_len: int,
    output_len: int,
    repeats: int,
) -> list[Overhead]:
    """Run each number of requests `repeats` times on both, in turns, after a warm-up that does not count.

    Args:
        options: those that `llm` was opened with; the server gets the same.

    Raises:
        ValueError: sizes that do not work, or a server that does not start or fails.
    """
    bounds = (("repeats", [repeats], 1), ("output_len", [output_len], 2), ("concurrency", concurrencies, 1))
    for name, values, least in bounds:
        for value in values:
            if value < least:
                raise ValueError(f"{name}: {value} is out of range, expected at least {least}")
    seeds = itertools.count()
    results = []
    with running_server(dict(options) | {"served_model_name": [MODEL]}) as url:
        target = Target(f"{url}/v1/completions", {}, REQUEST_TIMEOUT)
        for concurrency in concurrencies:
            runs = []
            for _ in range(1 + repeats):
                workload = Workload(
                    num_requests=concurrency, input_len=input_len, output_len=output_len, seed=next(seeds)
                )
                prompts = workload.prompts(llm.model_config.vocab_size)
                runs.append((run_on_engine(llm, prompts, output_len), run_on_server(target, prompts, output_len)))
            engine, server = (_median(column) for column in zip(*runs[1:], strict=True))
            results.append(Overhead(concurrency, engine, server))
    return results


def run_on_engine(llm: LLM, prompts: Sequence[list[int]], num_tokens: int) -> Latency:
    """All prompts at once; a token is there when the step that made it returns."""
    params = SamplingParams(**SAMPLING, max_tokens=num_tokens)  # type: ignore[arg-type]
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    start = time.perf_counter()
    for prompt in prompts:
        llm.engine.add_request(next(llm.request_ids), prompt, params, stream=True)
    while llm.engine.has_unfinished_requests():
        outputs = llm.engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            first.setdefault(output.request_id, now)
            last[output.request_id] = now
    gaps = [(last[request_id] - seconds) / (num_tokens - 1) for request_id, seconds in first.items()]
    return Latency(statistics.median(first.values()), statistics.median(gaps))


def run_on_server(target: Target, prompts: Sequence[list[int]], num_tokens: int) -> Latency:
    """The same over HTTP.

    Raises:
        ValueError: a request failed, or came with fewer tokens.
    """
    bodies = [LoadRequest(prompt, num_tokens).body(MODEL, is_chat=False, options=SAMPLING) for prompt in prompts]
    run = asyncio.run(run_load(target, bodies, itertools.repeat(0.0)))
    for outcome in run.outcomes:
        if outcome.error is not None:
            raise ValueError(f"the server failed: {outcome.error}")
        if output_len(outcome) != num_tokens:
            raise ValueError(f"the server gave {output_len(outcome)} of {num_tokens} tokens")
    gaps = [gap for outcome in run.outcomes if (gap := time_per_output_token(outcome)) is not None]
    return Latency(statistics.median(outcome.start + outcome.ttft for outcome in run.outcomes), statistics.median(gaps))


def overhead_text(overheads: Sequence[Overhead]) -> str:
    """A table, times in milliseconds."""
    lines = [f"{'':13}{'time to first token (ms)':^33}{'time per token (ms)':^33}"]
    lines.append(f"{'requests':>10}   " + f"{'engine':>10}{'server':>10}{'added':>10}   " * 2)
    for overhead in overheads:
        cells = [f"{overhead.concurrency:>10}   "]
        for name in ("time_to_first_token", "time_per_output_token"):
            engine, server = getattr(overhead.engine, name) * 1e3, getattr(overhead.server, name) * 1e3
            cells.append(f"{engine:>10.2f}{server:>10.2f}{server - engine:>10.2f}   ")
        lines.append("".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _median(runs: Sequence[Latency]) -> Latency:
    return Latency(
        statistics.median(run.time_to_first_token for run in runs),
        statistics.median(run.time_per_output_token for run in runs),
    )
