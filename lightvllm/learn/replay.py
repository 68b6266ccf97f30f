"""Drives the engine's scheduler, the real one, with requests that arrive over simulated time.

Only the worker is made up: instead of a model that computes, each step costs what a `StepCost` says, and each request
that has all its tokens computed gets another one. All decisions, which the simulators show, are the scheduler's.
"""

import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lightvllm.engine.request import Request
from lightvllm.engine.scheduler import Scheduler
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepInput, StepOutput
from lightvllm.engine.trace import StepTrace, StepTracer, TracedRequest
from lightvllm.learn.clock import StepCost
from lightvllm.learn.workload import Workload
from lightvllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        start, end: in seconds.
        trace: what the engine's own tracer saw: who took part with which tokens, who was preempted, the figures after.
        num_used_blocks: KV-cache blocks that requests own while it runs.
    """

    start: float
    end: float
    trace: StepTrace
    num_used_blocks: int


@dataclass(frozen=True)
class Span:
    """What a request did between two times, in seconds."""

    kind: Literal["waiting", "prefill", "decode"]
    start: float
    end: float


@dataclass(frozen=True)
class RequestTimeline:
    """A request's life. Times are in seconds.

    Attributes:
        spans: from its arrival to its end, without gaps.
        token_times: when each of its tokens came.
        num_cached_tokens: of its prompt, which the prefix cache had when it was first admitted.
        num_preemptions: how often it lost its blocks.
        num_recomputed_tokens: that it had computed before, and lost in a preemption.
    """

    arrival: float
    spans: tuple[Span, ...]
    token_times: tuple[float, ...]
    num_cached_tokens: int
    num_preemptions: int
    num_recomputed_tokens: int

    @property
    def end(self) -> float:
        return self.token_times[-1]

    @property
    def latency(self) -> float:
        """From its arrival to its last token."""
        return self.end - self.arrival

    @property
    def time_to_first_token(self) -> float:
        return self.token_times[0] - self.arrival


@dataclass(frozen=True)
class Replay:
    """What became of a workload.

    Attributes:
        steps: in order; between them may be time in which nobody was there.
        requests: parallel to those of the workload.
    """

    steps: tuple[Step, ...]
    requests: tuple[RequestTimeline, ...]

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return self.steps[-1].end - self.requests[0].arrival

    @property
    def output_tokens_per_s(self) -> float:
        return sum(len(request.token_times) for request in self.requests) / self.seconds

    @property
    def mean_latency(self) -> float:
        return statistics.fmean(request.latency for request in self.requests)

    @property
    def latency_p99(self) -> float:
        return percentile([request.latency for request in self.requests], 99)

    @property
    def mean_time_to_first_token(self) -> float:
        return statistics.fmean(request.time_to_first_token for request in self.requests)


def replay(load: Workload, config: SchedulerConfig, cost: StepCost, *, is_static: bool = False) -> Replay:
    """Serve a workload in simulated time.

    Args:
        is_static: static batching: hand the scheduler `config.max_num_seqs` requests, or as many as are there, and no
            more until all of these have ended.

    Raises:
        ValueError: a request could never fit into `config.num_blocks`.
    """
    steps = tuple(run_steps(load, config, cost, is_static=is_static))
    shares: list[list[tuple[Step, TracedRequest]]] = [[] for _ in load.requests]
    num_preemptions = [0] * len(load.requests)
    for step in steps:
        for share in step.trace.batch:
            shares[int(share.request_id)].append((step, share))
        for request_id in step.trace.preempted:
            num_preemptions[int(request_id)] += 1
    arrivals = [planned.arrival for planned in load.requests]
    return Replay(steps, tuple(map(_timeline, arrivals, shares, num_preemptions)))


def run_steps(load: Workload, config: SchedulerConfig, cost: StepCost, *, is_static: bool = False) -> Iterator[Step]:
    """The steps, one at a time: see `replay`. Requests are named by their place in the workload: "0", "1", ..."""
    scheduler = Scheduler(config)
    tracer = StepTracer(scheduler)
    coming = deque(_requests(load))
    most = config.max_num_seqs if is_static else len(coming)
    now = coming[0].arrival_time
    while coming or scheduler.requests:
        if not is_static or not scheduler.requests:
            while coming and coming[0].arrival_time <= now and len(scheduler.requests) < most:
                scheduler.add(coming.popleft())
        step = scheduler.schedule()
        if not step.request_ids:  # nobody is there: the engine sleeps until somebody comes
            now = coming[0].arrival_time
            continue
        tracer.before(step)
        num_used_blocks = scheduler.block_pool.num_used
        seconds = cost.seconds(sum(step.num_scheduled_tokens), _num_context_tokens(scheduler, step))
        outputs = scheduler.update(_compute(scheduler, step))
        yield Step(now, now + seconds, tracer.after(outputs, seconds), num_used_blocks)
        now += seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least this percentage of them do not exceed."""
    return sorted(values)[max(0, int(-(-len(values) * percent // 100)) - 1)]


def _requests(load: Workload) -> Iterator[Request]:
    for index, (planned, prompt) in enumerate(zip(load.requests, load.prompts(), strict=True)):
        params = SamplingParams(temperature=0, max_tokens=planned.output_len)
        yield Request(str(index), prompt, params, seed=index, arrival_time=planned.arrival)


def _num_context_tokens(scheduler: Scheduler, step: StepInput) -> int:
    """Tokens in the KV cache after the step, of the requests that take part in it."""
    computed_before = sum(scheduler.requests[request_id].num_computed_tokens for request_id in step.request_ids)
    return computed_before + sum(step.num_scheduled_tokens)


def _compute(scheduler: Scheduler, step: StepInput) -> StepOutput:
    """What a worker would send back: a token for each request that has all its tokens computed."""
    token_ids = []
    for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
        request = scheduler.requests[request_id]
        is_complete = request.num_computed_tokens + num_tokens == len(request.token_ids)
        token_ids.append([0] if is_complete else [])
    return StepOutput(token_ids)


def _timeline(arrival: float, shares: list[tuple[Step, TracedRequest]], num_preemptions: int) -> RequestTimeline:
    """A request's life, from its shares of the steps."""
    spans: list[Span] = []
    token_times = []
    reached, num_once_computed, num_recomputed = arrival, 0, 0
    for step, share in shares:
        if step.start > reached:
            spans.append(Span("waiting", reached, step.start))
        if spans and spans[-1].kind == share.kind:
            spans[-1] = Span(share.kind, spans[-1].start, step.end)
        else:
            spans.append(Span(share.kind, step.start, step.end))
        reached = step.end
        share_end = share.start + share.num_tokens
        num_recomputed += max(0, min(share_end, num_once_computed) - share.start)
        num_once_computed = max(share_end, num_once_computed)
        if share_end == share.total:
            token_times.append(step.end)
    num_cached_tokens = shares[0][1].num_cached
    return RequestTimeline(
        arrival, tuple(spans), tuple(token_times), num_cached_tokens, num_preemptions, num_recomputed
    )
