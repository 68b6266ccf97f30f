"""One worker in this process."""

import gc
from collections.abc import Collection
from pathlib import Path

import torch

from lightvllm.config import EngineConfig
from lightvllm.engine.step import PendingOutput, StepInput
from lightvllm.model_config import ModelConfig
from lightvllm.worker.kv_cache import KVCachePlan
from lightvllm.worker.memory import return_freed_memory
from lightvllm.worker.worker import Worker


class LocalExecutor:
    """See `lightvllm.executor.base.Executor`.

    Raises:
        ValueError: a checkpoint or a setting that does not work, in words.
    """

    def __init__(self, path: Path, config: EngineConfig, model_config: ModelConfig) -> None:
        self._worker: Worker | None = Worker(path, config, model_config)

    @property
    def worker(self) -> Worker:
        """The worker; it is gone after `shutdown`."""
        if self._worker is None:
            raise RuntimeError("the engine is closed")
        return self._worker

    @property
    def plan(self) -> KVCachePlan:
        """The size of the worker's KV cache."""
        return self.worker.plan

    def describe(self) -> dict[str, str]:
        """See `lightvllm.executor.base.Executor.describe`."""
        dtype = str(self.worker.dtype).removeprefix("torch.")
        return {"device": str(self.worker.device), "dtype": dtype, "kv_cache": str(self.plan)}

    @property
    def runs_ahead(self) -> bool:
        """See `lightvllm.executor.base.Executor.runs_ahead`."""
        return self.worker.runs_ahead

    def submit(self, step: StepInput) -> PendingOutput:
        """See `lightvllm.executor.base.Executor.submit`."""
        return self.worker.submit(step)

    def sleep(self, level: int) -> None:
        """See `lightvllm.executor.base.Executor.sleep`."""
        self.worker.sleep(level)

    def wake_up(self, tags: Collection[str]) -> None:
        """See `lightvllm.executor.base.Executor.wake_up`."""
        self.worker.wake_up(tags)

    def shutdown(self) -> None:
        """Free weights and cache."""
        self._worker = None
        gc.collect()
        return_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
