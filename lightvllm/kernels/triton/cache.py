"""The write into the KV cache on a GPU.

Reference twin: lightvllm/kernels/reference.py:write_kv; test: tests/kernels/gpu/test_triton_elementwise.py.
"""

import triton
import triton.language as tl
from torch import Tensor

_NAN_BITS = tl.constexpr(0x7FC00000)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
# Added to a float32 below 2^22 and taken away again it leaves the nearest integer, of two equally near the even one.
_ROUNDER = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _store_rounded(x, to, head_dim, mask, i):
    """Heads as `reference.round_heads` makes them. The scale's bytes are stored one by one: heads need not be aligned."""
    x = x.to(tl.float32)
    peak = tl.max(tl.abs(tl.where(x == x, x, float("inf"))), axis=1, keep_dims=True)
    scale = tl.div_rn(peak, tl.full(peak.shape, 127.0, tl.float32))
    is_finite = scale < float("inf")
    is_normal = is_finite & (scale >= _SMALLEST_NORMAL)
    steps = tl.div_rn(tl.where(is_normal, x, 0.0), tl.broadcast_to(tl.where(is_normal, scale, 1.0), x.shape))
    tl.store(to + i, ((steps + _ROUNDER) - _ROUNDER).to(tl.int8), mask & (i < head_dim))
    bits = tl.where(is_finite, tl.where(is_normal, scale, 0.0).to(tl.int32, bitcast=True), _NAN_BITS)
    byte = tl.arange(0, 4)[None, :]
    tl.store(to + head_dim + byte, (bits >> (byte * 8)).to(tl.int8), mask)


@triton.jit
def _write_kv(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    key_token,
    key_head,
    value_token,
    value_head,
    cache_slot,
    cache_head,
    num_heads,
    head_dim,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, SIZE)[None, :]
    mask = head < num_heads
    inside = mask & (i < head_dim)
    to = tl.load(slots + token) * cache_slot + head * cache_head
    keys = tl.load(key + token * key_token + head * key_head + i, inside, 0)
    values = tl.load(value + token * value_token + head * value_head + i, inside, 0)
    if key_cache.dtype.element_ty == tl.int8:
        _store_rounded(keys, key_cache + to, head_dim, mask, i)
        _store_rounded(values, value_cache + to, head_dim, mask, i)
    else:
        tl.store(key_cache + to + i, keys.to(key_cache.dtype.element_ty), inside)
        tl.store(value_cache + to + i, values.to(value_cache.dtype.element_ty), inside)


def write_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `lightvllm.kernels.reference.write_kv`; heads of `key` and `value` may lie apart."""
    tokens, num_heads, head_dim = key.shape
    assert key.stride(2) == value.stride(2) == 1
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    if tokens:
        _write_kv[(tokens,)](
            key, value, key_cache, value_cache, slots, *key.stride()[:2], *value.stride()[:2],
            key_cache.stride(1), key_cache.stride(2), num_heads, head_dim,
            triton.next_power_of_2(num_heads), triton.next_power_of_2(head_dim), num_warps=4,
        )  # fmt: skip
