"""Prefix caching: prompts that begin alike share the blocks of their beginning, which is computed once.

The same workload is served twice by the engine's scheduler, with its prefix cache and without. Only full blocks are
shared, so of a common beginning the tokens after its last full block are computed by everyone (as in vLLM's automatic
prefix caching; SGLang's radix tree shares single tokens: Zheng et al., 2023).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.learn import clock, workload
from lightvllm.learn.clock import StepCost
from lightvllm.learn.flags import add_integer
from lightvllm.learn.replay import replay
from lightvllm.learn.table import milliseconds, table
from lightvllm.learn.workload import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD: dict[str, Any] = {
    "num_requests": 24,
    "input_len": (20, 100),
    "output_len": (20, 60),
    "rate": 20.0,
    "shared_prefix_len": 1000,
}
COLOURS = {"with cache": "tab:blue", "without": "tab:orange"}


@dataclass(frozen=True)
class Served:
    """One way to serve the workload. Times are in seconds, parallel lists have an entry for each request or step.

    Attributes:
        hit_rate: of the prompts' tokens, the part that the cache had.
        num_prefill_tokens: computed before first tokens, and after preemptions.
        num_shared_blocks: that requests found instead of computing them.
        peak_num_blocks: KV-cache blocks in use at most.
        num_cached_tokens, times_to_first_token: of each request.
        step_ends, num_used_blocks: when each step ended, and the blocks in use while it ran.
    """

    hit_rate: float
    num_prefill_tokens: int
    num_shared_blocks: int
    peak_num_blocks: int
    mean_time_to_first_token: float
    mean_latency: float
    seconds: float
    num_cached_tokens: tuple[int, ...]
    times_to_first_token: tuple[float, ...]
    step_ends: tuple[float, ...]
    num_used_blocks: tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """The same workload with and without the prefix cache."""

    load: Workload
    block_size: int
    num_blocks: int
    cost: StepCost
    with_cache: Served
    without: Served

    @property
    def ways(self) -> dict[str, Served]:
        return {"with cache": self.with_cache, "without": self.without}

    def table(self) -> str:
        """The figures of both."""
        figures: dict[str, Callable[[Served], str]] = {
            "hit rate": lambda served: f"{served.hit_rate:.1%}",
            "tokens computed in prefill": lambda served: f"{served.num_prefill_tokens:,}",
            "blocks found in the cache": lambda served: f"{served.num_shared_blocks:,}",
            "blocks in use, at most": lambda served: f"{served.peak_num_blocks:,}",
            "time to first token, mean": lambda served: milliseconds(served.mean_time_to_first_token),
            "latency, mean": lambda served: milliseconds(served.mean_latency),
            "whole run": lambda served: milliseconds(served.seconds),
        }
        rows = [[label, *map(show, self.ways.values())] for label, show in figures.items()]
        return f"{self.load}; {self.num_blocks:,} blocks of {self.block_size}\n\n{table(['', *self.ways], rows)}"

    def plot(self) -> "Figure":
        """How long each request waits for its first token, and the blocks in use over time."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        waits, blocks = figure.subplots(1, 2)
        for name, served in self.ways.items():
            milliseconds_each = [1e3 * seconds for seconds in served.times_to_first_token]
            waits.plot(milliseconds_each, marker="o", markersize=4, color=COLOURS[name], label=name)
            blocks.step(served.step_ends, served.num_used_blocks, where="pre", color=COLOURS[name], label=name)
        waits.set_title(f"time to first token (ms); {self.with_cache.hit_rate:.0%} of prompt tokens found", fontsize=10)
        waits.set_xlabel("request")
        waits.set_ylim(bottom=0)
        blocks.set_title("KV-cache blocks in use", fontsize=10)
        blocks.set_xlabel("simulated time (s)")
        blocks.set_ylim(bottom=0)
        for panel in (waits, blocks):
            panel.legend(frameon=False)
            panel.spines[["top", "right"]].set_visible(False)
        return figure


def prefix(
    load: Workload | None = None,
    *,
    block_size: int = 16,
    num_blocks: int | None = None,
    max_num_seqs: int = 8,
    cost: StepCost | None = None,
) -> Prefix:
    """Serve a workload with the prefix cache and without.

    Args:
        load: by default requests with the same long beginning, such as a system prompt, that arrive over time.
        block_size: tokens in a block: what is shared, and what is lost at the end of a common beginning.
        num_blocks: of the KV cache; None for as many as all requests together need.
        max_num_seqs: requests that run together.
        cost: of a step; by default `StepCost()`.

    Raises:
        ValueError: an argument is out of range.
    """
    load, cost = load or Workload.random(**LOAD), cost or StepCost()
    num_blocks = load.num_blocks(block_size) if num_blocks is None else num_blocks
    load.check_fits(num_blocks, block_size)

    config = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=load.max_model_len,
        max_num_seqs=max_num_seqs,
    )
    with_cache = _serve(load, config, cost)
    without = _serve(load, replace(config, enable_prefix_caching=False), cost)
    return Prefix(load, block_size, num_blocks, cost, with_cache, without)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `prefix`."""
    workload.add_flags(parser, LOAD)
    group = parser.add_argument_group("engine")
    add_integer(group, "--block-size", 16, "tokens in a block")
    group.add_argument("--num-blocks", type=int, metavar="N", help="blocks there are (default: enough for all)")
    add_integer(group, "--max-num-seqs", 8, "requests that run together")
    clock.add_flags(parser)


def from_args(args: argparse.Namespace) -> Prefix:
    """What the flags ask for."""
    return prefix(
        workload.from_args(args, LOAD),
        block_size=args.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        cost=clock.from_args(args),
    )


def _serve(load: Workload, config: SchedulerConfig, cost: StepCost) -> Served:
    served = replay(load, config, cost)
    stats = served.steps[-1].trace.stats
    shares = [share for step in served.steps for share in step.trace.batch]
    num_cached = [request.num_cached_tokens for request in served.requests]
    return Served(
        hit_rate=stats.prefix_cache_hit_rate,
        num_prefill_tokens=sum(share.num_tokens for share in shares if share.kind == "prefill"),
        num_shared_blocks=sum(num_cached) // config.block_size,
        peak_num_blocks=stats.peak_num_used_blocks,
        mean_time_to_first_token=served.mean_time_to_first_token,
        mean_latency=served.mean_latency,
        seconds=served.seconds,
        num_cached_tokens=tuple(num_cached),
        times_to_first_token=tuple(request.time_to_first_token for request in served.requests),
        step_ends=tuple(step.end for step in served.steps),
        num_used_blocks=tuple(step.num_used_blocks for step in served.steps),
    )
