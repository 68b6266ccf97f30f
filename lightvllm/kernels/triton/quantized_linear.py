"""Products with quantized weights on a GPU.

Reference twin: lightvllm/kernels/reference.py:quantized_linear; test: tests/kernels/gpu/test_triton_quantized.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lightvllm.kernels.triton.quantized_weights import TILE, excess, widen_bytes, widen_halves


@triton.jit
def _centred(values, zeros, codebook, at, MIDDLE: tl.constexpr, SHIFT: tl.constexpr, EXCESS: tl.constexpr):
    """Widened values, [OUTPUTS, DEPTH], less what means zero: whole numbers below 256, which all types hold.

    zeros: `at` that place; or none: MIDDLE. Values are SHIFT more than they were.
    """
    TYPE: tl.constexpr = values.dtype
    if codebook is not None:
        values = tl.load(codebook + (values.to(tl.int32) - EXCESS)).to(TYPE)
    if zeros is not None:
        return values - (tl.load(zeros + at).to(tl.int32) + SHIFT).to(TYPE)
    elif MIDDLE + SHIFT == 0:
        return values
    else:
        return values - tl.full([1, 1], MIDDLE + SHIFT, TYPE)


@triton.jit
def _add_product(
    total, values, x, scales, zeros, codebook, output, row, start, inputs, outputs, rows, x_row, group_size,
    MIDDLE: tl.constexpr, SHIFT: tl.constexpr, EXCESS: tl.constexpr, GROUPS: tl.constexpr, EVEN: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """total, [OUTPUTS, ROWS], and the product of a tile of values with the inputs from `start` on."""
    k = start + tl.arange(0, DEPTH)
    is_row = row[None, :] < rows
    x = tl.load(x + row[None, :] * x_row + k[:, None], is_row if EVEN else is_row & (k[:, None] < inputs), 0)
    if GROUPS == "narrow":
        at = tl.minimum(k, inputs - 1)[None, :] // group_size * outputs + output[:, None]
        weight = _centred(values, zeros, codebook, at, MIDDLE, SHIFT, EXCESS)
        weight = (weight.to(tl.float32) * tl.load(scales + at)).to(x.dtype)
        return tl.dot(weight, x, total, input_precision="ieee")
    elif GROUPS == "one":  # its scales come at the end
        weight = _centred(values, zeros, codebook, output[:, None], MIDDLE, SHIFT, EXCESS)
        return tl.dot(weight, x, total, input_precision="ieee")
    else:
        at = tl.minimum(start, inputs - 1) // group_size * outputs + output
        weight = _centred(values, zeros, codebook, at[:, None], MIDDLE, SHIFT, EXCESS)
        return total + tl.dot(weight, x, input_precision="ieee") * tl.load(scales + at)[:, None]


@triton.jit
def _quantized_linear(
    x, packed, scales, zeros, codebook, bias, out, rows, inputs, outputs, packed_size, x_row, group_size, part_size,
    BITS: tl.constexpr, MIDDLE: tl.constexpr, SHIFT: tl.constexpr, EXCESS: tl.constexpr, GROUPS: tl.constexpr,
    EVEN: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of the product, [OUTPUTS, ROWS], over a part of the inputs.

    The weight is the first factor, which matrix units take from registers: it need not go through shared memory again.
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(2)
    there = tl.minimum(output, outputs - 1)
    tiles = packed + there.to(tl.int64)[:, None] * packed_size + tl.arange(0, DEPTH)[None, :]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(part * part_size, tl.minimum((part + 1) * part_size, packed_size), DEPTH):
        values = tl.load(tiles + start)
        if BITS == 8:
            total = _add_product(
                total, widen_bytes(values, TYPE, EXCESS), x, scales, zeros, codebook, there, row, start,
                inputs, outputs, rows, x_row, group_size, MIDDLE, SHIFT, EXCESS, GROUPS, EVEN, DEPTH,
            )  # fmt: skip
        else:
            low, high = widen_halves(values, TYPE, EXCESS)
            total = _add_product(
                total, low, x, scales, zeros, codebook, there, row, start,
                inputs, outputs, rows, x_row, group_size, MIDDLE, SHIFT, EXCESS, GROUPS, EVEN, DEPTH,
            )  # fmt: skip
            total = _add_product(
                total, high, x, scales, zeros, codebook, there, row, packed_size + start,
                inputs, outputs, rows, x_row, group_size, MIDDLE, SHIFT, EXCESS, GROUPS, EVEN, DEPTH,
            )  # fmt: skip
    if GROUPS == "one":
        total *= tl.load(scales + there)[:, None]
    if bias is not None:
        total += tl.load(bias + there).to(tl.float32)[:, None]
    to = out + (part * rows + row[None, :]).to(tl.int64) * outputs + output[:, None]
    tl.store(to, total.to(out.dtype.element_ty), (row[None, :] < rows) & (output[:, None] < outputs))


@triton.jit
def _sum_parts(parts, bias, out, count, outputs, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the products over each part of the inputs, in their order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * count + i, mask, 0)
    if bias is not None:
        total += tl.load(bias + i % outputs, mask, 0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask)


@triton.jit
def _widen_weight(
    packed, scales, zeros, codebook, out, inputs, outputs, packed_size, group_size,
    BITS: tl.constexpr, MIDDLE: tl.constexpr, SHIFT: tl.constexpr, EXCESS: tl.constexpr, OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """The weight itself, [outputs, inputs]."""
    TYPE: tl.constexpr = out.dtype.element_ty
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    i = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)[None, :]
    there = tl.minimum(output, outputs - 1)
    values = tl.load(packed + there.to(tl.int64) * packed_size + i)
    for half in tl.static_range(8 // BITS):
        if BITS == 8:
            wide = widen_bytes(values, TYPE, EXCESS)
        else:
            wide = widen_halves(values, TYPE, EXCESS)[half]
        k = half * packed_size + i
        at = tl.minimum(k, inputs - 1) // group_size * outputs + there
        weight = _centred(wide, zeros, codebook, at, MIDDLE, SHIFT, EXCESS).to(tl.float32) * tl.load(scales + at)
        tl.store(out + output.to(tl.int64) * inputs + k, weight.to(TYPE), (output < outputs) & (k < inputs))


class Tiles(NamedTuple):
    """How a product is cut: a program's outputs, rows and inputs at a time, its warps, stages of its loads, and into
    how many parts the inputs are."""

    outputs: int
    rows: int
    depth: int
    warps: int
    stages: int
    parts: int


# From so many rows on it is faster to write the weight out and to multiply with that; in float32, for which there are no
# matrix units, when the weight would be read more than once.
_MANY_ROWS = 512
_FEW_ROWS = 16
_PROGRAMS = 256


def choose_tiles(rows: int, outputs: int, packed_size: int, dtype: torch.dtype) -> Tiles:
    """For so many rows and outputs, and a row of the packed weight of so many bytes."""
    if rows <= _FEW_ROWS:
        parts = max(1, min(_PROGRAMS * 16 // outputs, packed_size // 512))
        return Tiles(16, 16, TILE, 1, 5, parts) if dtype.itemsize == 2 else Tiles(16, 16, 32, 1, 3, parts)
    row_tile = min(triton.next_power_of_2(rows), 64)
    programs = triton.cdiv(rows, row_tile) * triton.cdiv(outputs, 64)
    return Tiles(64, row_tile, TILE, 4, 4, max(1, min(_PROGRAMS // programs, packed_size // 512)))


class _Layout(NamedTuple):
    """What a weight's values are."""

    bits: int
    middle: int
    shift: int
    excess: int


def _layout(bits: int, has_codebook: bool, dtype: torch.dtype) -> _Layout:
    if bits == 8:
        return _Layout(8, 128, -128, excess(dtype))
    if has_codebook:
        return _Layout(4, 128, 0, excess(dtype))
    return _Layout(4, 8, excess(dtype), excess(dtype))


def quantized_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    codebook: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    outputs: int,
) -> Tensor:
    """y = x W^T + b with W = scales (values - zeros), and x as it is, not rounded: matrix units take 16 bits as fast as
    a weight of 8 or 4 can be read, and it is more exact than the reference, which rounds x to 8 bits.

    Few rows: the integers of the weight are multiplied, and their sums scaled, in float32. Many rows: the weight is
    rounded to the type of `x`, and PyTorch multiplies.

    Args:
        x: [num_tokens, inputs] in float32, bfloat16 or float16; rows may lie apart.
        packed, scales, zeros: as `pack_quantized` and `pack_groups` make them.
        codebook, bias, bits, group_size, outputs: see `lightvllm.kernels.reference.quantized_linear`.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    group_size = group_size if len(scales) > 1 else x.shape[1]
    if len(x) >= (_MANY_ROWS if x.dtype.itemsize == 2 else _FEW_ROWS + 1):
        return F.linear(x, widened(packed, scales, zeros, codebook, bits, group_size, x.shape[1], x.dtype), bias)
    tiles = choose_tiles(len(x), outputs, packed.shape[1], x.dtype)
    return multiplied(x, packed, scales, zeros, codebook, bias, bits, group_size, tiles)


def multiplied(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    codebook: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    tiles: Tiles,
) -> Tensor:
    """The product in one pass over the packed weight."""
    (rows, inputs), (outputs, packed_size) = x.shape, packed.shape
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    groups, depth = "one", tiles.depth
    if len(scales) > 1:
        depth = max((size for size in (32, 64, TILE) if group_size % size == 0 and size <= depth), default=0)
        groups, depth = ("wide", depth) if depth else ("narrow", 32)
    part_size = triton.cdiv(triton.cdiv(packed_size, depth), tiles.parts) * depth
    parts = triton.cdiv(packed_size, part_size)
    partial = out if parts == 1 else torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, tiles.rows), triton.cdiv(outputs, tiles.outputs), parts)
    _quantized_linear[grid](
        x, packed, scales, zeros, codebook, bias if parts == 1 else None, partial,
        rows, inputs, outputs, packed_size, x.stride(0), group_size, part_size,
        *_layout(bits, codebook is not None, x.dtype), groups, inputs * bits == packed_size * 8,
        tiles.outputs, tiles.rows, depth, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if parts > 1:
        _sum_parts[(triton.cdiv(out.numel(), 512),)](partial, bias, out, out.numel(), outputs, parts, 512, num_warps=4)
    return out


def widened(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    codebook: Tensor | None,
    bits: int,
    group_size: int,
    inputs: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight itself in a float type, [outputs, inputs]."""
    outputs, packed_size = packed.shape
    out = torch.empty(outputs, inputs, dtype=dtype, device=packed.device)
    _widen_weight[(triton.cdiv(outputs, 32), packed_size // TILE)](
        packed, scales, zeros, codebook, out, inputs, outputs, packed_size, group_size,
        *_layout(bits, codebook is not None, dtype), 32, TILE, num_warps=4,
    )  # fmt: skip
    return out
