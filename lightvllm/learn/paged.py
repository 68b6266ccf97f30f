"""PagedAttention's pages against contiguous reservation: who wastes what, and how many requests fit.

Before PagedAttention (Kwon et al., 2023, https://arxiv.org/abs/2309.06180) a request's keys and values lay in one
stretch of memory, reserved when it was admitted for all it might become. What it did not fill was wasted inside the
stretches, what was too scattered for the next request was wasted between them. Three ways to lay out the same memory
are compared here on the same requests:

- a stretch of `max_model_len` tokens for each, as nobody knows how long an output will be. That is paging with pages of
  `max_model_len` tokens, so the engine's own scheduler and block pool do it;
- a stretch of the length the request will really reach, as if that were known, placed at the first free place;
- pages of `block_size` tokens, taken as the request grows: the engine's scheduler and block pool again. Where prompts
  begin alike, they share them.
"""

import argparse
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.trace import StepTrace
from lightvllm.learn import clock, workload
from lightvllm.learn.clock import StepCost
from lightvllm.learn.flags import add_integer
from lightvllm.learn.replay import replay
from lightvllm.learn.table import milliseconds, table
from lightvllm.learn.workload import PlannedRequest, Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOAD: dict[str, Any] = {"num_requests": 32}


@dataclass(frozen=True)
class Stretch:
    """A piece of the memory that is reserved.

    Attributes:
        request: whose it is, by its place in the workload; None where several share it.
        start: its first token's place.
        reserved, used: tokens there is room for, and those that are there.
    """

    request: int | None
    start: int
    reserved: int
    used: int


@dataclass(frozen=True)
class Moment:
    """The memory while one step runs.

    Attributes:
        start, end: in seconds.
        reserved, used: tokens of the memory that running requests have reserved, and those of them that are filled.
        stranded: tokens that are free and would hold the next request, which waits as they do not lie in one stretch.
    """

    start: float
    end: float
    num_running: int
    num_waiting: int
    reserved: int
    used: int
    stranded: int


@dataclass(frozen=True)
class MemoryUse:
    """What one layout of the memory made of the requests. Times in seconds.

    Attributes:
        most_running, mean_running: requests that fit at once, and how many that were over the time.
        internal_waste: of what was reserved the share that held nothing, over the time.
        external_fragmentation: of the memory the share that was `Moment.stranded`, over the time.
        num_preemptions: how often a request gave its memory up for others, to be computed again.
        time_to_first_token: from a request's arrival, the mean.
        seconds: from the first arrival to the last token.
        moments: a step each.
        fullest: the memory when most of it was used, between two steps.
    """

    layout: str
    most_running: int
    mean_running: float
    internal_waste: float
    external_fragmentation: float
    num_preemptions: int
    time_to_first_token: float
    seconds: float
    moments: tuple[Moment, ...]
    fullest: tuple[Stretch, ...]


@dataclass(frozen=True)
class Paged:
    """The same workload with the three layouts of the same memory, see the module's docstring.

    Attributes:
        num_tokens: that the memory holds.
    """

    load: Workload
    num_tokens: int
    block_size: int
    max_model_len: int
    cost: StepCost
    longest_stretches: MemoryUse
    exact_stretches: MemoryUse
    pages: MemoryUse

    @property
    def layouts(self) -> tuple[MemoryUse, ...]:
        return self.longest_stretches, self.exact_stretches, self.pages

    def table(self) -> str:
        """A line for each layout, and what its figures are."""
        header = ["", "at once", "mean", "unfilled", "stranded", "preempted", "first token, mean", "all done"]
        rows = [
            [
                use.layout,
                f"{use.most_running}",
                f"{use.mean_running:.1f}",
                f"{use.internal_waste:.1%}",
                f"{use.external_fragmentation:.1%}",
                f"{use.num_preemptions}",
                milliseconds(use.time_to_first_token),
                milliseconds(use.seconds),
            ]
            for use in self.layouts
        ]
        return (
            f"{self.load}; memory for {self.num_tokens:,} tokens\n\n{table(header, rows)}\n\n"
            "at once    requests that run together, at most\n"
            "unfilled   of the memory that requests have reserved, what holds none of their tokens\n"
            "stranded   of all memory, what is free and enough for the next request, but not in one stretch"
        )

    def plot(self) -> "Figure":
        """The memory at its fullest, once for each layout, and how many requests ran over the time."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(10, 6.5), layout="constrained")
        rows = figure.subplot_mosaic([["0", "1", "2"], ["time", "time", "time"]], height_ratios=[2, 1])
        for index, use in enumerate(self.layouts):
            _draw_map(rows[str(index)], use, self.num_tokens, self.block_size)
            rows["time"].step(*_running(use.moments), where="post", label=use.layout)
        rows["time"].set_xlabel("simulated seconds")
        rows["time"].set_ylabel("requests at once")
        rows["time"].set_ylim(bottom=0)
        rows["time"].yaxis.set_major_locator(MaxNLocator(integer=True))
        rows["time"].legend(fontsize=8)
        looks = "a colour is a request, pale is reserved but empty, white is free, black is shared"
        figure.suptitle(f"The KV cache at its fullest: {looks}", fontsize=10)
        return figure


def paged(
    load: Workload | None = None,
    *,
    num_tokens: int = 2048,
    block_size: int = 16,
    max_model_len: int = 512,
    cost: StepCost | None = None,
) -> Paged:
    """Serve the same requests with each of the three layouts of the same memory.

    Args:
        load: by default 32 requests that come at once.
        num_tokens: that the memory holds.
        block_size: tokens of a page.
        max_model_len: tokens of the longest request that is allowed.
        cost: of a step; it sets when requests that arrive later find which memory free.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    load, cost = load or Workload.random(**LOAD), cost or StepCost()
    if max_model_len < load.max_model_len:
        raise ValueError(f"max_model_len: {max_model_len} is less than the {load.max_model_len} of the longest request")
    if num_tokens < max_model_len:
        raise ValueError(f"num_tokens: {num_tokens} is less than max_model_len, {max_model_len}: no request would fit")
    if not 1 <= block_size <= max_model_len:
        raise ValueError(f"block_size: {block_size} is out of range, expected 1 to {max_model_len}, the max_model_len")
    longest = f"stretches of max_model_len, {max_model_len}"
    return Paged(
        load,
        num_tokens,
        block_size,
        max_model_len,
        cost,
        _in_blocks(longest, load, num_tokens, max_model_len, max_model_len, cost),
        _in_stretches("stretches of the final length", load, num_tokens, cost),
        _in_blocks(f"pages of {block_size}", load, num_tokens, block_size, max_model_len, cost),
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `paged`."""
    workload.add_flags(parser, LOAD)
    group = parser.add_argument_group("memory")
    add_integer(group, "--num-tokens", 2048, "tokens that it holds")
    add_integer(group, "--block-size", 16, "tokens in a page")
    add_integer(group, "--max-model-len", 512, "tokens of the longest request that is allowed")
    clock.add_flags(parser)


def from_args(args: argparse.Namespace) -> Paged:
    """What the flags ask for."""
    return paged(
        workload.from_args(args, LOAD),
        num_tokens=args.num_tokens,
        block_size=args.block_size,
        max_model_len=args.max_model_len,
        cost=clock.from_args(args),
    )


def _in_blocks(
    layout: str, load: Workload, num_tokens: int, size: int, max_model_len: int, cost: StepCost
) -> MemoryUse:
    """As the engine's scheduler lays it out, in blocks of this size."""
    config = SchedulerConfig(
        num_blocks=num_tokens // size,
        block_size=size,
        max_model_len=max_model_len,
        max_num_seqs=len(load.requests),
        # No budget cuts a prompt: the memory alone is to decide who runs.
        max_num_batched_tokens=load.num_prompt_tokens + load.num_output_tokens,
    )
    served = replay(load, config, cost)
    tables = _BlockTables(size)
    moments: list[Moment] = []
    fullest: tuple[Stretch, ...] = ()
    for step in served.steps:
        trace, reserved = step.trace, step.num_used_blocks * size
        # A request's last block may be part empty; the others are full, and if they are shared, they count once.
        unfilled = sum(-(share.start + share.num_tokens) % size for share in trace.batch)
        moments.append(
            Moment(
                step.start,
                step.end,
                len(trace.batch),
                trace.stats.num_waiting,
                reserved,
                reserved - unfilled,
                _stranded(trace, config.num_blocks - step.num_used_blocks, size),
            )
        )
        fullest = _fuller(fullest, tables.take(trace))
    num_preemptions = sum(request.num_preemptions for request in served.requests)
    return _memory_use(layout, num_tokens, moments, fullest, served.mean_time_to_first_token, num_preemptions)


def _stranded(trace: StepTrace, num_free: int, block_size: int) -> int:
    """See `Moment.stranded`."""
    if not trace.waiting:
        return 0
    needed = -(-trace.waiting[0].num_tokens // block_size)
    return num_free * block_size if needed <= num_free else 0


class _BlockTables:
    """Who owns which block, put together from the engine's traces."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.tables: dict[str, list[int]] = {}
        self.num_tokens: dict[str, int] = {}

    def take(self, trace: StepTrace) -> tuple[Stretch, ...]:
        """The blocks that are owned after this step."""
        changes = trace.blocks
        if changes.is_snapshot:
            self.tables = {}
        for name in changes.released:
            self.tables.pop(name, None)
        for name, block_ids in changes.tables.items():
            self.tables.setdefault(name, []).extend(block_ids)
        self.num_tokens |= {share.request_id: share.start + share.num_tokens for share in trace.batch}
        owners: dict[int, list[str]] = {}
        used: dict[int, int] = {}
        for name, block_ids in self.tables.items():
            for index, block_id in enumerate(block_ids):
                owners.setdefault(block_id, []).append(name)
                used[block_id] = min(self.block_size, self.num_tokens[name] - index * self.block_size)
        return tuple(
            Stretch(
                int(names[0]) if len(names) == 1 else None, block_id * self.block_size, self.block_size, used[block_id]
            )
            for block_id, names in owners.items()
        )


class _Reserved:
    """A running request's stretch, and how many tokens are in it."""

    def __init__(self, index: int, planned: PlannedRequest, start: int) -> None:
        self.index = index
        self.num_prompt_tokens = planned.num_prompt_tokens
        self.start = start
        self.size = _final_len(planned)
        self.num_tokens = 0

    def compute(self) -> int:
        """Its prompt, then a token a step; returns how many tokens that are."""
        count = 1 if self.num_tokens else self.num_prompt_tokens
        self.num_tokens += count
        return count


def _final_len(planned: PlannedRequest) -> int:
    """Tokens of its keys and values at its end; its last token is never computed."""
    return planned.num_prompt_tokens + planned.output_len - 1


def _in_stretches(layout: str, load: Workload, num_tokens: int, cost: StepCost) -> MemoryUse:
    """Each request in a stretch of its final length, at the first place where one is free, in the order of arrival."""
    coming, waiting = deque(enumerate(load.requests)), deque[tuple[int, PlannedRequest]]()
    running: list[_Reserved] = []
    moments: list[Moment] = []
    first_token_times: list[float] = []
    fullest: tuple[Stretch, ...] = ()
    now = load.requests[0].arrival
    while coming or waiting or running:
        while coming and coming[0][1].arrival <= now:
            waiting.append(coming.popleft())
        while waiting and (start := _first_fit(running, _final_len(waiting[0][1]), num_tokens)) is not None:
            running.append(_Reserved(*waiting.popleft(), start))
        if not running:
            now = coming[0][1].arrival
            continue
        arrivals = [load.requests[one.index].arrival for one in running if not one.num_tokens]
        num_computed, reserved = sum(one.compute() for one in running), sum(one.size for one in running)
        used = sum(one.num_tokens for one in running)
        end = now + cost.seconds(num_computed, used)
        free = num_tokens - reserved
        stranded = free if waiting and _final_len(waiting[0][1]) <= free else 0
        moments.append(Moment(now, end, len(running), len(waiting), reserved, used, stranded))
        first_token_times += [end - arrival for arrival in arrivals]
        running = [one for one in running if one.num_tokens < one.size]
        fullest = _fuller(fullest, tuple(Stretch(one.index, one.start, one.size, one.num_tokens) for one in running))
        now = end
    return _memory_use(layout, num_tokens, moments, fullest, statistics.fmean(first_token_times), 0)


def _memory_use(
    layout: str,
    num_tokens: int,
    moments: Sequence[Moment],
    fullest: tuple[Stretch, ...],
    time_to_first_token: float,
    num_preemptions: int,
) -> MemoryUse:
    def over_time(name: str) -> float:
        return sum(getattr(moment, name) * (moment.end - moment.start) for moment in moments)

    seconds = moments[-1].end - moments[0].start
    return MemoryUse(
        layout,
        most_running=max(moment.num_running for moment in moments),
        mean_running=over_time("num_running") / seconds,
        internal_waste=1 - over_time("used") / over_time("reserved"),
        external_fragmentation=over_time("stranded") / (num_tokens * seconds),
        num_preemptions=num_preemptions,
        time_to_first_token=time_to_first_token,
        seconds=seconds,
        moments=tuple(moments),
        fullest=fullest,
    )


def _first_fit(running: Iterable[_Reserved], size: int, num_tokens: int) -> int | None:
    """Where the first free stretch of this size begins; None if there is none."""
    start = 0
    for one in sorted(running, key=lambda one: one.start):
        if one.start - start >= size:
            break
        start = one.start + one.size
    return start if num_tokens - start >= size else None


def _fuller(one: tuple[Stretch, ...], other: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """That of two states of the memory in which more is used."""
    return max(one, other, key=lambda stretches: sum(stretch.used for stretch in stretches))


def _running(moments: Sequence[Moment]) -> tuple[list[float], list[int]]:
    """Times, and how many requests run from each on: none from the end of a step to the start of a later one."""
    times: list[float] = []
    running: list[int] = []
    for moment in moments:
        if times and moment.start == times[-1]:
            running[-1] = moment.num_running
        else:
            times.append(moment.start)
            running.append(moment.num_running)
        times.append(moment.end)
        running.append(0)
    return times, running


def _draw_map(panel: "Axes", use: MemoryUse, num_tokens: int, block_size: int) -> None:
    """The fullest state, row by row: a cell is a token."""
    import matplotlib
    import numpy as np

    width = block_size * max(1, round((2 * num_tokens) ** 0.5 / block_size))
    cells = np.ones((-(-num_tokens // width) * width, 3))
    cells[num_tokens:] = 0.85  # past the end of the memory
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for stretch in use.fullest:
        colour = np.array((0.2, 0.2, 0.2) if stretch.request is None else colours[stretch.request % len(colours)])
        filled = stretch.start + stretch.used
        cells[stretch.start : filled] = colour
        cells[filled : stretch.start + stretch.reserved] = 0.75 + 0.25 * colour
    panel.imshow(cells.reshape(-1, width, 3), aspect="auto", interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    used, reserved = (sum(getattr(stretch, name) for stretch in use.fullest) for name in ("used", "reserved"))
    panel.set_title(f"{use.layout}\n{_count(use.fullest)} requests, {used:,} of {reserved:,} filled", fontsize=8)


def _count(stretches: Sequence[Stretch]) -> int:
    return len({stretch.request for stretch in stretches} - {None})
