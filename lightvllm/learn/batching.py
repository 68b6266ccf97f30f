"""Continuous against static batching: who computes when, and whose place stands idle.

Static batching takes a batch of requests and runs it until the longest has ended; the places of the others stand idle
meanwhile, and who arrives waits. Continuous batching decides anew in every step, so a place is taken again at once
(iteration-level scheduling: Yu et al., 2022, "Orca"). Both are run by the engine's scheduler: for static batching it is
handed the next requests only when all before have ended. Idle places cost nothing here, though a real static batch
computes padding there: what differs is the scheduling alone.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.learn import clock, workload
from lightvllm.learn.clock import StepCost
from lightvllm.learn.flags import add_integer
from lightvllm.learn.replay import Replay, RequestTimeline, replay
from lightvllm.learn.table import milliseconds, table
from lightvllm.learn.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOAD: dict[str, Any] = {"num_requests": 16, "input_len": (20, 200), "output_len": (10, 100)}
# kind -> (letter, colour). As text, where times are rounded, what comes later covers what comes before.
LOOKS = {
    "waiting": (".", "#dddddd"),
    "idle": ("x", "#e08e79"),
    "decode": ("=", "#7fb3d5"),
    "prefill": ("#", "#1f4e79"),
}
TEXT_WIDTH, TEXT_ROWS = 72, 40


@dataclass(frozen=True)
class Strategy:
    """One way to serve the workload. Times are in seconds.

    Attributes:
        requests: each one's timeline.
        freed: when each one's place could go to another.
        seconds: from the first arrival to the last token.
        idle_share: of the time of all places together, the part in which nothing was computed there.
    """

    requests: tuple[RequestTimeline, ...]
    freed: tuple[float, ...]
    seconds: float
    output_tokens_per_s: float
    mean_time_to_first_token: float
    mean_latency: float
    latency_p99: float
    idle_share: float

    def spans(self, index: int) -> Iterator[tuple[str, float, float]]:
        """What a request did, and its place after it, each with its start and end."""
        request = self.requests[index]
        for span in request.spans:
            yield span.kind, span.start, span.end
        if self.freed[index] > request.end:
            yield "idle", request.end, self.freed[index]


@dataclass(frozen=True)
class Batching:
    """The same workload, batched in two ways.

    Attributes:
        max_num_seqs: places, that is, requests that run together.
    """

    load: Workload
    max_num_seqs: int
    cost: StepCost
    continuous: Strategy
    static: Strategy

    @property
    def strategies(self) -> dict[str, Strategy]:
        return {"continuous": self.continuous, "static": self.static}

    def table(self) -> str:
        """Both timelines as text, a line for each of the first requests, and the figures below."""
        end = max(strategy.requests[i].end for strategy in self.strategies.values() for i in self._rows)
        begin = self.load.requests[0].arrival
        parts = [f"{self.load}; {self.max_num_seqs} at a time"]
        for name, strategy in self.strategies.items():
            scale = TEXT_WIDTH / (end - begin)
            lines = [f"{index:>3} {_text_row(strategy, index, begin, scale)}" for index in self._rows[:TEXT_ROWS]]
            lines += [f"    and {len(self._rows) - TEXT_ROWS} more"] if len(self._rows) > TEXT_ROWS else []
            parts.append("\n".join([f"{name} batching", *lines]))
        parts.append("    " + "   ".join(f"{letter} {kind}" for kind, (letter, _) in LOOKS.items()))
        figures: dict[str, Callable[[Strategy], str]] = {
            "whole run": lambda strategy: milliseconds(strategy.seconds),
            "output tokens/s": lambda strategy: f"{strategy.output_tokens_per_s:,.1f}",
            "time to first token, mean": lambda strategy: milliseconds(strategy.mean_time_to_first_token),
            "latency, mean": lambda strategy: milliseconds(strategy.mean_latency),
            "latency, 99th percentile": lambda strategy: milliseconds(strategy.latency_p99),
            "places idle": lambda strategy: f"{strategy.idle_share:.1%}",
        }
        rows = [[label, *map(show, self.strategies.values())] for label, show in figures.items()]
        parts.append(table(["", *self.strategies], rows))
        return "\n\n".join(parts)

    def plot(self) -> "Figure":
        """Both timelines, one above the other, a row for each request."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        end = max(max(strategy.freed) for strategy in self.strategies.values())
        figure = Figure(figsize=(10, 2 + min(24, 0.36 * len(self._rows))), layout="constrained")
        for panel, (name, strategy) in zip(figure.subplots(2, 1, sharex=True), self.strategies.items(), strict=True):
            for index in self._rows:
                _draw_row(panel, strategy, index)
            panel.axvline(max(strategy.freed), color="black", linewidth=1, linestyle=":")
            panel.set_ylim(len(self._rows) - 0.5, -0.5)
            panel.set_xlim(self.load.requests[0].arrival, 1.02 * end)
            panel.set_title(
                f"{name} batching: {strategy.output_tokens_per_s:,.0f} tokens/s, "
                f"{strategy.idle_share:.0%} of {self.max_num_seqs} places idle",
                fontsize=10,
                loc="left",
            )
            panel.set_ylabel("request")
            panel.set_xlabel("simulated time (s)")
            panel.spines[["top", "right"]].set_visible(False)
        patches = [Patch(color=colour, label=kind) for kind, (_, colour) in LOOKS.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
        return figure

    @property
    def _rows(self) -> range:
        return range(len(self.load.requests))


def batching(load: Workload | None = None, *, max_num_seqs: int = 4, cost: StepCost | None = None) -> Batching:
    """Serve a workload with continuous and with static batching.

    Args:
        load: by default sixteen requests that come at once.
        max_num_seqs: how many run together.
        cost: of a step; by default `StepCost()`.

    Raises:
        ValueError: an argument is out of range.
    """
    load, cost = load or Workload.random(**LOAD), cost or StepCost()
    # Blocks and budget are no part of this question: there are enough.
    config = SchedulerConfig(
        num_blocks=load.num_blocks(block_size=16),
        max_model_len=load.max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=load.num_prompt_tokens + load.num_output_tokens,
    )
    continuous = replay(load, config, cost)
    static = replay(load, config, cost, is_static=True)
    return Batching(
        load,
        max_num_seqs,
        cost,
        _strategy(continuous, [request.end for request in continuous.requests], max_num_seqs),
        _strategy(static, _batch_ends(static), max_num_seqs),
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `batching`."""
    workload.add_flags(parser, LOAD)
    add_integer(parser.add_argument_group("engine"), "--max-num-seqs", 4, "requests that run together")
    clock.add_flags(parser)


def from_args(args: argparse.Namespace) -> Batching:
    """What the flags ask for."""
    return batching(workload.from_args(args, LOAD), max_num_seqs=args.max_num_seqs, cost=clock.from_args(args))


def _batch_ends(static: Replay) -> list[float]:
    """Of each request, the end of the batch that it was in: of the next step that leaves nobody."""
    ends = [step.end for step in static.steps if not step.trace.stats.num_running + step.trace.stats.num_waiting]
    return [next(end for end in ends if end >= request.end) for request in static.requests]


def _strategy(served: Replay, freed: list[float], max_num_seqs: int) -> Strategy:
    busy = sum(len(step.trace.batch) * (step.end - step.start) for step in served.steps)
    return Strategy(
        requests=served.requests,
        freed=tuple(freed),
        seconds=served.seconds,
        output_tokens_per_s=served.output_tokens_per_s,
        mean_time_to_first_token=served.mean_time_to_first_token,
        mean_latency=served.mean_latency,
        latency_p99=served.latency_p99,
        idle_share=1 - busy / (max_num_seqs * served.seconds),
    )


def _text_row(strategy: Strategy, index: int, begin: float, columns_per_second: float) -> str:
    row = [" "] * TEXT_WIDTH
    for kind, start, end in sorted(strategy.spans(index), key=lambda span: list(LOOKS).index(span[0])):
        first = int((start - begin) * columns_per_second)
        last = max(first + 1, round((end - begin) * columns_per_second))
        row[first:last] = LOOKS[kind][0] * (last - first)
    return "".join(row).rstrip()


def _draw_row(panel: "Axes", strategy: Strategy, index: int) -> None:
    for kind, start, end in strategy.spans(index):
        panel.broken_barh([(start, end - start)], (index - 0.4, 0.8), facecolors=LOOKS[kind][1])
