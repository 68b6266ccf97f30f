"""Every kernel of the GPU at the sizes of real models, as a share of what the GPU can do: its copy and product rates.

    python benchmarks/gpu_kernels.py [--only NAME] [--json FILE]

A minute on one GPU that does nothing else. Both rates are measured first, in the same run. After the target comes the
distance from the reference on the same inputs, the norm of the difference over the norm of what is right; then what a
plain copy of as many bytes takes, as a share: a few megabytes take nobody as little time as their share of gigabytes.
"""

import argparse
import gc
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from gpu_cases import KERNELS
from gpu_rates import (
    Case,
    Inputs,
    Missing,
    Rates,
    Row,
    describe_gpu,
    difference,
    num_sets,
    random,
    require_gpu,
    seconds_of,
    write_json,
)
from torch import Tensor

from lightvllm.kernels import gpu

LOST = "CUDA error"  # after one the process can compute nothing more


def measure(case: Case, rates: Rates, l2_bytes: int) -> Row:
    """Compare, then time.

    Raises:
        RuntimeError: the kernel does not run.
    """
    with torch.device("cuda"):
        sets = [case.make() for _ in range(num_sets(case.bytes, l2_bytes))]
        error = None if case.expected is None else compare(case, sets[0])
    seconds = seconds_of(case.call, sets, case.in_graph)
    share = rates.least_seconds(case.bytes, case.flops) / seconds
    limit = rates.limit(case.bytes, case.flops)
    equal = None if case.target is None or limit != "copy" else equal_seconds(case.bytes, len(sets)) / seconds
    names = case.kernel, case.shape, case.way
    return Row(*names, seconds, case.bytes, case.flops, limit, share, case.target, error, equal)


@cache
def equal_seconds(num_bytes: float, sets: int) -> float:
    """What PyTorch takes to negate a tensor, when so many bytes are read and written."""
    with torch.device("cuda"):
        tensors = [(random(int(num_bytes) // 4),) for _ in range(sets)]
    return seconds_of(torch.neg, tensors)


def compare(case: Case, inputs: Inputs) -> float:
    """How far the call's outputs, and the inputs that it changes, are from what is expected."""
    assert case.expected is not None
    effects = []
    for call in (case.call, case.expected):
        changes = case.changes_inputs
        own = tuple(x.clone() if changes and isinstance(x, Tensor) else x for x in inputs)
        result = call(*own)
        outputs = [x for x in (result if isinstance(result, Sequence) else (result,)) if isinstance(x, Tensor)]
        effects.append([*outputs, *(x for x in own if changes and isinstance(x, Tensor))])
    return difference(*effects)


def measure_kernel(name: str, rates: Rates, l2_bytes: int) -> tuple[list[Row], list[Missing]]:
    """All cases of a kernel, shown as they come."""
    rows, missing = [], []
    start = time.perf_counter()
    print(f"\n{name}", flush=True)
    for case in KERNELS[name]():
        if isinstance(case, Missing):
            missing.append(case)
            continue
        try:
            rows.append(measure(case, rates, l2_bytes))
            print(f"  {rows[-1]}", flush=True)
        except Exception as error:  # of any kind: the others are still wanted
            if LOST in str(error):
                raise
            reason = f"{case.shape}: {type(error).__name__}: {str(error).strip().splitlines()[0]:.100}"
            missing.append(Missing(name, case.way, reason))
        gc.collect()
        torch.cuda.empty_cache()
    for absent in missing:
        print(f"  not there: {absent.way}: {absent.reason}", flush=True)
    print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    return rows, missing


def summary(rows: Iterable[Row]) -> list[str]:
    """What was aimed at: a line for each kernel, of the best of its ways at each size that has a target."""
    rows = list(rows)
    lines = []
    for name in dict.fromkeys(row.kernel for row in rows if row.target is not None):
        best: dict[str, Row] = {}
        for row in rows:
            if row.kernel == name and row.target is not None:
                best[row.shape] = max(best.get(row.shape, row), row, key=lambda row: row.share)
        met = sum(row.share >= row.target for row in best.values() if row.target is not None)
        shown = ", ".join(map(_in_short, best.values()))
        lines.append(f"{name:18} {met} of {len(best)} met: {shown}")
    ours = {row.shape: row.seconds for row in rows if (row.kernel, row.way) == ("prefill_attention", "triton")}
    theirs = {row.shape: row.seconds for row in rows if (row.kernel, row.way) == ("prefill_attention", "torch flash")}
    if both := ours.keys() & theirs.keys():
        ratios = ", ".join(f"{shape} {theirs[shape] / ours[shape]:.2f}x" for shape in ours if shape in both)
        lines.append(f"prefill_attention against torch's flash: {ratios}")
    return lines


def _in_short(row: Row) -> str:
    equal = "" if row.of_equal is None else f", {row.of_equal:.0%} of an equal copy"
    return f"{row.shape} {row.share:.0%} ({row.way}{equal})"


@torch.inference_mode()
def main() -> None:
    """Print a table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=KERNELS, metavar="NAME", help=", ".join(KERNELS))
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    gpu.enable()
    described = describe_gpu()
    rates = Rates.measure()
    print(f"{described['gpu']}, torch {described['torch']}: {rates}", flush=True)
    rows: list[Row] = []
    missing: list[Missing] = []
    try:
        for name in args.only or KERNELS:
            found = measure_kernel(name, rates, described["l2_bytes"])
            rows += found[0]
            missing += found[1]
    finally:  # what was measured before something broke counts
        print("\n" + "\n".join(summary(rows)), flush=True)
        write_json(args.json, described | {"rates": rates, "rows": rows, "missing": missing})


if __name__ == "__main__":
    main()
