"""Matrix products of the CPU kernels, beside PyTorch's own: what batch invariance costs.

PyTorch's are oneDNN's with a weight packed for it, the fastest it has; they cut their sums by the number of rows. Rates
are medians over a set of weights that no cache holds, each product by each in turn.

    python benchmarks/products.py [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightvllm.bench.machine import describe_machine
from lightvllm.layers.linear import PackedProduct
from lightvllm.quantization.product import QuantizedProduct

OUTPUTS, INPUTS, WEIGHTS = 6144, 1024, 16
ROWS = (1, 4, 8, 32, 128, 1024)
REPEATS = 7

Product = Callable[[Tensor, None], Tensor]


def onednn(weight: Tensor, rows: int) -> Product:
    """PyTorch's product with a weight that it packs for a number of rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x, bias: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def seconds(products: Sequence[Product], x: Tensor) -> float:
    """Of one round over all products."""
    start = time.perf_counter()
    for product in products:
        product(x, None)
    return time.perf_counter() - start


def measure(rows: int, ways: dict[str, Sequence[Product]], dtype: torch.dtype) -> dict[str, float]:
    """Operations a second of each way, two for a multiplication and the addition after it."""
    x = torch.randn(rows, INPUTS).to(dtype)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, products in ways.items():
            times[name].append(seconds(products, x))
    return {name: 2 * rows * INPUTS * OUTPUTS * WEIGHTS / statistics.median(taken[1:]) for name, taken in times.items()}


@torch.inference_mode()
def main() -> None:
    """Print a table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.manual_seed(0)
    record = {}
    for dtype in (torch.bfloat16, torch.float32):
        weights = [torch.randn(OUTPUTS, INPUTS).to(dtype) for _ in range(WEIGHTS)]
        ways = {"packed": [PackedProduct(weight) for weight in weights]}
        if dtype == torch.bfloat16:
            ways |= {
                name: [QuantizedProduct.round(w, bits) for w in weights] for name, bits in (("int8", 8), ("w4", 4))
            }
        for rows in ROWS:
            other = {"oneDNN": list(map(partial(onednn, rows=max(rows, 4)), weights))}
            rates = measure(rows, ways | other, dtype)
            record[f"{dtype} {rows}"] = rates
            shown = "  ".join(f"{name} {rate / 1e9:5.0f}" for name, rate in rates.items())
            name, ratio = str(dtype).removeprefix("torch."), rates["packed"] / rates["oneDNN"]
            print(f"{name} {rows:5} rows, GFLOP/s: {shown}  packed / oneDNN {ratio:.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "operations_per_second": record}, indent=2))


if __name__ == "__main__":
    main()
