"""The most likely token of each row of logits, on a GPU.

Reference twin: lightvllm/kernels/reference.py:most_likely; test: tests/kernels/gpu/test_triton_most_likely.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
# Programs that share the work, of many rows or of one.
_PROGRAMS = 1024
_MOST_PARTS = 128


@triton.jit
def _best_of_parts(logits, peaks, places, size, logits_row, parts, part_size, BLOCK: tl.constexpr):
    """The largest of a part of a row, and where it is. NaN counts as infinity: neither is a choice."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    end = tl.minimum((part + 1) * part_size, size)
    for start in range(part * part_size, end, BLOCK):
        i = start + lane
        x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
        is_better = (x > best) | (x != x)
        best, place = tl.where(is_better, x, best), tl.where(is_better, i, place)
    best = tl.where(best == best, best, float("inf"))
    peak = tl.max(best, axis=0)
    tl.store(peaks + row * parts + part, peak)
    tl.store(places + row * parts + part, tl.min(tl.where(best == peak, place, size), axis=0))


@triton.jit
def _best_of_row(peaks, places, out, parts, PARTS: tl.constexpr):
    row = tl.program_id(0)
    part = tl.arange(0, PARTS)
    best = tl.load(peaks + row * parts + part, part < parts, float("-inf"))
    place = tl.load(places + row * parts + part, part < parts, 2147483647)
    peak = tl.max(best, axis=0)
    is_finite = tl.abs(peak) < float("inf")
    tl.store(out + row, tl.where(is_finite, tl.min(tl.where(best == peak, place, 2147483647), axis=0), -1))


def most_likely(logits: Tensor) -> Tensor:
    """See `lightvllm.kernels.reference.most_likely`.

    logits: [num_rows, vocab_size] of any float type, rows may lie apart -> [num_rows] int64
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, size = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if not rows:
        return out
    parts = min(triton.cdiv(_PROGRAMS, rows), _MOST_PARTS, triton.cdiv(size, _BLOCK))
    part_size = triton.cdiv(triton.cdiv(size, parts), 16) * 16
    peaks = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    _best_of_parts[(rows, parts)](logits, peaks, places, size, logits.stride(0), parts, part_size, _BLOCK, num_warps=8)
    _best_of_row[(rows,)](peaks, places, out, parts, triton.next_power_of_2(parts), num_warps=1)
    return out
