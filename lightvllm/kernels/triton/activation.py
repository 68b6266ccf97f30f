"""The activation of gated feed-forward blocks on a GPU.

Reference twin: lightvllm/kernels/reference.py:silu_and_mul; test: tests/kernels/gpu/test_triton_elementwise.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _silu_and_mul(x, out, size, x_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    gate = tl.load(x + row * x_row + i, mask, 0).to(tl.float32)
    up = tl.load(x + row * x_row + size + i, mask, 0).to(tl.float32)
    tl.store(out + row * size + i, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `lightvllm.kernels.reference.silu_and_mul`.

    x: [num_tokens, 2 * size], rows may lie apart -> [num_tokens, size]
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    block = min(_BLOCK, triton.next_power_of_2(size))
    if out.numel():
        _silu_and_mul[(rows, triton.cdiv(size, block))](x, out, size, x.stride(0), block, num_warps=4)
    return out
