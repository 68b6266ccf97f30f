"""Root-mean-square norms on a GPU.

Reference twins: lightvllm/kernels/reference.py:rms_norm, add_rms_norm; test: tests/kernels/gpu/test_triton_elementwise.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program takes so many numbers at least, of several rows where rows are short.
_NUMBERS = 1024


@triton.jit
def _rms_norm(
    x,
    update,
    weight,
    total,
    out,
    rows,
    size,
    eps,
    x_token,
    x_head,
    update_row,
    heads: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, SIZE)[None, :]
    mask = (row < rows) & (i < size)
    row = row.to(tl.int64)
    values = tl.load(x + row // heads * x_token + row % heads * x_head + i, mask, 0).to(tl.float32)
    if HAS_UPDATE:
        values += tl.load(update + row * update_row + i, mask, 0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * size + i, rounded, mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1, keep_dims=True) / size + eps)
    scaled = values * scale * tl.load(weight + i, i < size, 0).to(tl.float32)
    tl.store(out + row * size + i, scaled.to(out.dtype.element_ty), mask)


def _launch(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The total, which is `x` where there is no update, and its norm."""
    x = _with_neighbours(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if update is None else torch.empty_like(out)
    update = x if update is None else _with_neighbours(update)
    size = x.shape[-1]
    rows, heads = x.numel() // max(size, 1), x.shape[1] if x.dim() == 3 else 1
    block = triton.next_power_of_2(size)
    per_program = max(1, _NUMBERS // block)
    warps = min(max(block * per_program // 512, 1), 16)
    if rows:
        _rms_norm[(triton.cdiv(rows, per_program),)](
            x, update, weight, total, out, rows, size, eps, x.stride(0), x.stride(1) if x.dim() == 3 else 0,
            update.stride(0), heads, total is not x, per_program, block, num_warps=warps,
        )  # fmt: skip
    return total, out


def _with_neighbours(x: Tensor) -> Tensor:
    """`x`, the numbers of a row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `lightvllm.kernels.reference.rms_norm`.

    x: [num_tokens, size] or [num_tokens, num_heads, size], rows may lie apart; weight: [size] -> the shape of x
    """
    return _launch(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `lightvllm.kernels.reference.add_rms_norm`.

    x, update: [num_tokens, size], rows may lie apart; weight: [size] -> twice the shape of x
    """
    return _launch(x, update, weight, eps)
