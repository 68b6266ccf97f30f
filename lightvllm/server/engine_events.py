"""The events of `/debug/engine`: traces of steps, merged for readers who cannot keep up. See docs/engine-events.md."""

from collections import deque
from typing import Literal

import msgspec

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.trace import BlockChanges, FinishedRequest, StepTrace, TracedRequest, WaitingRequest

# Steps that one event shows; of more, the oldest are left out. What they changed is not.
MAX_STEPS = 64


class TracedStep(msgspec.Struct, frozen=True):
    """One step as an event shows it; the fields are those of `lightvllm.engine.trace.StepTrace`."""

    step: int
    seconds: float
    batch: list[TracedRequest]
    num_output_tokens: int
    preempted: list[str]
    finished: list[FinishedRequest]


class EngineEvent(msgspec.Struct, frozen=True):
    """What happened since the event before.

    Attributes:
        steps: oldest first; the last may have an empty batch, when something happened between steps.
        num_left_out: steps before these that are not shown.
        blocks: what became of the blocks, over all steps, those left out included.
        waiting, stats: now.
        config: the engine's limits; only with a snapshot of the blocks.
    """

    type: Literal["steps"]
    steps: list[TracedStep]
    num_left_out: int
    blocks: BlockChanges
    waiting: list[WaitingRequest]
    stats: EngineStats
    config: SchedulerConfig | None


def merge_changes(older: BlockChanges, newer: BlockChanges) -> BlockChanges:
    """The changes of both, in one. A request that came and went between is among the released, though never known."""
    if newer.is_snapshot:
        return newer
    tables = dict(older.tables)
    for request_id in newer.released:
        tables.pop(request_id, None)
    for request_id, block_ids in newer.tables.items():
        tables[request_id] = [*tables.get(request_id, ()), *block_ids]
    cached, uncached = set(newer.cached), set(newer.uncached)
    return BlockChanges(
        is_snapshot=older.is_snapshot,
        released=list(dict.fromkeys([*older.released, *newer.released])),
        tables=tables,
        cached=sorted((set(older.cached) - uncached) | cached),
        uncached=sorted((set(older.uncached) - cached) | uncached),
    )


class EventMerger:
    """Holds what one reader was not told yet: at most `MAX_STEPS` steps and one state of the blocks."""

    def __init__(self) -> None:
        self._steps: deque[TracedStep] = deque(maxlen=MAX_STEPS)
        self._num_steps = 0
        self._blocks: BlockChanges | None = None
        self._last: StepTrace | None = None
        self._config: SchedulerConfig | None = None
        self._has_snapshot = False

    def add(self, trace: StepTrace) -> None:
        """Take in a trace. What comes before the first snapshot is of no use, as nobody knows what it changes."""
        self._has_snapshot |= trace.blocks.is_snapshot
        if not self._has_snapshot:
            return
        self._steps.append(
            TracedStep(trace.step, trace.seconds, trace.batch, trace.num_output_tokens, trace.preempted, trace.finished)
        )
        self._num_steps += 1
        self._blocks = trace.blocks if self._blocks is None else merge_changes(self._blocks, trace.blocks)
        self._last = trace
        self._config = trace.config or self._config

    def take(self) -> EngineEvent | None:
        """All that was added since the last time; None where nothing was."""
        if self._blocks is None or self._last is None:
            return None
        event = EngineEvent(
            type="steps",
            steps=list(self._steps),
            num_left_out=self._num_steps - len(self._steps),
            blocks=self._blocks,
            waiting=self._last.waiting,
            stats=self._last.stats,
            config=self._config if self._blocks.is_snapshot else None,
        )
        self._steps.clear()
        self._num_steps, self._blocks, self._last = 0, None, None
        return event
