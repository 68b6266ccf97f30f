"""The ops in plain PyTorch: what each computes, in float32, rounded once. The oracle of their fast twins."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(weight: Tensor, token_ids: Tensor) -> Tensor:
    """The vector of each token: weight: [vocab_size, size]; token_ids: [num_tokens] int64 -> [num_tokens, size]"""
    return F.embedding(token_ids, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight.

    x: [num_tokens, size] or [num_tokens, num_heads, size]; weight: [size] -> the shape of x
    """
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + update, rounded to its type, and the norm of that, see `rms_norm`.

    x, update: [num_tokens, size]; weight: [size] -> twice the shape of x
    """
    total = x + update
    return total, rms_norm(total, weight, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head: the first half of its dimensions against the second (the layout of Hugging Face checkpoints).

    x: [num_tokens, num_heads, head_dim]; cos, sin: [num_tokens, 1, head_dim] float32 -> the shape of x
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


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
    """The heads of a product of queries, keys and values: queries and keys normed where there are weights, and rotated.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
        query_weight, key_weight: [head_dim], of an RMSNorm of each head; neither or both.
        cos, sin: [num_tokens, 1, head_dim] float32

    Returns:
        [num_tokens, num_heads + 2 * num_kv_heads, head_dim]
    """
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if query_weight is not None and key_weight is not None:
        query, key = rms_norm(query, query_weight, eps), rms_norm(key, key_weight, eps)
    return torch.cat((rotary(query, cos, sin), rotary(key, cos, sin), value), dim=1)


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(gate) * up, where x is [gate, up]: [num_tokens, 2 * size] -> [num_tokens, size]"""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


SCALE_BYTES = 4  # of a float32, behind each head of an int8 cache


def round_heads(x: Tensor) -> Tensor:
    """Heads as an int8 cache holds them: the numbers in steps of their largest / 127, and that step, a float32, behind.

    What is too small for a normal scale becomes zero. A head that is not finite becomes NaN, all of it, by its scale.

    x: [..., head_dim] -> [..., head_dim + 4] int8
    """
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True) / 127
    is_normal = scale.isfinite() & (scale >= torch.finfo(torch.float32).tiny)
    values = torch.where(is_normal, (x / scale).round(), 0).to(torch.int8)
    scale = torch.where(is_normal, scale, torch.where(scale.isfinite(), 0.0, float("nan")))
    return torch.cat((values, scale.view(torch.int8)), dim=-1)


def widen_heads(cached: Tensor) -> Tensor:
    """The numbers that an int8 cache stands for, see `round_heads`: [..., head_dim + 4] -> [..., head_dim] float32"""
    values, scale = cached.split([cached.shape[-1] - SCALE_BYTES, SCALE_BYTES], dim=-1)
    return values * scale.contiguous().view(torch.float32)


def _numbers(cached: Tensor) -> Tensor:
    return widen_heads(cached) if cached.dtype == torch.int8 else cached.float()


def write_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Put each token's key and value into its slot of the cache.

    key, value: [num_tokens, num_kv_heads, head_dim]; caches: [num_blocks, block_size, num_kv_heads, head_dim], or int8
    as `round_heads` makes it; slots: [num_tokens] int64, block * block_size + offset
    """
    if key_cache.dtype == torch.int8:
        key, value = round_heads(key), round_heads(value)
    key_cache.flatten(0, 1)[slots] = key
    value_cache.flatten(0, 1)[slots] = value


def visible(query_len: int, seq_len: int, sliding_window: int, device: torch.device) -> Tensor:
    """Which keys a request's last `query_len` tokens may see, [query_len, seq_len] bool; a window of 0 is none."""
    positions = torch.arange(seq_len - query_len, seq_len, device=device).unsqueeze(1)
    keys = torch.arange(seq_len, device=device)
    mask = keys <= positions
    return mask & (keys > positions - sliding_window) if sliding_window else mask


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_lens: Tensor,
    seq_lens: Tensor,
    scale: float,
    sliding_window: int,
) -> Tensor:
    """Causal attention of each request's last tokens over its cached keys and values, one request after the other.

    Args:
        query: [num_tokens, num_heads, head_dim], the requests' tokens end to end.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], or int8 as `round_heads` makes it.
        block_table: [num_requests, max_blocks] int32
        query_lens, seq_lens: [num_requests] int64, tokens of each request in `query`, and in the cache.
        sliding_window: a token sees itself and so many less one before it; 0 for all.

    Returns:
        [num_tokens, num_heads, head_dim]
    """
    outputs = []
    block_size, num_kv_heads = key_cache.shape[1:3]
    queries = query.split(query_lens.tolist())
    for queries_of_one, blocks, seq_len in zip(queries, block_table, seq_lens.tolist(), strict=True):
        blocks = blocks[: -(-seq_len // block_size)].long()
        keys, values = (
            _numbers(x[blocks].flatten(0, 1)[:seq_len]).repeat_interleave(query.shape[1] // num_kv_heads, dim=1)
            for x in (key_cache, value_cache)
        )  # [seq_len, num_heads, head_dim]
        scores = torch.einsum("qhd,khd->hqk", queries_of_one.float(), keys) * scale
        hidden = ~visible(len(queries_of_one), seq_len, sliding_window, query.device)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype))
    return torch.cat(outputs)


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    is_gated: bool,
) -> Tensor:
    """A product and what goes around it in a decoder, for the few rows of a decode: norm(x) W^T + b + residual.

    Args:
        x: [rows, inputs], at most 8 rows.
        weight: [outputs, inputs]
        bias: [outputs]
        norm_weight: [inputs], of an RMSNorm with `eps` in front; or none.
        residual: the shape of the result, added last; or none.
        is_gated: the product goes through `silu_and_mul`, which halves the outputs.
    """
    y = F.linear(x if norm_weight is None else rms_norm(x, norm_weight, eps), weight, bias)
    y = silu_and_mul(y) if is_gated else y
    return y if residual is None else residual + y


def few_rows_attention(
    qkv: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    sliding_window: int,
) -> Tensor:
    """`rotary_qkv`, `write_kv` and `paged_attention` of requests that compute one token each; see there.

    No request may see a token that another one computes in the same step.

    Returns:
        [rows, num_heads * head_dim]
    """
    heads = rotary_qkv(qkv, query_weight, key_weight, eps, cos, sin, num_heads, num_kv_heads)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    write_kv(key, value, key_cache, value_cache, slots)
    ones = torch.ones_like(seq_lens)
    return paged_attention(query, key_cache, value_cache, block_table, ones, seq_lens, scale, sliding_window).flatten(1)


def most_likely(logits: Tensor) -> Tensor:
    """Where each row's largest number is, of equal ones the first; -1 where it is not finite. A NaN is the largest.

    logits: [num_rows, vocab_size] -> [num_rows] int64
    """
    logits = logits.float()  # of bfloat16 PyTorch's CPU looks at one number at a time
    best = logits.argmax(dim=-1, keepdim=True)
    return torch.where(logits.gather(-1, best).isfinite(), best, -1).squeeze(-1)


def pack_linear(weight: Tensor) -> Tensor:
    """A weight, [outputs, inputs], as `packed_linear` reads it. Each twin has a layout of its own."""
    return weight


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """y = x W^T + b

    x: [num_tokens, inputs]; bias: [outputs] -> [num_tokens, outputs]
    """
    return F.linear(x, packed, bias)


def round_weight(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The nearest values and the scales that keep each group's largest weight; zero is 2^(bits - 1).

    weight: [outputs, inputs] -> values [outputs, inputs] uint8, scales [outputs, groups] float32
    """
    outputs, inputs = weight.shape
    num_groups = -(-inputs // group_size)
    limit = 2 ** (bits - 1) - 1
    groups = F.pad(weight.float(), (0, num_groups * group_size - inputs))
    groups = groups.view(outputs, num_groups, group_size)
    scales = groups.abs().amax(dim=2) / limit
    values = (groups / scales.clamp(min=1e-38).unsqueeze(2)).round_() + 2 ** (bits - 1)
    return values.to(torch.uint8).view(outputs, -1)[:, :inputs].contiguous(), scales


def pack_quantized(values: Tensor, bits: int) -> Tensor:
    """A quantized weight, [outputs, inputs] uint8, as `quantized_linear` reads it; here as it was."""
    return values


def pack_groups(groups: Tensor) -> Tensor:
    """A quantized weight's scales or zero points, [outputs, groups], as `quantized_linear` reads them."""
    return groups


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
    """y = x W^T + b with W = scales (values - zeros), and x rounded to 8 bits: each group of a row's by its largest.

    Args:
        x: [num_tokens, inputs]
        packed: [outputs, inputs] uint8, of 4 bits below 16.
        scales, zeros: [outputs, groups] float32 and int32; no zeros: half of what a value can be, 128 or 8.
        codebook: [16] uint8, the values that `packed`, of 4 bits, has indices of; or none.
        group_size: neighbouring inputs that share a scale, where there are several groups.
    """
    inputs, groups = x.shape[1], scales.shape[1]
    group_size = group_size if groups > 1 else inputs
    values = packed if codebook is None else codebook[packed.int()]
    zero = zeros if zeros is not None else torch.full_like(scales, 8 if bits == 4 and codebook is None else 128)
    weight, zero = (part.repeat_interleave(group_size, dim=1)[:, :inputs] for part in (scales, zero))
    weight = weight * (values.float() - zero)
    x_groups = F.pad(x.float(), (0, groups * group_size - inputs)).unflatten(1, (groups, group_size))
    peak = x_groups.abs().amax(dim=2, keepdim=True)
    rounded = (x_groups * torch.where(peak > 1e-36, 127 / peak, 0)).round() * (peak / 127)
    y = F.linear(rounded.flatten(1)[:, :inputs], weight)
    return (y if bias is None else y + bias.float()).to(x.dtype)
