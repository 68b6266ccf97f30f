"""The one place where benchmarks reach inside the engine."""

from lightvllm.executor.local import LocalExecutor
from lightvllm.llm import LLM
from lightvllm.worker.worker import Worker


def worker_of(llm: LLM) -> Worker:
    """The worker that runs the model, which is in this process."""
    executor = llm.engine.core.executor
    assert isinstance(executor, LocalExecutor)
    return executor.worker
