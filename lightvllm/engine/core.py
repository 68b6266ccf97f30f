"""The engine core: schedule a step, run it, take in its results; again.

Where the executor can, the next step is scheduled and submitted while one runs, so that a GPU never waits for Python.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler import Scheduler
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.sleep import PARTS, check_level, check_tags
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import PendingOutput, StepInput, StepOutput
from lightvllm.errors import EngineAsleep, EngineBusy
from lightvllm.executor.base import Executor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A step under way: what waits for its results, or why it could not even be submitted."""

    step: StepInput
    pending: PendingOutput | None
    error: Exception | None = None

    def wait(self) -> StepOutput:
        if self.error is not None:
            raise self.error
        assert self.pending is not None
        return self.pending()


class EngineCore:
    """Turns requests into tokens, one step at a time. It knows no text, no tensors, and no threads.

    It is a cache that can be thrown away: everything a request needs to go on elsewhere is in its tokens, which the
    caller has.
    """

    def __init__(self, executor: Executor, config: SchedulerConfig) -> None:
        self.executor = executor
        self.scheduler = Scheduler(config)
        self._asleep: frozenset[str] = frozenset()  # of `PARTS`
        # Called with each step before it runs, while its requests are as they were.
        self.on_scheduled: Callable[[StepInput], None] | None = None
        self.runs_ahead = executor.runs_ahead
        self._under_way: deque[_Submitted] = deque()  # at most two, the oldest first
        self._kept: list[CoreOutput] = []  # not given out yet: an interrupt may come while a step is waited for in vain

    def add_request(self, request: Request) -> None:
        """Accept a request; its tokens come out of the next steps.

        Raises:
            ValueError: its id is in use, or it can never fit.
            EngineAsleep: the engine sleeps.
        """
        if self._asleep:
            raise EngineAsleep("the engine sleeps: wake it up first")
        self.scheduler.add(request)

    def abort(self, request_ids: Iterable[str]) -> list[CoreOutput]:
        """End requests and free their blocks; returns one output for each that was not finished yet."""
        return self.scheduler.abort(request_ids)

    def step(self) -> list[CoreOutput]:
        """Run one step; returns what each request got, where it got anything.

        A failure ends the request that causes it and no other: when a step of several fails, nothing of it counts, and
        the next steps run each of its requests alone until it has a token or fails.
        """
        try:
            if not self._under_way and not self._submit():
                if self._kept:
                    outputs, self._kept = self._kept, []
                    return outputs
                assert not self.has_unfinished(), "requests are left, but none can be scheduled"
                return []
            if self.runs_ahead and self._under_way[-1].error is None and self.scheduler.can_run_ahead():
                self.scheduler.assume()
                self._submit()
            self._take()
            if not self.has_unfinished():
                self._discard()
            outputs, self._kept = self._kept, []
            return outputs
        except BaseException:  # the user's interrupt, or a bug of ours: no request is to blame
            self._under_way.clear()
            self.scheduler.forget()
            raise

    def _submit(self) -> bool:
        """Start the next step, if there is anything to do."""
        step = self.scheduler.schedule()
        if not step.request_ids:
            return False
        if self.on_scheduled is not None:
            self.on_scheduled(step)
        try:
            self._under_way.append(_Submitted(step, self.executor.submit(step)))
        except Exception as error:
            self._under_way.append(_Submitted(step, None, error))
        return True

    def _take(self) -> None:
        """Wait for the oldest step under way and take its results in."""
        submitted = self._under_way.popleft()
        try:
            output = submitted.wait()
        except Exception as error:
            logger.exception("a step of %d requests failed", len(submitted.step.request_ids))
            self._drain()
            self._kept += self.scheduler.fail(f"{type(error).__name__}: {error}")
            return
        self._kept += self.scheduler.update(output)
        if output.errors:  # the step behind may have read what the failed requests wrote
            self._discard()

    def _discard(self) -> None:
        """Wait for what is under way, and forget it."""
        if self._under_way:
            self._drain()
            self.scheduler.forget()

    def _drain(self) -> None:
        while self._under_way:
            try:
                self._under_way.popleft().wait()
            except Exception:
                logger.exception("a step failed whose results nobody needs")

    def under_way(self) -> list[str]:
        """The requests of the steps under way."""
        return list(dict.fromkeys(request_id for ahead in self._under_way for request_id in ahead.step.request_ids))

    def has_unfinished(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self.scheduler.requests)

    @property
    def is_sleeping(self) -> bool:
        """Whether anything is given up by `sleep`; requests are refused then."""
        return bool(self._asleep)

    def sleep(self, level: int = 1) -> None:
        """Give up the KV cache, with all cached prefixes, and the device's memory for the weights.

        Args:
            level: 1 moves the weights to the host's memory (on a CPU they stay where they are), 2 drops them, to be
                loaded again from the checkpoint.

        Raises:
            ValueError: there is no such level, or the host has not the memory. Nothing has changed then.
            EngineBusy: requests wait or run.
        """
        check_level(level)
        if self.has_unfinished():
            raise EngineBusy("the engine cannot sleep while requests wait or run: let them finish, or abort them")
        self._discard()
        self.executor.sleep(level)
        self.reset_prefix_cache()
        self._asleep = frozenset(PARTS)

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Take back what `sleep` gave up. Who is awake stays so.

        Args:
            tags: only these parts, "weights" or "kv_cache"; it sleeps on until both are back.

        Raises:
            ValueError: there is no such part, or the memory has been taken by others; it may be tried again.
        """
        parts = check_tags(tags)
        if self._asleep:
            self.executor.wake_up(parts)
            self._asleep -= parts

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes. Running requests are not disturbed."""
        self.scheduler.reset_prefix_cache()

    def stats(self) -> EngineStats:
        """The figures of this moment."""
        return self.scheduler.stats()

    def check_integrity(self) -> None:
        """Raise AssertionError, saying what is wrong, unless blocks, queues and requests agree."""
        self.scheduler.check_integrity()

    def shutdown(self) -> None:
        """Shut the executor down."""
        self._drain()
        self.executor.shutdown()
