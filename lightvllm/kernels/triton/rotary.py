"""Rotary position embedding on a GPU, alone, and with the norms of queries and keys.

Reference twins: lightvllm/kernels/reference.py:rotary, rotary_qkv; test: tests/kernels/gpu/test_triton_elementwise.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Heads of one token that a program takes.
_HEADS = 8


@triton.jit
def _normed(first, second, weight, half, i, head_dim, eps, TYPE: tl.constexpr):
    """Both halves of each head, normed and rounded as the norm alone would be."""
    squares = tl.sum(first * first, axis=1, keep_dims=True) + tl.sum(second * second, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / head_dim + eps)
    first *= scale * tl.load(weight + i, half, 0).to(tl.float32)
    second *= scale * tl.load(weight + head_dim // 2 + i, half, 0).to(tl.float32)
    return first.to(TYPE).to(tl.float32), second.to(TYPE).to(tl.float32)


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
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    half = i < head_dim // 2
    mask = half & (head < num_heads)
    at = x + token * x_token + head * x_head + i
    first = tl.load(at, mask, 0).to(tl.float32)
    second = tl.load(at + head_dim // 2, mask, 0).to(tl.float32)
    a, b = first, second
    if HAS_NORM:
        type: tl.constexpr = out.dtype.element_ty
        query_a, query_b = _normed(first, second, query_weight, half, i, head_dim, eps, type)
        key_a, key_b = _normed(first, second, key_weight, half, i, head_dim, eps, type)
        is_query = head < num_queries
        a, b = tl.where(is_query, query_a, key_a), tl.where(is_query, query_b, key_b)
    angles = token * angle_token + i
    cos_a, cos_b = tl.load(cos + angles, half, 0), tl.load(cos + angles + head_dim // 2, half, 0)
    sin_a, sin_b = tl.load(sin + angles, half, 0), tl.load(sin + angles + head_dim // 2, half, 0)
    is_rotated = head < num_rotated
    to = out + (token * num_heads + head) * head_dim + i
    tl.store(to, tl.where(is_rotated, a * cos_a - b * sin_a, first).to(out.dtype.element_ty), mask)
    tl.store(to + head_dim // 2, tl.where(is_rotated, b * cos_b + a * sin_b, second).to(out.dtype.element_ty), mask)


def _launch(
    heads: Tensor, weights: tuple[Tensor, Tensor] | None, eps: float, cos: Tensor, sin: Tensor, counts: tuple[int, int]
) -> Tensor:
    """heads: [num_tokens, num_heads, head_dim]; counts: how many of them are rotated, and queries."""
    heads = heads if heads.stride(-1) == 1 else heads.contiguous()
    tokens, num_heads, head_dim = heads.shape
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    query_weight, key_weight = weights or (heads, heads)
    if out.numel():
        _rotary[(tokens, triton.cdiv(num_heads, _HEADS))](
            heads, query_weight, key_weight, cos, sin, out, eps, heads.stride(0), heads.stride(1), cos.stride(0),
            *counts, num_heads, head_dim, weights is not None, _HEADS, triton.next_power_of_2(head_dim // 2),
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
