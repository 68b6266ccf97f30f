"""Causal attention of chunks, several tokens of each request, against the paged cache.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/kernels/gpu/test_paged_prefill.py.

A program has some of a chunk's tokens, with all the query heads that share a key as rows of one matrix, and goes
through the keys in tiles that begin at multiples of TILE, whatever the chunk. A row's result so depends on its own
token alone: it is bitwise the same in a chunk of any size, as a decode, and in any company.

FlashAttention-2: Dao, 2023, https://arxiv.org/abs/2307.08691.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightvllm.kernels.triton.paged_cache import (
    LOG2_E,
    LOWEST,
    as_words,
    cache_constants,
    load_heads,
    load_scales,
    slots_of,
)


@triton.jit
def _attend_tiles(
    query, values_sum, total, peak, positions, key_cache, value_cache, table, first, last, end, scale,
    IS_MASKED: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    IS_INT8: tl.constexpr,
):  # fmt: skip
    """Take the tiles of keys [first, last) into the running softmax of query [ROWS, DIMS].

    Only with IS_MASKED may there be keys that a row does not see, or that are not there: those from `end` on.
    """
    for start in range(first, last, TILE):
        keys = start + tl.arange(0, TILE)
        is_there = keys < end if IS_MASKED else None
        slots = slots_of(table, keys, is_there, BLOCK_SIZE, BLOCK_STRIDE, SLOT_STRIDE)
        key = load_heads(key_cache, slots, is_there, query.dtype, HEAD_DIM, DIMS)
        scores = tl.dot(query, key.T, input_precision="ieee")
        if IS_INT8:
            scores *= load_scales(key_cache, slots, is_there, HEAD_DIM)[None, :]
        if IS_MASKED:
            is_seen = keys[None, :] <= positions[:, None]
            if WINDOW:
                is_seen &= keys[None, :] > positions[:, None] - WINDOW
            scores = tl.where(is_seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        if IS_INT8:
            weights *= load_scales(value_cache, slots, is_there, HEAD_DIM)[None, :]
            if IS_MASKED:
                weights = tl.where(is_seen, weights, 0)  # 0 * NaN is NaN
        value = load_heads(value_cache, slots, is_there, query.dtype, HEAD_DIM, DIMS)
        values_sum = tl.dot(weights.to(query.dtype), value, values_sum * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return values_sum, total, peak


@triton.jit
def _paged_prefill(
    query,  # [num_tokens, num_heads, head_dim]
    key_cache,  # [num_blocks, block_size, num_kv_heads, head_dim], `as_words`
    value_cache,
    block_table,  # [num_requests, max_blocks]
    query_starts,  # [num_requests + 1]
    seq_lens,  # [num_requests]
    output,  # [num_tokens, num_heads, head_dim]
    scale,
    table_stride,
    query_stride,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a kv head
    ROWS: tl.constexpr, TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr, HEAD_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head, request = tl.program_id(0), tl.program_id(1)
    part = tl.num_programs(2) - 1 - tl.program_id(2)  # the last tokens see most keys: they begin first
    query_start = tl.load(query_starts + request)
    query_len = tl.load(query_starts + request + 1) - query_start
    if part * TOKENS >= query_len:
        return
    computed = tl.load(seq_lens + request) - query_len

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    tokens = part * TOKENS + rows // GROUP
    is_used = (rows < TOKENS * GROUP) & (tokens < query_len)
    last_token = tl.minimum(part * TOKENS + TOKENS, query_len) - 1
    # Rows without a token of their own see what the last one sees.
    positions = computed + tl.minimum(tokens, last_token)
    token = (query_start + tokens).to(tl.int64)[:, None]
    head = kv_head * GROUP + (rows % GROUP)[:, None]
    is_loaded = is_used[:, None] & (dims[None, :] < HEAD_DIM)
    own_query = tl.load(query + token * query_stride + head * HEAD_DIM + dims[None, :], mask=is_loaded, other=0)

    values_sum = tl.zeros([ROWS, DIMS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], LOWEST, tl.float32)
    key_cache += kv_head * HEAD_STRIDE
    value_cache += kv_head * HEAD_STRIDE
    table = block_table + request.to(tl.int64) * table_stride
    seen_by_first = computed + part * TOKENS + 1  # keys
    end = computed + last_token + 1
    if WINDOW:
        start = tl.maximum(seen_by_first - WINDOW, 0) // TILE * TILE
    else:
        start = seen_by_first // TILE * TILE
        values_sum, total, peak = _attend_tiles(
            own_query, values_sum, total, peak, positions, key_cache, value_cache, table,
            0, start, end, scale, False, WINDOW, TILE, BLOCK_SIZE, BLOCK_STRIDE, SLOT_STRIDE, HEAD_DIM, DIMS, IS_INT8,
        )  # fmt: skip
    values_sum, total, peak = _attend_tiles(
        own_query, values_sum, total, peak, positions, key_cache, value_cache, table,
        start, end, end, scale, True, WINDOW, TILE, BLOCK_SIZE, BLOCK_STRIDE, SLOT_STRIDE, HEAD_DIM, DIMS, IS_INT8,
    )  # fmt: skip

    result = (values_sum / total[:, None]).to(output.dtype.element_ty)
    place = (token * tl.num_programs(0) * GROUP + head) * HEAD_DIM + dims[None, :]
    tl.store(output + place, result, mask=is_loaded)


def paged_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    max_query_len: int,
    scale: float,
    sliding_window: int,
    output: Tensor | None = None,
) -> Tensor:
    """Causal attention of each request's last tokens over its cached keys and values.

    Args:
        query: [num_tokens, num_heads, head_dim], the requests' tokens end to end.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], or int8 as `round_heads` makes it.
        block_table: [num_requests, max_blocks] int32
        query_starts: [num_requests + 1] int32, where each request's tokens begin in `query`; the last is num_tokens.
        seq_lens: [num_requests] int32, tokens of each request in the cache.
        max_query_len: no request has more tokens in `query`; changes no result.
        sliding_window: a token sees itself and so many less one before it; 0 for all.
        output: the shape of query, contiguous, where the requests' rows go; made anew where there is none.

    Returns:
        [num_tokens, num_heads, head_dim]
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, num_requests = key_cache.shape[2], seq_lens.shape[0]
    if output is None:
        output = query.new_empty(query.shape)
    if not max_query_len:
        return output
    assert query.stride()[1:] == (head_dim, 1)
    assert block_table.stride(1) == 1
    if _is_for_hopper(query, key_cache):
        from lightvllm.kernels.triton.hopper_prefill import hopper_prefill

        hopper_prefill(
            query, key_cache, value_cache, block_table, query_starts, seq_lens, max_query_len, scale, sliding_window,
            output,
        )  # fmt: skip
        return output
    key_cache, value_cache = as_words(key_cache), as_words(value_cache)
    constants = cache_constants(key_cache, value_cache, head_dim)
    config = prefill_config(query.dtype, head_dim, constants["IS_INT8"])
    group = num_heads // num_kv_heads
    config["ROWS"] = max(config["ROWS"], triton.next_power_of_2(group))
    num_parts = triton.cdiv(max_query_len, config["ROWS"] // group)
    _paged_prefill[(num_kv_heads, num_requests, num_parts)](
        query, key_cache, value_cache, block_table, query_starts,
        seq_lens, output, scale * LOG2_E, block_table.stride(0), query.stride(0),
        WINDOW=sliding_window, GROUP=group, **constants, **config,
    )  # fmt: skip
    return output


def _is_for_hopper(query: Tensor, key_cache: Tensor) -> bool:
    """Whether `hopper_prefill` knows these types and sizes, and this GPU has what it needs."""
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    return (
        query.is_cuda
        and torch.cuda.get_device_capability(query.device)[0] == 9
        and query.dtype == key_cache.dtype
        and query.dtype in (torch.float16, torch.bfloat16)
        and head_dim in (64, 128)
        and block_size >= 8
        and block_size & (block_size - 1) == 0
        and query.shape[1] // num_kv_heads <= 128
        and key_cache.is_contiguous()
    )


def prefill_config(dtype: torch.dtype, head_dim: int, is_int8: bool) -> dict[str, int]:
    """Rows of a program and keys of a tile, and how a program runs."""
    if dtype == torch.float32:
        size = 32 if head_dim <= 128 else 16
        return {"ROWS": size, "TILE": size, "num_warps": 4, "num_stages": 1}
    # Numbers of four bytes are no good to copy ahead of their use: it takes an instruction each.
    return {"ROWS": 64, "TILE": 64 if head_dim <= 128 else 32, "num_warps": 4, "num_stages": 1 if is_int8 else 3}
