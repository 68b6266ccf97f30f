"""Rotary position embedding on a GPU, alone, and with the norms of queries and keys.

Reference twins: lightvllm/kernels/reference.py:rotary, rotary_qkv; test: tests/kernels/gpu/test_triton_elementwise.py.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Heads of one token that a program takes at most. All are of one kind: queries, keys or values.
_MOST_HEADS = 8


@triton.jit
def _rotary(
    x,
    query_weight,
    key_weight,
    cos,
    sin,
    out,
    eps,
    x_token,
    x_head,
    angle_token,
    num_rotated,
    num_queries,
    num_heads,
    head_dim,
    HAS_NORM: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    TYPE: tl.constexpr = out.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) * HEADS
    head = first_head + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    half = head_dim // 2
    mask = i < half
    at = x + token * x_token + head * x_head + i
    to = out + (token * num_heads + head) * head_dim + i
    first, second = tl.load(at, mask, 0), tl.load(at + half, mask, 0)
    if first_head < num_rotated:
        a, b = first.to(tl.float32), second.to(tl.float32)
        if HAS_NORM:
            weight = key_weight
            if first_head < num_queries:
                weight = query_weight
            squares = tl.sum(a * a, axis=1, keep_dims=True) + tl.sum(b * b, axis=1, keep_dims=True)
            scale = tl.rsqrt(squares / head_dim + eps)
            # Rounded, as the norm alone would be.
            a = (a * scale * tl.load(weight + i, mask, 0).to(tl.float32)).to(TYPE).to(tl.float32)
            b = (b * scale * tl.load(weight + half + i, mask, 0).to(tl.float32)).to(TYPE).to(tl.float32)
        angles = token * angle_token + i
        cos_a, cos_b = tl.load(cos + angles, mask, 0), tl.load(cos + angles + half, mask, 0)
        sin_a, sin_b = tl.load(sin + angles, mask, 0), tl.load(sin + angles + half, mask, 0)
        tl.store(to, (a * cos_a - b * sin_a).to(TYPE), mask)
        tl.store(to + half, (b * cos_b + a * sin_b).to(TYPE), mask)
    else:
        tl.store(to, first, mask)
        tl.store(to + half, second, mask)


def _launch(
    heads: Tensor, weights: tuple[Tensor, Tensor] | None, eps: float, cos: Tensor, sin: Tensor, counts: tuple[int, int]
) -> Tensor:
    """heads: [num_tokens, num_heads, head_dim]; counts: how many of them are rotated, and queries."""
    heads = heads if heads.stride(-1) == 1 else heads.contiguous()
    tokens, num_heads, head_dim = heads.shape
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    query_weight, key_weight = weights or (heads, heads)
    block = math.gcd(num_heads, *counts, _MOST_HEADS)
    if out.numel():
        _rotary[(tokens, num_heads // block)](
            heads, query_weight, key_weight, cos, sin, out, eps, heads.stride(0), heads.stride(1), cos.stride(0),
            *counts, num_heads, head_dim, weights is not None, block, triton.next_power_of_2(head_dim // 2),
            num_warps=2,
        )  # fmt: skip
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `lightvllm.kernels.reference.rotary`.

    x: [num_tokens, num_heads, head_dim], heads may lie apart; cos, sin: [num_tokens, 1, head_dim] float32
    """
    return _launch(x, None, 0.0, cos.contiguous(), sin.contiguous(), (x.shape[1], x.shape[1]))


def rotary_qkv(
    qkv: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
) -> Tensor:
    """See `lightvllm.kernels.reference.rotary_qkv`; rows of `qkv` may lie apart."""
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    weights = None if query_weight is None or key_weight is None else (query_weight, key_weight)
    return _launch(heads, weights, eps, cos.contiguous(), sin.contiguous(), (num_heads + num_kv_heads, num_heads))
