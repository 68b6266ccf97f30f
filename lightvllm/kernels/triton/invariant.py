"""The plain product, and the logarithm of softmax, whose rows do not depend on how many others stand beside them.

Reference twins: torch.nn.functional.linear and log_softmax; test: tests/kernels/gpu/test_triton_invariant.py.

PyTorch's products choose how to cut their sums by the number of rows, so that a request's numbers change in their last
bits with its company. Here each sum is made in one order: inputs are taken in parts of 512, a part's products are added
up by the matrix units from its first input to its last, and the parts in their order. Only how much of it one program
does changes: of few rows a part of the sums, so that enough programs read the weight; of many rows whole sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 512
_DEPTH = 64
_FEW_ROWS = 64


@triton.jit
def _linear(
    x, weight, bias, out, rows, inputs, outputs, x_row, weight_row, parts_each,
    PART: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The sum of some parts of a tile of the product, [OUTPUTS, ROWS]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = tl.program_id(2) * parts_each
    i = tl.arange(0, DEPTH)
    is_row = row[None, :] < rows
    is_output = output[:, None] < outputs
    numbers = x + row.to(tl.int64)[None, :] * x_row + i[:, None]
    values = weight + output.to(tl.int64)[:, None] * weight_row + i[None, :]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for part in range(first * PART, tl.minimum((first + parts_each) * PART, inputs), PART):
        part_sum = tl.zeros([OUTPUTS, ROWS], tl.float32)
        for start in range(part, part + PART, DEPTH):
            w = tl.load(values + start, is_output if EVEN else is_output & (start + i[None, :] < inputs), 0)
            n = tl.load(numbers + start, is_row if EVEN else is_row & (start + i[:, None] < inputs), 0)
            part_sum = tl.dot(w, n, part_sum, input_precision="ieee")
        total += part_sum
    if bias is not None:
        total += tl.load(bias + output, output < outputs, 0).to(tl.float32)[:, None]
    to = out + (tl.program_id(2) * rows + row[None, :]).to(tl.int64) * outputs + output[:, None]
    tl.store(to, total.to(out.dtype.element_ty), is_row & is_output)


@triton.jit
def _sum_parts(parts, bias, out, count, outputs, num_parts, BLOCK: tl.constexpr):
    """The sums of all parts, in their order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(parts + part * count + i, mask, 0)
    if bias is not None:
        total += tl.load(bias + i % outputs, mask, 0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b; bitwise the same for a row whatever rows stand beside it.

    x: [num_tokens, inputs] in float32, bfloat16 or float16; weight: [outputs, inputs]; bias: [outputs]
    -> [num_tokens, outputs]
    """
    x, weight = (part if part.stride(1) == 1 else part.contiguous() for part in (x, weight))
    (rows, inputs), outputs = x.shape, len(weight)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    parts = triton.cdiv(inputs, _PART)
    split = parts > 1 and rows <= _FEW_ROWS
    tile = (max(16, triton.next_power_of_2(rows)), 64, 4, 5) if rows <= _FEW_ROWS else (128, 128, 8, 3)
    if x.dtype == torch.float32:
        tile = (min(tile[0], 32), 64, 4, 2)
    row_tile, output_tile, warps, stages = tile
    sums = torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device) if split else out
    grid = (triton.cdiv(rows, row_tile), triton.cdiv(outputs, output_tile), parts if split else 1)
    _linear[grid](
        x, weight, None if split else bias, sums, rows, inputs, outputs, x.stride(0), weight.stride(0),
        1 if split else parts, _PART, _DEPTH, row_tile, output_tile, inputs % _PART == 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if split:
        _sum_parts[(triton.cdiv(out.numel(), 512),)](sums, bias, out, out.numel(), outputs, parts, 512)
    return out


@triton.jit
def _log_softmax(x, out, size, x_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        numbers = tl.load(x + i, i < size, float("-inf")).to(tl.float32)
        peaks = tl.maximum(peaks, numbers, propagate_nan=tl.PropagateNan.ALL)
    peak = tl.max(tl.where(peaks == peaks, peaks, float("inf")), axis=0)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.exp(tl.load(x + i, i < size, float("-inf")).to(tl.float32) - peak)
    logarithm = tl.log(tl.sum(sums, axis=0))
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        numbers = tl.load(x + i, i < size, 0).to(tl.float32)
        tl.store(out + row * size + i, (numbers - peak) - logarithm, i < size)


def log_softmax(x: Tensor) -> Tensor:
    """The logarithms of each row's softmax, which PyTorch adds up in an order that depends on where a row lies.

    x: [num_rows, size] of any float type -> the same shape, float32
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if out.numel():
        _log_softmax[(len(x),)](x, out, x.shape[1], x.stride(0), 4096, num_warps=8)
    return out
