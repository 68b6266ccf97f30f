"""How attention kernels read the paged cache: where a request's keys and values lie, and a tile of them.

Reference twins: indexing by a block table in `lightvllm.kernels.reference.paged_attention`, and `widen_heads`; tests:
tests/kernels/gpu/test_paged_decode.py, test_paged_prefill.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
def _load(cache, slots, is_there, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """[tokens, PADDED] of the tokens at `slots`: zeros past SIZE and where not `is_there` (None: all are)."""
    columns = tl.arange(0, PADDED)
    pointers = cache + slots[:, None] + columns[None, :]
    if is_there is None and SIZE == PADDED:
        loaded = tl.load(pointers)
    else:
        is_loaded = columns[None, :] < SIZE
        if is_there is not None:
            is_loaded &= is_there[:, None]
        loaded = tl.load(pointers, mask=is_loaded, other=0)
    return loaded


@triton.jit
def _signed_byte(words, WHICH: tl.constexpr):
    # A float32's last bits count ones where its first say 2^23, and no conversion is as fast as this.
    bits = (((words >> (8 * WHICH)) & 255) ^ 128) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (8388608.0 + 128.0)


@triton.jit
def load_heads(cache, slots, is_there, dtype: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """A head of the tokens at `slots`, [tokens, DIMS]; of an int8 cache without its scales."""
    if cache.dtype.element_ty == tl.int32:
        words = _load(cache, slots, is_there, HEAD_DIM // 4, DIMS // 4)
        even = tl.join(_signed_byte(words, 0), _signed_byte(words, 2))
        odd = tl.join(_signed_byte(words, 1), _signed_byte(words, 3))
        heads = tl.join(even, odd).to(dtype).reshape(slots.shape[0], DIMS)
    else:
        heads = _load(cache, slots, is_there, HEAD_DIM, DIMS).to(dtype)
    return heads


@triton.jit
def load_scales(cache, slots, is_there, HEAD_DIM: tl.constexpr):
    """What the numbers of an int8 cache's heads are to be multiplied by, [tokens]; zero where not `is_there`."""
    if is_there is None:
        words = tl.load(cache + slots + HEAD_DIM // 4)
    else:
        words = tl.load(cache + slots + HEAD_DIM // 4, mask=is_there, other=0)
    return words.to(tl.float32, bitcast=True)


def as_words(cache: Tensor) -> Tensor:
    """An int8 cache as int32, so that a thread loads four of its numbers, or a scale; any other as it is."""
    return cache.view(torch.int32) if cache.dtype == torch.int8 else cache


def cache_constants(key_cache: Tensor, value_cache: Tensor, head_dim: int) -> dict[str, Any]:
    """What a kernel is compiled for, of caches [num_blocks, block_size, num_kv_heads, head_dim] `as_words`.

    Strides are constants for the sake of what divides them: it decides how wide the loads are.
    """
    assert key_cache.stride() == value_cache.stride()
    assert key_cache.stride(3) == 1
    assert key_cache.shape[3] == (head_dim // 4 + 1 if key_cache.dtype == torch.int32 else head_dim)
    block_stride, slot_stride, head_stride, _ = key_cache.stride()
    return {
        "BLOCK_SIZE": key_cache.shape[1],
        "BLOCK_STRIDE": block_stride,
        "SLOT_STRIDE": slot_stride,
        "HEAD_STRIDE": head_stride,
        "HEAD_DIM": head_dim,
        "DIMS": max(16, triton.next_power_of_2(head_dim)),
        "IS_INT8": key_cache.dtype == torch.int32,
    }
