"""How the engine reaches its workers: one call to start a step, and one to wait for it."""

from collections.abc import Collection
from typing import Protocol

from lightvllm.engine.step import PendingOutput, StepInput


class Executor(Protocol):
    """One worker in this process, or many anywhere: the engine does not know.

    In every layer of a step, all keys and values are written before any are read: a request may share a cache block
    that another one fills in the same step.
    """

    def describe(self) -> dict[str, str]:
        """For people: the "device", the "dtype", and how large the "kv_cache" is and why."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may be submitted while the one before it is under way.

        Then the last token of a request in it may be one that the step before samples, which the worker puts in itself.
        """
        ...

    def submit(self, step: StepInput) -> PendingOutput:
        """Start one step. What is returned waits for its results; it is called once, in the order of the steps.

        What goes wrong with one request belongs into `StepOutput.errors`. An exception, from here or from what is
        returned, makes the engine forget the whole step: next it drops the step's requests again, whether or not the
        worker came to know them, so ids in `dropped_request_ids` that a worker does not know mean nothing.
        """
        ...

    def sleep(self, level: int) -> None:
        """Give up memory until `wake_up`: see `lightvllm.engine.core.EngineCore.sleep`. No request is running.

        Raises:
            ValueError: it cannot be done, in words. Nothing has changed then.
        """
        ...

    def wake_up(self, tags: Collection[str]) -> None:
        """Take back what is named of "weights" and "kv_cache", where it is not there already.

        Raises:
            ValueError: the memory has been taken by others, in words. It may be tried again.
        """
        ...

    def shutdown(self) -> None:
        """Free everything. Nothing is called afterwards."""
        ...
