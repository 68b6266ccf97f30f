"""The engine core: schedule a step, run it, take in its results; again."""

import logging
from collections.abc import Callable, Iterable, Sequence

from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler import Scheduler, SchedulerConfig
from lightvllm.engine.sleep import PARTS, check_level, check_tags
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import StepInput
from lightvllm.errors import EngineAsleep, EngineBusy
from lightvllm.executor.base import Executor

logger = logging.getLogger(__name__)


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
            step = self.scheduler.schedule()
            if not step.request_ids:
                assert not self.has_unfinished(), "requests are left, but none can be scheduled"
                return []
            if self.on_scheduled is not None:
                self.on_scheduled(step)
            try:
                output = self.executor.execute(step)
            except Exception as error:
                logger.exception("a step of %d requests failed", len(step.request_ids))
                return self.scheduler.fail(f"{type(error).__name__}: {error}")
            return self.scheduler.update(output)
        except BaseException:  # the user's interrupt, or a bug of ours: no request is to blame
            self.scheduler.forget()
            raise

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
        self.executor.shutdown()
