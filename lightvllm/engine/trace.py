"""What each step did to whom: the engine, made visible to somebody who watches.

The tracer reads the scheduler from outside and costs nothing where there is none. It compares what it saw last with
what is there now, in time proportional to the running requests and to the blocks that changed, not to all blocks.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from lightvllm.engine.request import CoreOutput, FinishReason, RequestStatus
from lightvllm.engine.scheduler import Scheduler
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import StepInput

# The queue can be thousands long; of what comes after the first few, the number says enough.
MAX_TRACED_WAITING = 64


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request's share of a step: its tokens from `start` to `start + num_tokens`, of `total` it has so far.

    Attributes:
        kind: "decode": its newest token, alone. "prefill": a part of its prompt, or of what it lost in a preemption.
        num_cached: tokens the prefix cache had of it; only in the step that admits it.
    """

    request_id: str
    kind: Literal["prefill", "decode"]
    start: int
    num_tokens: int
    total: int
    num_cached: int = 0


class WaitingRequest(msgspec.Struct, frozen=True, gc=False):
    """A request in the queue and the tokens it has, prompt and output."""

    request_id: str
    num_tokens: int
    is_preempted: bool


class FinishedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that ended, and why."""

    request_id: str
    reason: FinishReason


class BlockChanges(msgspec.Struct, frozen=True):
    """What became of the KV-cache blocks since the last trace, to be applied in the order of the fields.

    A block in no table and not cached is empty. One in several tables is shared. One that is cached and in no table is
    kept for later, until its room is needed.

    Attributes:
        is_snapshot: nothing from before counts.
        released: requests whose block table is gone.
        tables: blocks appended to the requests' block tables.
        cached, uncached: blocks that the prefix cache can find from now on, or no longer.
    """

    is_snapshot: bool
    released: list[str]
    tables: dict[str, list[int]]
    cached: list[int]
    uncached: list[int]


class StepTrace(msgspec.Struct, frozen=True):
    """One step's batch, queues and block changes.

    Attributes:
        step: counted from 1 since someone began to watch; of a trace without a batch, the last step's.
        seconds: that the step took.
        batch: in the order of the step's tokens. Empty where something happened between steps.
        num_output_tokens: that were generated.
        preempted: requests that lost their blocks and wait again.
        finished: requests that ended in the step, or were aborted before it.
        waiting: the first of the queue, in the order in which they are served; `stats.num_waiting` is all of it.
        stats: after the step.
        config: the engine's limits; only with a snapshot of the blocks.
    """

    step: int
    seconds: float
    batch: list[TracedRequest]
    num_output_tokens: int
    preempted: list[str]
    finished: list[FinishedRequest]
    waiting: list[WaitingRequest]
    blocks: BlockChanges
    stats: EngineStats
    config: SchedulerConfig | None = None


class _Table:
    """A request's block table as the tracer saw it last.

    The list is the request's own, and only grows; when the request loses its blocks, it gets another.
    """

    __slots__ = ("block_ids", "num_blocks", "num_full")

    def __init__(self, block_ids: list[int]) -> None:
        self.block_ids = block_ids
        self.num_blocks = 0
        self.num_full = 0


class StepTracer:
    """Makes the traces, as long as someone watches.

    Call `before` when a step is scheduled and `after` when its results are taken in. `after` alone tells what happened
    between steps, such as an abort that leaves nothing to run. The first trace is a snapshot; `snapshot` makes another,
    for one who begins to watch later.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._step = 0
        self._batch: list[TracedRequest] = []
        self._tables: dict[str, _Table] = {}
        self._cached: set[int] = set()
        self._touched: set[int] = set()  # blocks that may have entered or left the prefix cache
        self._is_first = True

    def before(self, step: StepInput) -> None:
        """Take note of a step that was scheduled and is about to run."""
        requests = self._scheduler.requests
        num_cached = {new.request_id: new.num_computed_tokens for new in step.new_requests}
        self._step += 1
        self._batch = []
        for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
            request = requests[request_id]
            start, total = request.num_computed_tokens, len(request.token_ids)
            is_decode = start == total - 1 and start >= request.num_prompt_tokens
            kind: Literal["prefill", "decode"] = "decode" if is_decode else "prefill"
            cached = num_cached.get(request_id, 0)
            self._batch.append(TracedRequest(request_id, kind, start, num_tokens, total, cached))
        # A request that ends in this very step is gone when `after` looks.
        for new in step.new_requests:
            self._touched.update(new.block_ids)

    def after(self, outputs: Iterable[CoreOutput], seconds: float) -> StepTrace:
        """The trace of the step that `before` was told of.

        Args:
            outputs: what the step, and aborts before it, gave.
            seconds: that the step took.
        """
        outputs = list(outputs)
        blocks = self._block_changes()
        if self._is_first or len(self._cached) != len(self._scheduler.prefix_cache):  # the prefix cache was reset
            return self._trace(outputs, seconds, blocks.released, self._all_blocks())
        return self._trace(outputs, seconds, blocks.released, blocks)

    def snapshot(self) -> StepTrace:
        """A trace of no step, with all blocks. Call it between steps."""
        released = self._block_changes().released
        return self._trace([], 0.0, released, self._all_blocks())

    def _trace(self, outputs: list[CoreOutput], seconds: float, released: list[str], blocks: BlockChanges) -> StepTrace:
        scheduler = self._scheduler
        finished = {output.request_id: output.finish_reason for output in outputs if output.finish_reason is not None}
        for request_id in released:
            if request_id not in scheduler.requests:
                finished.setdefault(request_id, "abort")
        batch, self._batch = self._batch, []
        return StepTrace(
            step=self._step,
            seconds=seconds,
            batch=batch,
            num_output_tokens=sum(len(output.new_token_ids) for output in outputs),
            preempted=[request_id for request_id in released if request_id in scheduler.requests],
            finished=[FinishedRequest(request_id, reason) for request_id, reason in finished.items()],
            waiting=[
                WaitingRequest(request.request_id, len(request.token_ids), request.status is RequestStatus.PREEMPTED)
                for request in scheduler.waiting[:MAX_TRACED_WAITING]
            ],
            blocks=blocks,
            stats=scheduler.stats(),
            config=scheduler.config if blocks.is_snapshot else None,
        )

    def _block_changes(self) -> BlockChanges:
        scheduler, block_size = self._scheduler, self._scheduler.config.block_size
        touched, self._touched = self._touched, set()
        released = []
        for request_id, table in list(self._tables.items()):
            request = scheduler.requests.get(request_id)
            if request is None or request.block_ids is not table.block_ids:
                released.append(request_id)
                touched.update(table.block_ids)
                del self._tables[request_id]
        appended: dict[str, list[int]] = {}
        for request in scheduler.running:
            block_ids = request.block_ids
            table = self._tables.setdefault(request.request_id, _Table(block_ids))
            if len(block_ids) > table.num_blocks:
                appended[request.request_id] = block_ids[table.num_blocks :]
                touched.update(appended[request.request_id])
                table.num_blocks = len(block_ids)
            num_full = request.num_computed_tokens // block_size
            if num_full > table.num_full:  # full blocks are what the prefix cache keeps
                touched.update(block_ids[table.num_full : num_full])
                table.num_full = num_full
        now_cached = {block_id for block_id in touched if block_id in scheduler.prefix_cache}
        cached = now_cached - self._cached
        uncached = (touched - now_cached) & self._cached
        self._cached |= cached
        self._cached -= uncached
        return BlockChanges(False, released, appended, sorted(cached), sorted(uncached))

    def _all_blocks(self) -> BlockChanges:
        self._is_first = False
        scheduler = self._scheduler
        self._cached = {
            block_id for block_id in range(scheduler.config.num_blocks) if block_id in scheduler.prefix_cache
        }
        tables = {request.request_id: list(request.block_ids) for request in scheduler.running}
        return BlockChanges(True, [], tables, sorted(self._cached), [])
