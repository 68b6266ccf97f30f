"""The engine core's process, which loses its GPU after some steps: python -m tests.worker.losing_core

A kernel fails on the device, which no later call of CUDA survives. Everything else is the real thing.
"""

import os
from pathlib import Path

import torch

from lightvllm.engine import core_process
from lightvllm.engine.step import PendingOutput, StepInput
from lightvllm.worker.worker import Worker

MARK_VARIABLE = "LIGHTVLLM_TESTS_GPU_LOST"
STEPS = 6


def lose_gpu() -> None:
    """Index out of bounds: the host hears of it later."""
    torch.zeros(4, device="cuda")[torch.full((4,), 1 << 40, device="cuda")]


def main() -> None:
    """Serve, and lose the GPU once: the file that `MARK_VARIABLE` names says that it is done."""
    submit, mark, steps = Worker.submit, Path(os.environ[MARK_VARIABLE]), 0

    def losing(worker: Worker, step: StepInput) -> PendingOutput:
        nonlocal steps
        steps += 1
        if steps == STEPS and not mark.exists():
            mark.touch()
            lose_gpu()
        return submit(worker, step)

    Worker.submit = losing  # type: ignore[method-assign]
    core_process.main()


if __name__ == "__main__":
    main()
