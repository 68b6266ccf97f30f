"""What the machine allows, with PyTorch: memory reading, and matrix products of three number types. No options."""

import json
import time
from collections.abc import Callable
from functools import partial

import torch

BYTES = 1 << 30
SIZE = 2048
REPEATS = 7


def best_seconds(call: Callable[[], object]) -> float:
    """The least of several, after two that warm up."""
    call(), call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print one JSON object: bytes a second, and operations a second (two for a multiplication and an addition)."""
    data = torch.ones(BYTES // 4)
    limits = {"memory": BYTES / best_seconds(data.sum), "threads": torch.get_num_threads()}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(SIZE, SIZE).to(dtype), torch.randn(SIZE, SIZE).to(dtype)
        limits[name] = 2 * SIZE**3 / best_seconds(partial(torch.mm, a, b))
    a, b = (torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8) for _ in range(2))
    limits["int8"] = 2 * SIZE**3 / best_seconds(partial(torch._int_mm, a, b))
    print(json.dumps(limits))


if __name__ == "__main__":
    main()
