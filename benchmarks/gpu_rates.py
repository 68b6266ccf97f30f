"""What measurements on a GPU share: its rates, the time of a call, and how both are shown. Needs torch alone.

Times are of graphs in which calls follow each other as in a step of the engine, with inputs that no cache holds. A
share is what the fewest bytes and operations of a call would take at the rates of the same run, over what it took.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHES = 4  # inputs together are so many times the size of the L2
MOST_SETS, MOST_CALLS = 64, 512
REPLAY_SECONDS = 1e-3  # of a graph, so that its start is nothing beside it
REPEATS = 9
COPY_BYTES, MATRIX_SIZE = 2 << 30, 8192

Inputs = tuple[Any, ...]


def require_gpu() -> None:
    """End the program in words where there is nothing to measure."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is here: this measures kernels on a GPU")


def describe_gpu() -> dict[str, Any]:
    """What the figures are of."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


@dataclass(frozen=True)
class Rates:
    """What this GPU does at its best.

    Attributes:
        copy: bytes a second, read and written, of a large copy.
        matrix: operations a second of a large bfloat16 product of random numbers, an addition and a multiplication two.
    """

    copy: float
    matrix: float

    @classmethod
    def measure(cls) -> "Rates":
        """Both, on the current device."""
        source = torch.randn(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda")
        pair = source, torch.empty_like(source)
        # Not in a graph: there a copy is no kernel, and has two thirds of the rate.
        copy = 2 * COPY_BYTES / seconds_of(lambda source, target: target.copy_(source), [pair], in_graph=False)
        del source, pair
        sizes = 2, MATRIX_SIZE, MATRIX_SIZE
        factors = [tuple(torch.randn(sizes, dtype=torch.bfloat16, device="cuda")) for _ in range(2)]
        matrix = 2 * MATRIX_SIZE**3 / seconds_of(torch.matmul, factors)
        return cls(copy, matrix)

    def least_seconds(self, num_bytes: float, flops: float) -> float:
        """What so much takes at these rates, moving and computing at the same time."""
        return max(num_bytes / self.copy, flops / self.matrix)

    def limit(self, num_bytes: float, flops: float) -> str:
        """Which of the two it is that takes longer."""
        return "copy" if num_bytes / self.copy >= flops / self.matrix else "matrix"

    def __str__(self) -> str:
        return f"copy {self.copy / 1e12:.2f} TB/s read and written, bfloat16 products {self.matrix / 1e12:.0f} TFLOP/s"


def num_sets(num_bytes: float, l2_bytes: int) -> int:
    """How many inputs of this size no cache holds."""
    return max(1, min(MOST_SETS, -int(-CACHES * l2_bytes // max(num_bytes, 1))))


def seconds_of(call: Callable, sets: Sequence[Inputs], in_graph: bool = True) -> float:
    """The median time of a call, each with the next of the inputs.

    Args:
        in_graph: False for calls that wait for the GPU, and cannot be captured.
    """
    for inputs in sets[:2]:
        call(*inputs)  # compiles and tunes, allocates what it keeps
    torch.cuda.synchronize()
    if not in_graph:
        return _seconds(lambda: [call(*inputs) for inputs in sets], REPEATS) / len(sets)
    graph = _capture(call, sets, 1)
    once = _seconds(graph.replay, 3)
    rounds = min(int(REPLAY_SECONDS / once) + 1, max(1, MOST_CALLS // len(sets)))
    if rounds > 1:
        graph = _capture(call, sets, rounds)
    return _seconds(graph.replay, REPEATS) / (rounds * len(sets))


def _capture(call: Callable, sets: Sequence[Inputs], rounds: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            # Outputs have places of their own, or writing them would be free: the cache would hold the one.
            kept = [call(*inputs) for inputs in sets]
    del kept
    return graph


def _seconds(run: Callable, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far off the outputs are that are furthest off: the norm of the difference over that of what is expected.

    Of whole numbers: the share that is another. What is no number in one alone is infinitely far off.
    """
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if not theirs.is_floating_point():
            worst = max(worst, (ours != theirs).float().mean().item())
            continue
        distance = (ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-30)
        worst = max(worst, distance.item() if distance.isfinite() else float("inf"))
    return worst


@dataclass(frozen=True)
class Case:
    """One way to compute one kernel at one size.

    Attributes:
        make: new inputs of a call, on the default device.
        expected: what the call's outputs must be close to, of the same inputs; None where they are not compared.
        in_graph: False for what waits for the GPU within.
        changes_inputs: its effect is there, beside what it returns.
    """

    kernel: str
    shape: str
    way: str
    call: Callable
    make: Callable[[], Inputs]
    bytes: float
    flops: float = 0.0
    target: float | None = None
    expected: Callable | None = None
    in_graph: bool = True
    changes_inputs: bool = False


@dataclass(frozen=True)
class Missing:
    """A way that is not there."""

    kernel: str
    way: str
    reason: str


def random(*size: int, dtype: torch.dtype = torch.bfloat16, std: float = 1.0) -> Tensor:
    """Normal numbers on the default device."""
    return torch.randn(size, dtype=dtype) * std


def find(module: str, function: str) -> Callable | str:
    """A function of the package, or why it is not there."""
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        return str(error)


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        way: who computes it: triton, cuda, PyTorch's own.
        bytes, flops: the fewest that it can do with.
        limit: the rate that bounds it, copy or matrix.
        share: of that, what was reached.
        target: the share aimed at; None where there is no aim.
        error: see `difference`; None where nothing was compared.
        of_equal: the time that PyTorch takes to negate a tensor, which moves as many bytes, over this one's: the rate
            of a large copy is not there for a few megabytes. None where there is no target.
    """

    kernel: str
    shape: str
    way: str
    seconds: float
    bytes: float
    flops: float
    limit: str
    share: float
    target: float | None
    error: float | None
    of_equal: float | None = None

    def __str__(self) -> str:
        rate = self.flops / 1e12 if self.limit == "matrix" else self.bytes / 1e9
        unit = "TFLOP/s" if self.limit == "matrix" else "GB/s"
        aim = "" if self.target is None else f"{self.target:>5.0%} {'met' if self.share >= self.target else 'MISSED'}"
        equal = "" if self.of_equal is None else f"{self.of_equal:.0%} of an equal one"
        error = "" if self.error is None else f"{self.error:.1e}"
        return (
            f"{self.shape:34} {self.way:18} {self.seconds * 1e6:>10.1f} us {rate / self.seconds:>7.0f} {unit:7} "
            f"{self.share:>4.0%} of {self.limit:6} {aim:12} {error:8} {equal}"
        ).rstrip()


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write figures down, dataclasses as their fields."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, default=asdict) + "\n", encoding="utf-8")
