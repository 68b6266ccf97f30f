"""Preemption: what happens when the KV cache's blocks run out.

A request is admitted when the blocks hold the tokens it has; it then grows by a token a step. When a running request
needs a block and none is free, the last of the running ones loses its own and waits again, and all it had computed is
computed once more when it comes back (recomputation: Kwon et al., 2023, "PagedAttention", section 4.5), but for what
the prefix cache still has by then.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.learn import clock, workload
from lightvllm.learn.clock import StepCost
from lightvllm.learn.flags import add_integer, integers
from lightvllm.learn.replay import replay
from lightvllm.learn.table import milliseconds, table
from lightvllm.learn.workload import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD: dict[str, Any] = {"num_requests": 12, "input_len": (20, 100), "output_len": (60, 160)}
# Of the blocks that all requests need together.
SHARES = (1.0, 0.6, 0.4, 0.25)


@dataclass(frozen=True)
class Preemption:
    """A request lost its blocks, in the step that began at `time`, in seconds."""

    time: float
    request: int


@dataclass(frozen=True)
class Pool:
    """The workload with so many blocks. Times are in seconds.

    Attributes:
        preemptions: in order; `request` counts from 0.
        num_recomputed_tokens: computed before, lost in a preemption, and computed again.
        seconds: from the first arrival to the last token.
        step_ends, num_used_blocks, num_waiting: parallel: when each step ended, the blocks in use while it ran, and how
            many requests waited after it.
    """

    num_blocks: int
    preemptions: tuple[Preemption, ...]
    num_recomputed_tokens: int
    seconds: float
    output_tokens_per_s: float
    mean_latency: float
    latency_p99: float
    step_ends: tuple[float, ...]
    num_used_blocks: tuple[int, ...]
    num_waiting: tuple[int, ...]


@dataclass(frozen=True)
class Preempt:
    """The same workload with more blocks and with fewer."""

    load: Workload
    block_size: int
    enable_prefix_caching: bool
    cost: StepCost
    pools: tuple[Pool, ...]

    def table(self) -> str:
        """A line for each number of blocks; the ratio of latencies is to the first."""
        header = ["blocks", "preempted", "who", "computed twice", "tokens/s", "mean latency", "99th perc.", "ratio"]
        rows = [
            [
                f"{pool.num_blocks:,}",
                f"{len(pool.preemptions)}",
                _who(pool) or "-",
                f"{pool.num_recomputed_tokens:,}",
                f"{pool.output_tokens_per_s:,.1f}",
                milliseconds(pool.mean_latency),
                milliseconds(pool.latency_p99),
                f"{pool.mean_latency / self.pools[0].mean_latency:.2f}x",
            ]
            for pool in self.pools
        ]
        cache = "on" if self.enable_prefix_caching else "off"
        setting = f"{self.load}; blocks of {self.block_size} tokens, prefix cache {cache}"
        return f"{setting}\n\n{table(header, rows)}"

    def plot(self) -> "Figure":
        """Blocks in use over time, a panel for each number of blocks, and who is preempted when."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 0.8 + 1.6 * len(self.pools)), layout="constrained")
        panels = figure.subplots(len(self.pools), 1, sharex=True, squeeze=False)[:, 0]
        for panel, pool in zip(panels, self.pools, strict=True):
            panel.step(pool.step_ends, pool.num_used_blocks, where="pre", color="tab:blue")
            panel.axhline(pool.num_blocks, color="grey", linestyle="--", linewidth=1)
            for preemption in pool.preemptions:
                panel.axvline(preemption.time, color="tab:red", linewidth=0.8)
                place = (preemption.time, pool.num_blocks / 20)
                panel.annotate(str(preemption.request), place, xytext=(2, 0), textcoords="offset points", fontsize=7)
            title = (
                f"{pool.num_blocks:,} blocks: {len(pool.preemptions)} preemptions, "
                f"{pool.num_recomputed_tokens:,} tokens computed twice"
            )
            panel.set_title(title, fontsize=10, loc="left")
            panel.set_ylim(0, 1.1 * pool.num_blocks)
            panel.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel("simulated time (s); red: a request, by its number, loses its blocks")
        figure.supylabel("KV-cache blocks in use", fontsize=10)
        return figure


def preempt(
    load: Workload | None = None,
    *,
    num_blocks: Sequence[int] | None = None,
    block_size: int = 16,
    enable_prefix_caching: bool = True,
    cost: StepCost | None = None,
) -> Preempt:
    """Serve a workload with several numbers of KV-cache blocks.

    Args:
        load: by default requests that come at once, and grow.
        num_blocks: to try; None for as many as all requests need at their longest, and some shares of it.
        block_size: tokens in a block.
        enable_prefix_caching: a preempted request finds again what of its blocks nobody took.
        cost: of a step; by default `StepCost()`.

    Raises:
        ValueError: an argument is out of range.
    """
    load, cost = load or Workload.random(**LOAD), cost or StepCost()
    if num_blocks is None:
        least = load.least_num_blocks(block_size)
        wanted = [max(least, round(share * load.num_blocks(block_size))) for share in SHARES]
        num_blocks = list(dict.fromkeys(wanted))
    if not num_blocks:
        raise ValueError("num_blocks is empty, but must have at least one number")
    for count in num_blocks:
        load.check_fits(count, block_size)

    config = SchedulerConfig(
        num_blocks=num_blocks[0],
        block_size=block_size,
        max_model_len=load.max_model_len,
        enable_prefix_caching=enable_prefix_caching,
    )
    pools = tuple(_serve(load, replace(config, num_blocks=count), cost) for count in num_blocks)
    return Preempt(load, block_size, enable_prefix_caching, cost, pools)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `preempt`."""
    workload.add_flags(parser, LOAD)
    group = parser.add_argument_group("engine")
    shares = ", ".join(f"{share:.0%}" for share in SHARES).replace("%", "%%")
    text = f"numbers of blocks to try (default: {shares} of what all requests need)"
    group.add_argument("--num-blocks", type=integers, metavar="N,...", help=text)
    add_integer(group, "--block-size", 16, "tokens in a block")
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="find again what of a preempted request's blocks nobody took (default: on)",
    )
    clock.add_flags(parser)


def from_args(args: argparse.Namespace) -> Preempt:
    """What the flags ask for."""
    return preempt(
        workload.from_args(args, LOAD),
        num_blocks=args.num_blocks,
        block_size=args.block_size,
        enable_prefix_caching=args.enable_prefix_caching,
        cost=clock.from_args(args),
    )


def _serve(load: Workload, config: SchedulerConfig, cost: StepCost) -> Pool:
    served = replay(load, config, cost)
    return Pool(
        num_blocks=config.num_blocks,
        preemptions=tuple(
            Preemption(step.start, int(request_id)) for step in served.steps for request_id in step.trace.preempted
        ),
        num_recomputed_tokens=sum(request.num_recomputed_tokens for request in served.requests),
        seconds=served.seconds,
        output_tokens_per_s=served.output_tokens_per_s,
        mean_latency=served.mean_latency,
        latency_p99=served.latency_p99,
        step_ends=tuple(step.end for step in served.steps),
        num_used_blocks=tuple(step.num_used_blocks for step in served.steps),
        num_waiting=tuple(step.trace.stats.num_waiting for step in served.steps),
    )


def _who(pool: Pool) -> str:
    """Who was preempted, and how often where it was more than once."""
    times = Counter(preemption.request for preemption in pool.preemptions)
    return " ".join(f"{request}" if count == 1 else f"{request}x{count}" for request, count in sorted(times.items()))
