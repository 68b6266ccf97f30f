"""The scheduler: which tokens of which requests the next step computes.

A request is a list of tokens of which the first few are in the KV cache. Each step has a budget of tokens, and the
scheduler hands it out: to the running requests in their order, then to waiting ones that the free cache blocks can
hold. There is no prefill and no decode here, only tokens that are not computed yet.

When a running request needs a block and none is free, the last of the running requests gives its blocks up and waits
again (preemption by recomputation). The first can always go on, as no request is accepted that the whole cache could
not hold: so there is always progress.
"""

import dataclasses
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from itertools import count
from operator import attrgetter

from lightvllm.engine.block_pool import BlockPool
from lightvllm.engine.policy import POLICIES
from lightvllm.engine.prefix_cache import PrefixCache
from lightvllm.engine.request import NEVER, CoreOutput, FinishReason, Request, RequestStatus
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import NewRequest, StepInput, StepOutput

_order = attrgetter("order")


@dataclasses.dataclass(slots=True)
class _StepUnderWay:
    """A step whose results are not in.

    Attributes:
        message: what the worker was told.
        scheduled: its requests, in the same order.
        registered: the blocks that each one made findable.
        is_assumed: see `Scheduler.assume`.
    """

    message: StepInput
    scheduled: list[Request] = dataclasses.field(default_factory=list)
    registered: dict[Request, list[int]] = dataclasses.field(default_factory=dict)
    is_assumed: bool = False


class Scheduler:
    """Hands out the tokens of each step and takes in its results.

    `schedule()` and `update()` (or, if the step failed, `fail()` or `forget()`) alternate; requests may be added and
    aborted at any time between. Where `can_run_ahead()` and after `assume()`, another step may be scheduled behind the
    one under way.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.prefix_cache = PrefixCache(config.block_size)
        self.block_pool = BlockPool(config.num_blocks, self.prefix_cache)
        self.num_preemptions = 0
        self.requests: dict[str, Request] = {}  # all that are not finished
        # Both in serving order. Taking from the front of a list only moves pointers: microseconds for thousands.
        self.running: list[Request] = []
        self.waiting: list[Request] = []

        self._arrivals = count()
        self._token_limit = config.long_prefill_token_threshold or NEVER
        self._dropped: dict[str, None] = {}  # the ids to tell the worker of in the next step, in order
        self._no_room = False  # the first waiting request did not fit, and no block was freed since
        self._suspects: deque[Request] = deque()  # of a failed step, or of a crash: each to be run alone
        self._under_way: deque[_StepUnderWay] = deque()  # the oldest first

    def add(self, request: Request) -> None:
        """Accept a request.

        Raises:
            ValueError: its id is in use, or it can never fit.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request_id is {request.request_id!r}, but a request of this id is not finished yet")
        max_num_tokens = self.config.max_num_tokens(
            f"request {request.request_id!r}", request.num_prompt_tokens, request.sampling_params.max_tokens
        )
        if len(request.token_ids) >= max_num_tokens:
            raise ValueError(
                f"output_token_ids of request {request.request_id!r} has {request.num_output_tokens} tokens, but must "
                f"leave at least one to generate: it ends with {max_num_tokens - request.num_prompt_tokens}"
            )
        request.max_num_tokens = max_num_tokens
        priority = POLICIES[self.config.policy](request)
        request.order = (priority, request.arrival_time, next(self._arrivals))
        self.requests[request.request_id] = request
        insort(self.waiting, request, key=_order)
        if request.is_suspect:
            self._suspects.append(request)
        self._no_room = False

    def abort(self, request_ids: Iterable[str]) -> list[CoreOutput]:
        """End requests and free their blocks. Ids that are not known, perhaps just finished, mean nothing."""
        outputs = []
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                outputs.append(self._end(request, "abort"))
        return outputs

    def schedule(self) -> StepInput:
        """Decide the next step. Empty only when no request is left, or when all that is left to do is under way."""
        assert all(step.is_assumed for step in self._under_way), "the last step was not taken in, failed or forgotten"
        step = StepInput()
        self._under_way.append(_StepUnderWay(step))
        while self._suspects and self._suspects[0].status is RequestStatus.FINISHED:
            self._suspects.popleft()
        if self._suspects:
            self._schedule_alone(self._suspects[0], step)
        else:
            num_preemptions = self.num_preemptions
            budget = self._hand_out(self.running, step, self.config.max_num_batched_tokens)
            if self.num_preemptions == num_preemptions:
                self._schedule_waiting(step, budget)
        if step.request_ids:
            step.dropped_request_ids = list(self._dropped)
            self._dropped.clear()
        else:
            self._under_way.pop()
        return step

    def can_run_ahead(self) -> bool:
        """Whether a step can be scheduled behind the one under way.

        It cannot where the choice of a token needs the one before, after a failure, and where a running request might
        have to give its blocks up: its last token is not known yet, and the worker would have to be told of it anew.
        """
        if self._suspects or not all(request.samples_blindly for request in self._under_way[-1].scheduled):
            return False
        num_free = self.block_pool.num_free
        return len(self.running) <= num_free or self._num_growing() <= num_free

    def _num_growing(self) -> int:
        """How many of the running requests need a block for one token more than are under way."""
        block_size = self.config.block_size
        return sum(
            len(request.token_ids) + request.num_unknown_tokens + 1 > len(request.block_ids) * block_size
            for request in self.running
        )

    def assume(self) -> None:
        """Take the step under way for done: its tokens count as computed, those it samples as there, but unknown."""
        step = self._under_way[-1]
        step.is_assumed = True
        for request, num_tokens in zip(step.scheduled, step.message.num_scheduled_tokens, strict=True):
            if request.status is not RequestStatus.RUNNING:
                continue
            request.num_computed_tokens += num_tokens
            num_known = len(request.token_ids) + request.num_unknown_tokens
            # Where its length ends the request, nothing more is to be computed.
            if request.num_computed_tokens == num_known and num_known + 1 < request.max_num_tokens:
                request.num_unknown_tokens += 1

    def update(self, output: StepOutput) -> list[CoreOutput]:
        """Take in the results of the oldest step under way; returns what each request got, where it got anything."""
        step = self._under_way[0]
        scheduled = step.scheduled
        assert len(output.token_ids) == len(scheduled), f"{len(output.token_ids)} results of {len(scheduled)} requests"
        outputs = self._end_failed(step, output.errors) if output.errors else []
        any_finished = False
        for request, num_tokens, sampled in zip(
            scheduled, step.message.num_scheduled_tokens, output.token_ids, strict=True
        ):
            if request.status is not RequestStatus.RUNNING:  # aborted, failed, or to be computed again
                continue
            if not step.is_assumed:
                request.num_computed_tokens += num_tokens
            elif sampled:
                request.num_unknown_tokens = 0
            num_computed = request.num_computed_tokens
            is_complete = num_computed == len(request.token_ids)
            assert is_complete == bool(sampled), f"{request.request_id}: sampled {sampled} at token {num_computed}"

            core_output = CoreOutput(request.request_id, request.append(sampled))
            core_output.num_cached_tokens = request.num_cached_tokens
            core_output.first_scheduled_time = request.first_scheduled_time
            if output.logprobs and request.request_id in output.logprobs:
                core_output.logprobs = output.logprobs[request.request_id][: len(core_output.new_token_ids)]
            if output.prompt_logprobs and request.request_id in output.prompt_logprobs:
                entries = output.prompt_logprobs[request.request_id]
                core_output.prompt_logprobs = request.take_prompt_logprobs(entries, num_computed - num_tokens) or None
            if request.finish_reason is not None:
                any_finished = True
                core_output.finish_reason = request.finish_reason
                core_output.stop_reason = request.stop_reason
                self._close(request)
            if sampled or core_output.prompt_logprobs:
                outputs.append(core_output)
        if any_finished:
            self.running = [request for request in self.running if request.status is RequestStatus.RUNNING]
        if self._suspects and scheduled[0] is self._suspects[0] and output.token_ids[0]:
            self._suspects.popleft()  # it has run alone as far as there are tokens: it is not the culprit
        self._under_way.popleft()
        return outputs

    def fail(self, error: str) -> list[CoreOutput]:
        """The oldest step under way failed as a whole; what was behind it is forgotten.

        A request that ran alone is ended; of several, each is tried alone next.
        """
        scheduled = self._under_way[0].scheduled
        ran_alone = len(scheduled) == 1
        scheduled = [request for request in scheduled if request.status is RequestStatus.RUNNING]
        self.forget()
        if ran_alone:
            return [self._end(request, "error", error) for request in scheduled]
        self._suspects.extend(scheduled)
        return []

    def forget(self) -> None:
        """Nothing is known of the outcome of what is under way: compute its tokens again, and cache nothing of it.

        Its requests go back to the waiting ones, so that the worker is told all about them once more. The last step may
        have been cut short anywhere, by an interrupt in the middle of `schedule` or `update` too.
        """
        steps, self._under_way = self._under_way, deque()
        # Whether the worker took note of the dropped ones is not known either.
        dropped = [request_id for step in steps for request_id in step.message.dropped_request_ids]
        self._dropped = dict.fromkeys([*dropped, *self._dropped])
        for step in steps:
            self._recompute(step, step.scheduled)
        # What has blocks of which the worker will not hear: only if `schedule` came no further.
        for message in [step.message for step in steps]:
            for request_id in [*(request.request_id for request in message.new_requests), *message.new_block_ids]:
                request = self.requests.get(request_id)
                if request is not None and request.status is RequestStatus.RUNNING:
                    self._put_back(request)
        self.running = [request for request in self.running if request.status is RequestStatus.RUNNING]

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes. Running requests are not disturbed."""
        self.block_pool.uncache_all()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_blocks=self.block_pool.num_blocks,
            num_used_blocks=self.block_pool.num_used,
            peak_num_used_blocks=self.block_pool.peak_num_used,
            prefix_cache_queries=self.prefix_cache.num_query_tokens,
            prefix_cache_hits=self.prefix_cache.num_hit_tokens,
            num_preemptions=self.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError, saying what is wrong, unless blocks, queues and requests agree."""
        self.block_pool.check_integrity(self.requests.values())
        queued = [request.request_id for request in [*self.running, *self.waiting]]
        assert sorted(queued) == sorted(self.requests), f"queued are {queued}, known are {list(self.requests)}"
        for queue in (self.running, self.waiting):
            assert queue == sorted(queue, key=_order), f"out of order: {[request.request_id for request in queue]}"
        for request in self.requests.values():
            is_running = request in self.running
            assert is_running == (request.status is RequestStatus.RUNNING), f"{request.request_id}: {request.status}"
            num_slots = len(request.block_ids) * self.config.block_size
            assert request.num_computed_tokens <= num_slots, f"{request.request_id}: tokens without blocks"
            assert is_running or not request.block_ids, f"{request.request_id} waits, but owns blocks"

    def _schedule_waiting(self, step: StepInput, budget: int) -> None:
        while self.waiting and budget and len(self.running) < self.config.max_num_seqs and not self._no_room:
            request = self.waiting[0]
            if self._admit(request, step):
                budget = self._hand_out([request], step, budget)
            else:
                self._no_room = True

    def _schedule_alone(self, request: Request, step: StepInput) -> None:
        """Run one request and no other, even if that takes the blocks of others."""
        while request.status is not RequestStatus.RUNNING:
            if len(self.running) >= self.config.max_num_seqs or not self._admit(request, step):
                self._preempt_last()
        self._hand_out([request], step, self.config.max_num_batched_tokens)

    def _hand_out(self, requests: list[Request], step: StepInput, budget: int) -> int:
        """Give each request its uncomputed tokens in turn, while the budget lasts; returns what is left of it.

        This loop runs for every request in every step: it does nothing that an unfinished block does not need.
        """
        block_size, token_limit, under_way = self.config.block_size, self._token_limit, self._under_way[-1]
        # Preemption shortens `self.running` from its end, behind the request at hand, or by it: then the loop ends.
        for request in requests:
            num_computed = request.num_computed_tokens
            num_known = len(request.token_ids)
            num_tokens = num_known + request.num_unknown_tokens - num_computed
            if not num_tokens:  # its last token is under way
                continue
            if num_tokens > token_limit:
                num_tokens = token_limit
            if num_tokens > budget:
                num_tokens = budget
            end = num_computed + num_tokens
            if end > len(request.block_ids) * block_size and not self._grow(request, end, step):
                break
            if end >= request.next_block_end:
                # Already now, so that requests admitted in this same step share the blocks.
                under_way.registered[request] = self.prefix_cache.register(request, min(end, num_known))
            under_way.scheduled.append(request)
            step.request_ids.append(request.request_id)
            step.num_scheduled_tokens.append(num_tokens)
            budget -= num_tokens
            if not budget:
                break
        return budget

    def _grow(self, request: Request, num_tokens: int, step: StepInput) -> bool:
        """Give a running request blocks for its first `num_tokens` tokens; False if that took its own place."""
        num_new = -(-num_tokens // self.config.block_size) - len(request.block_ids)
        while num_new > self.block_pool.num_free:
            if self._preempt_last() is request:
                return False
        new_block_ids = self.block_pool.allocate(num_new)
        request.block_ids += new_block_ids
        step.new_block_ids[request.request_id] = new_block_ids
        return True

    def _admit(self, request: Request, step: StepInput) -> bool:
        """Make a waiting request a running one, if the free blocks hold all its tokens.

        It gets blocks for all of them at once, though the budget may give it only some in this step: so the rest of
        its prompt never waits for room that went to others.
        """
        hits = self.prefix_cache.match(request) if self.config.enable_prefix_caching else []
        hit_ids = [block.block_id for block in hits]
        num_new = -(-len(request.token_ids) // self.config.block_size) - len(hit_ids)
        if num_new > self.block_pool.num_free - self.block_pool.num_idle(hit_ids):
            return False
        self.block_pool.touch(hit_ids)
        request.block_ids = hit_ids + self.block_pool.allocate(num_new)
        request.num_computed_tokens = len(hit_ids) * self.config.block_size
        if self.config.enable_prefix_caching:
            self.prefix_cache.follow(request, hits)
            if request.status is RequestStatus.WAITING and request.sampling_params.prompt_logprobs is None:
                self.prefix_cache.record(len(request.token_ids), request.num_computed_tokens)
        if request.status is RequestStatus.WAITING:
            request.num_cached_tokens = request.num_computed_tokens
            request.first_scheduled_time = time.monotonic()
        self._remove_from_queue(request)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=_order)
        step.new_requests.append(
            NewRequest(
                request_id=request.request_id,
                token_ids=request.token_ids.copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                num_computed_tokens=request.num_computed_tokens,
                block_ids=request.block_ids.copy(),
                sampling_params=request.sampling_params,
                seed=request.seed,
                stop_token_ids=sorted(request.stop_token_ids),
                eos_token_ids=sorted(request.eos_token_ids),
            )
        )
        return True

    def _preempt_last(self) -> Request:
        """Take the blocks of the last running request."""
        request = self.running[-1]
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._put_back(request)
        return request

    def _put_back(self, request: Request) -> None:
        """Make a running request wait again. Its order puts it before those that came later."""
        self._remove_from_queue(request)
        self._release(request)
        request.status = RequestStatus.PREEMPTED
        insort(self.waiting, request, key=_order)

    def _release(self, request: Request) -> None:
        """Take the blocks of a running request, and have the worker forget it."""
        self.block_pool.free(request.block_ids)
        request.block_ids = []
        request.num_computed_tokens = request.num_unknown_tokens = 0
        self._dropped[request.request_id] = None
        self._no_room = False

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> CoreOutput:
        """End a request before its time."""
        self._remove_from_queue(request)
        request.finish_reason = reason
        self._close(request)
        return CoreOutput(
            request.request_id,
            [],
            finish_reason=reason,
            num_cached_tokens=request.num_cached_tokens,
            first_scheduled_time=request.first_scheduled_time,
            error=error,
        )

    def _close(self, request: Request) -> None:
        """Free what a finished request holds; it may still stand in its queue."""
        if request.status is RequestStatus.RUNNING:
            self._release(request)
        request.status = RequestStatus.FINISHED
        self._no_room = False
        del self.requests[request.request_id]

    def _remove_from_queue(self, request: Request) -> None:
        queue = self.running if request.status is RequestStatus.RUNNING else self.waiting
        index = bisect_left(queue, request.order, key=_order)
        assert queue[index] is request
        del queue[index]

    def _end_failed(self, step: _StepUnderWay, errors: dict[str, str]) -> list[CoreOutput]:
        """End the requests that failed on their own in a step."""
        failed = [
            request
            for request in step.scheduled
            if request.request_id in errors and request.status is RequestStatus.RUNNING
        ]
        self._recompute(step, failed)
        return [self._end(request, "error", errors[request.request_id]) for request in failed]

    def _recompute(self, step: _StepUnderWay, failed: list[Request]) -> None:
        """Put back these requests of a step, and those that read in it what these were to write."""
        distrusted = set(failed)
        bad_blocks: set[int] = set()
        # A block is read only by requests that come later in the step than the one that fills it.
        for request in step.scheduled:
            is_aborted = request.status is not RequestStatus.RUNNING  # its blocks are gone: it may have been a reader
            if is_aborted or request in distrusted or not bad_blocks.isdisjoint(request.block_ids):
                distrusted.add(request)
                bad_blocks.update(step.registered.get(request, ()))
        for block_id in bad_blocks:
            if block_id in self.prefix_cache:
                self.block_pool.uncache(block_id)
        for request in step.scheduled:
            if request in distrusted and request.status is RequestStatus.RUNNING:
                self._put_back(request)
