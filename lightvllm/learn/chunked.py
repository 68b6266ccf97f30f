"""Chunked prefill: what running requests feel when a long prompt comes in.

A step takes as long as its tokens. A prompt computed in one step makes all who decode in it wait; cut into
chunks, which share each step with the decodes, it stalls them a little many times instead of once for long, and gets
its own first token later (Agrawal et al., 2023, "Sarathi"). Two settings of the engine cut prompts: the budget of a
step, `max_num_batched_tokens`, and the part of it that one request gets, `long_prefill_token_threshold`.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.learn import clock, workload
from lightvllm.learn.clock import StepCost
from lightvllm.learn.flags import add_integer, add_integers
from lightvllm.learn.replay import percentile, replay
from lightvllm.learn.table import milliseconds, table
from lightvllm.learn.workload import PlannedRequest, Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD: dict[str, Any] = {"num_requests": 8, "input_len": (20, 60), "output_len": 100}
BUDGETS, THRESHOLDS = (8192, 2048, 512), (256,)
LONG_INPUT_LEN, LONG_ARRIVAL = 6000, 0.3


@dataclass(frozen=True)
class Setting:
    """What one setting of the scheduler gives. Times are in seconds.

    Attributes:
        long_prefill_token_threshold: 0 is no limit.
        token_times, gaps: parallel, of every token but each first one of the requests that run: when it came, and how
            long after the one before.
        longest_gap, gap_p99, median_gap: of `gaps`.
        long_prefill: when the prefill of the long prompt began and ended; None without one.
        long_time_to_first_token: of the long prompt; None without one.
        seconds: from the first arrival to the last token.
    """

    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    token_times: tuple[float, ...]
    gaps: tuple[float, ...]
    longest_gap: float
    gap_p99: float
    median_gap: float
    long_prefill: tuple[float, float] | None
    long_time_to_first_token: float | None
    seconds: float

    def __str__(self) -> str:
        threshold = self.long_prefill_token_threshold
        return f"budget {self.max_num_batched_tokens:,}" + (f", threshold {threshold:,}" if threshold else "")


@dataclass(frozen=True)
class Chunked:
    """The same workload and long prompt with several settings of the scheduler."""

    load: Workload
    long_input_len: int
    long_arrival: float
    cost: StepCost
    settings: tuple[Setting, ...]

    def table(self) -> str:
        """A line for each setting."""
        header = ["tokens a step", "longest gap", "99th perc.", "median gap", "long prompt's first token", "whole run"]
        rows = [
            [
                str(setting),
                milliseconds(setting.longest_gap),
                milliseconds(setting.gap_p99),
                milliseconds(setting.median_gap),
                "-" if setting.long_time_to_first_token is None else milliseconds(setting.long_time_to_first_token),
                milliseconds(setting.seconds),
            ]
            for setting in self.settings
        ]
        comes_in = ""
        if self.long_input_len:
            comes_in = f"; a prompt of {self.long_input_len:,} tokens comes in after {milliseconds(self.long_arrival)}"
        return f"{self.load}{comes_in}\n\n{table(header, rows)}"

    def plot(self) -> "Figure":
        """The time between tokens, a panel for each setting; the long prompt's prefill is shaded."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 1 + 1.5 * len(self.settings)), layout="constrained")
        panels = figure.subplots(len(self.settings), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, setting in zip(panels, self.settings, strict=True):
            if setting.long_prefill is not None:
                panel.axvspan(*setting.long_prefill, color="tab:orange", alpha=0.2, linewidth=0)
            gaps = [1e3 * gap for gap in setting.gaps]
            panel.plot(setting.token_times, gaps, linestyle="", marker=".", markersize=4, color="tab:blue")
            title = f"{setting}: longest gap {milliseconds(setting.longest_gap)}"
            panel.set_title(title, fontsize=10, loc="left")
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylim(bottom=0)
        panels[-1].set_xlabel("simulated time (s)")
        figure.supylabel("time since the request's last token (ms)", fontsize=10)
        return figure


def chunked(
    load: Workload | None = None,
    *,
    long_input_len: int = LONG_INPUT_LEN,
    long_arrival: float = LONG_ARRIVAL,
    max_num_batched_tokens: Sequence[int] = BUDGETS,
    long_prefill_token_threshold: Sequence[int] = THRESHOLDS,
    cost: StepCost | None = None,
) -> Chunked:
    """Serve a workload, into which a long prompt comes, with several settings of the scheduler.

    Args:
        load: the requests whose stalls are looked at; by default some with short prompts and long outputs.
        long_input_len: tokens of the long prompt; 0 for none: the workload has its own.
        long_arrival: when it comes, in seconds.
        max_num_batched_tokens: budgets of a step to try, without a threshold.
        long_prefill_token_threshold: thresholds to try, each with the first of the budgets.
        cost: of a step; by default `StepCost()`.

    Raises:
        ValueError: an argument is out of range.
    """
    load, cost = load or Workload.random(**LOAD), cost or StepCost()
    if not max_num_batched_tokens:
        raise ValueError("max_num_batched_tokens is empty, but must have at least one budget")
    if long_arrival < 0:
        raise ValueError(f"long_arrival: {long_arrival} is out of range, expected at least 0")
    if long_input_len < 0:
        raise ValueError(f"long_input_len: {long_input_len} is out of range, expected at least 0")
    if not any(request.output_len > 1 for request in load.requests):
        raise ValueError("output_len: 1 for all requests, but there is a time between tokens only from 2 on")
    long = None
    if long_input_len:
        long = PlannedRequest(arrival=long_arrival, input_len=long_input_len, output_len=1)
    pairs = [(budget, 0) for budget in max_num_batched_tokens]
    pairs += [(max_num_batched_tokens[0], threshold) for threshold in long_prefill_token_threshold]
    settings = tuple(_serve(load, long, budget, threshold, cost) for budget, threshold in pairs)
    return Chunked(load, long_input_len, long_arrival, cost, settings)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `chunked`."""
    workload.add_flags(parser, LOAD)
    group = parser.add_argument_group("the long prompt")
    add_integer(group, "--long-input-len", LONG_INPUT_LEN, "its tokens; 0 for no long prompt")
    group.add_argument(
        "--long-arrival",
        type=float,
        metavar="S",
        default=LONG_ARRIVAL,
        help=f"when it comes, in seconds (default: {LONG_ARRIVAL})",
    )
    group = parser.add_argument_group("engine")
    add_integers(group, "--max-num-batched-tokens", BUDGETS, "budgets of a step to try")
    text = "most tokens of one request in a step, to try with the first budget"
    add_integers(group, "--long-prefill-token-threshold", THRESHOLDS, text)
    clock.add_flags(parser)


def from_args(args: argparse.Namespace) -> Chunked:
    """What the flags ask for."""
    return chunked(
        workload.from_args(args, LOAD),
        long_input_len=args.long_input_len,
        long_arrival=args.long_arrival,
        max_num_batched_tokens=args.max_num_batched_tokens,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        cost=clock.from_args(args),
    )


def _serve(load: Workload, long: PlannedRequest | None, budget: int, threshold: int, cost: StepCost) -> Setting:
    whole = load if long is None else Workload((*load.requests, long), load.seed)
    config = SchedulerConfig(
        num_blocks=whole.num_blocks(block_size=16),  # blocks are no part of this question: there are enough
        max_model_len=whole.max_model_len,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
    )
    served = replay(whole, config, cost)
    times: list[float] = []
    gaps: list[float] = []
    prefill = first_token = None
    for planned, life in zip(whole.requests, served.requests, strict=True):
        if planned is long:
            start = next(span.start for span in life.spans if span.kind == "prefill")
            prefill, first_token = (start, life.token_times[0]), life.time_to_first_token
        else:
            times += life.token_times[1:]
            gaps += [after - before for before, after in itertools.pairwise(life.token_times)]
    return Setting(
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
        token_times=tuple(times),
        gaps=tuple(gaps),
        longest_gap=max(gaps),
        gap_p99=percentile(gaps, 99),
        median_gap=statistics.median(gaps),
        long_prefill=prefill,
        long_time_to_first_token=first_token,
        seconds=served.seconds,
    )
