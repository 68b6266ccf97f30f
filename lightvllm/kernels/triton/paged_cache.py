"""How attention kernels read the paged cache: where a request's keys and values lie, and a tile of them.

Reference twins: indexing by a block table in `lightvllm.kernels.reference.paged_attention`, and `widen_heads`; tests:
tests/kernels/gpu/test_paged_decode.py, test_paged_prefill.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightvllm.kernels.reference import SCALE_BYTES

# exp2 is one instruction: scores are kept in units of ln 2.
LOG2_E = 1.4426950408889634
# The softmax's peak before any key: below every score, and finite, so that no difference is a NaN.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def slots_of(
    table, positions, is_there, BLOCK_SIZE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr
):
    """Where in the cache the request with the block table `table` has these positions' tokens."""
    blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_there)
    return blocks.to(tl.int64) * BLOCK_STRIDE + positions % BLOCK_SIZE * SLOT_STRIDE


@triton.jit
def load_heads(cache, slots, is_there, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """A head of the tokens at `slots`, [tokens, DIMS]: zeros past HEAD_DIM and where not `is_there` (None: all are)."""
    dims = tl.arange(0, DIMS)
    pointers = cache + slots[:, None] + dims[None, :]
    if is_there is None and HEAD_DIM == DIMS:
        heads = tl.load(pointers)
    else:
        is_loaded = dims[None, :] < HEAD_DIM
        if is_there is not None:
            is_loaded &= is_there[:, None]
        heads = tl.load(pointers, mask=is_loaded, other=0)
    return heads


def head_scales(cache: Tensor) -> Tensor:
    """An int8 cache as the float32 numbers of which each head's last is its scale; any other as it is."""
    return cache.view(torch.float32) if cache.dtype == torch.int8 else cache


def cache_constants(key_cache: Tensor, value_cache: Tensor, head_dim: int) -> dict[str, int]:
    """What a kernel is compiled for, of a cache [num_blocks, block_size, num_kv_heads, head_dim].

    Strides are constants for the sake of what divides them: it decides how wide the loads are.
    """
    assert key_cache.stride() == value_cache.stride()
    assert key_cache.shape[3] - (SCALE_BYTES if key_cache.dtype == torch.int8 else 0) == head_dim
    block_stride, slot_stride, head_stride, one = key_cache.stride()
    assert one == 1
    return {
        "BLOCK_SIZE": key_cache.shape[1],
        "BLOCK_STRIDE": block_stride,
        "SLOT_STRIDE": slot_stride,
        "HEAD_STRIDE": head_stride,
        "HEAD_DIM": head_dim,
        "DIMS": max(16, triton.next_power_of_2(head_dim)),
        "IS_INT8": key_cache.dtype == torch.int8,
    }
