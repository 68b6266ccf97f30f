"""A GPU's memory: whether the weights will fit, what the largest step takes, and words where there is none left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from lightvllm.config import EngineConfig
from lightvllm.model_config import ModelConfig
from lightvllm.models.footprint import weight_bytes

T = TypeVar("T")

# What captured graphs themselves take beside the tensors that they hold: each operation of each graph a little.
GRAPH_OBJECT_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a GPU's memory, and what they go to beside the KV cache.

    Attributes:
        total: that the GPU has.
        others: what other programs use, CUDA itself included.
        weights: of the model.
        activations: of the largest step, measured.
        graphs: kept for captured graphs.
    """

    total: int
    others: int
    weights: int
    activations: int
    graphs: int

    @property
    def used(self) -> int:
        """All but the KV cache."""
        return self.others + self.weights + self.activations + self.graphs

    def describe(self, cache: int) -> str:
        """Every part of the total, with a KV cache of so many bytes."""
        parts = {
            "weights": self.weights,
            "the largest step": self.activations,
            "captured graphs": self.graphs,
            "KV cache": cache,
            "other programs and CUDA": self.others,
            "left": self.total - self.used - cache,
        }
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())


def measure_memory(
    config: EngineConfig, device: torch.device, run_largest_step: Callable[[int, int], None], captures_graphs: bool
) -> MemoryUse:
    """Find out what is used, once the weights are loaded and nothing else is.

    Args:
        run_largest_step: computes a step of so many tokens for so many requests, and keeps nothing of it.
        captures_graphs: whether steps of one token a request are going to be captured.

    Raises:
        ValueError: the step does not fit.
    """
    weights = torch.cuda.memory_allocated(device)
    num_tokens, num_seqs = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)

    def measure(tokens: int) -> int:
        run = partial(run_largest_step, tokens, num_seqs)
        return within_memory(
            lambda: measure_peak(device, run), lambda: _step_does_not_fit(tokens, num_seqs, weights, device)
        )

    activations = measure(num_tokens)
    # A graph holds the tensors of its step, and all graphs share what the largest needs.
    graphs = measure(num_seqs) + GRAPH_OBJECT_BYTES if captures_graphs else 0
    free, total = torch.cuda.mem_get_info(device)
    # What torch does not know of: other programs, CUDA's own share, and the kernels that the step has loaded.
    others = total - free - torch.cuda.memory_reserved(device)
    return MemoryUse(total, others, weights, activations, graphs)


def measure_peak(device: torch.device, run: Callable[[], None]) -> int:
    """The most bytes that were allocated at a time while `run` ran, beside those that were before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return peak


def check_weights_fit(
    path: Path, model: ModelConfig, dtype: torch.dtype, device: torch.device, quantization: str | None
) -> None:
    """Compare the weights' size with the memory that is free, before minutes are spent on loading them.

    Raises:
        ValueError: they do not fit, with what would.
    """
    free, total = torch.cuda.mem_get_info(device)
    needed = weight_bytes(path, model, dtype, quantization)
    if needed <= free:
        return
    options = [  # of which none makes a quantized checkpoint smaller
        (option, weight_bytes(path, model, kind, rounded))
        for option, kind, rounded in (
            ("dtype='bfloat16'", torch.bfloat16, quantization),
            ("quantization='int8'", dtype, "int8"),
            ("quantization='w4'", dtype, "w4"),
        )
        if model.quantization is None
    ]
    smaller = [(option, size) for option, size in options if size < needed]
    fitting = [f"{option} ({format_bytes(size)})" for option, size in smaller if size <= free]
    if fitting:
        advice = f"what fits is {' or '.join(fitting)}"
    elif smaller:
        option, size = min(smaller, key=lambda one: one[1])
        advice = f"even {option} needs {format_bytes(size)}: end what else uses the GPU, or take a smaller model"
    else:
        advice = "end what else uses the GPU, or take a smaller model"
    raise ValueError(
        f"model: its weights need {format_bytes(needed)} in {name_of(dtype, quantization)}, but of the "
        f"{format_bytes(total)} of {device} {format_bytes(free)} are free; {advice}"
    )


def within_memory(work: Callable[[], T], error: Callable[[], Exception]) -> T:
    """Do the work; where the GPU's memory does not suffice for it, raise this error in place of torch's."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # its traceback holds the tensors of what failed, so it has to be gone first
    torch.cuda.empty_cache()
    raise error()


def _step_does_not_fit(num_tokens: int, num_requests: int, weights: int, device: torch.device) -> ValueError:
    return ValueError(
        f"max_num_batched_tokens, max_num_seqs: a step of {num_tokens} tokens and {num_requests} requests does not fit "
        f"on {device} beside {format_bytes(weights)} of weights; lower them, or round the weights (quantization)"
    )


def name_of(dtype: torch.dtype, quantization: str | None) -> str:
    """How the weights are held, for people."""
    return quantization if quantization in ("int8", "w4") else str(dtype).removeprefix("torch.")


def format_bytes(count: float) -> str:
    """Three digits and a unit."""
    sign, count = ("-", -count) if count < 0 else ("", count)
    for unit in ("B", "KiB", "MiB"):
        if count < 999.5:  # more would be shown as 1e+03
            return f"{sign}{count:.3g} {unit}"
        count /= 1024
    return f"{sign}{count:.3g} GiB"
