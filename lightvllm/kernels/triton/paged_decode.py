"""Attention of requests that compute one token each, against the paged cache (split-KV, or flash-decoding).

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/kernels/gpu/test_paged_decode.py.

A request's keys are cut into splits, so that a few requests fill the machine too. How they are cut follows from the
request's own length and nothing else: its result is bitwise the same in any company. Where programs are fewer than
splits a program takes several; what each has found goes to memory, and the last of a head's programs to finish puts it
together, always in the same order. The query heads that share a key are one program's, padded to a matrix's 16 rows.

Flash-Decoding: Dao et al., 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightvllm.kernels.triton.paged_cache import (
    LOG2_E,
    LOWEST,
    as_words,
    cache_constants,
    load_heads,
    load_scales,
    slots_of,
)

MOST_SPLITS = 16  # of a request
MIN_SPLIT = 96  # keys: with fewer, putting splits together costs more than it saves
ENOUGH_PROGRAMS = 4096  # to keep all multiprocessors busy until the end; more of them find nothing to do


@triton.jit
def _attend_split(
    query, key_cache, value_cache, table, first, last, scale,
    TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    """Of query [ROWS, DIMS] and keys [first, last): the weighted values, the weights' sum, and the highest score."""
    ROWS: tl.constexpr = query.shape[0]
    values_sum = tl.zeros([ROWS, DIMS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], LOWEST, tl.float32)
    for start in range(first, last, TILE):
        positions = start + tl.arange(0, TILE)
        is_there = positions < last
        slots = slots_of(table, positions, is_there, BLOCK_SIZE, BLOCK_STRIDE, SLOT_STRIDE)
        key = load_heads(key_cache, slots, is_there, query.dtype, HEAD_DIM, DIMS)
        value = load_heads(value_cache, slots, is_there, query.dtype, HEAD_DIM, DIMS)
        scores = tl.dot(query, key.T, input_precision="ieee")
        if IS_INT8:
            scores *= load_scales(key_cache, slots, is_there, HEAD_DIM)[None, :]
        scores = tl.where(is_there[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        if IS_INT8:
            weights *= load_scales(value_cache, slots, is_there, HEAD_DIM)[None, :]
        values_sum = tl.dot(weights.to(query.dtype), value, values_sum * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return values_sum, total, peak


@triton.jit
def _paged_decode(
    query,  # [num_decodes, num_heads, head_dim]
    key_cache,  # [num_blocks, block_size, num_kv_heads, head_dim], `as_words`
    value_cache,
    block_table,  # [num_decodes, max_blocks]
    seq_lens,  # [num_decodes]
    output,  # [num_decodes, num_heads, head_dim]
    split_values,  # [num_decodes, num_kv_heads, MOST_SPLITS, GROUP, DIMS] float32
    split_sums,  # [2, num_decodes, num_kv_heads, MOST_SPLITS, GROUP] float32: sums of weights, highest scores
    arrivals,  # [num_decodes, num_kv_heads] int32, zeros before and after
    scale,
    table_stride,
    query_stride,
    BEGINS_EARLY: tl.constexpr,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a kv head
    ROWS: tl.constexpr, TILE: tl.constexpr, MIN_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr, HEAD_STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    if BEGINS_EARLY:
        gdc_wait()
        gdc_launch_dependents()
    kv_head, program, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    is_used = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    # First of all, so that the memory's answers to this and to what follows come together.
    own_query = query + request.to(tl.int64) * query_stride + kv_head * GROUP * HEAD_DIM
    own_query = tl.load(own_query + rows[:, None] * HEAD_DIM + dims[None, :], mask=is_used, other=0)
    seq_len = tl.load(seq_lens + request)
    begin = tl.maximum(seq_len - WINDOW, 0) if WINDOW else 0
    # Only the request's own length counts here.
    split_len = tl.cdiv(tl.maximum(tl.cdiv(seq_len - begin, MOST_SPLITS), MIN_SPLIT), TILE) * TILE
    num_splits = tl.cdiv(seq_len - begin, split_len)
    if program >= num_splits:
        return

    own_output = output + (request.to(tl.int64) * tl.num_programs(0) + kv_head) * GROUP * HEAD_DIM
    place = (request.to(tl.int64) * tl.num_programs(0) + kv_head) * MOST_SPLITS
    peaks = split_sums + tl.num_programs(2).to(tl.int64) * tl.num_programs(0) * MOST_SPLITS * GROUP

    for split in range(program, num_splits, tl.num_programs(1)):
        first = begin + split * split_len
        values_sum, total, peak = _attend_split(
            own_query, key_cache + kv_head * HEAD_STRIDE, value_cache + kv_head * HEAD_STRIDE,
            block_table + request.to(tl.int64) * table_stride, first, tl.minimum(first + split_len, seq_len), scale,
            TILE, BLOCK_SIZE, BLOCK_STRIDE, SLOT_STRIDE, HEAD_DIM, DIMS, IS_INT8,
        )  # fmt: skip
        if num_splits == 1:
            result = (values_sum / total[:, None]).to(output.dtype.element_ty)
            tl.store(own_output + rows[:, None] * HEAD_DIM + dims[None, :], result, mask=is_used)
        else:
            here = (place + split) * GROUP + rows
            tl.store(split_values + here[:, None] * DIMS + dims[None, :], values_sum, mask=rows[:, None] < GROUP)
            tl.store(split_sums + here, total, mask=rows < GROUP)
            tl.store(peaks + here, peak, mask=rows < GROUP)

    if num_splits > 1:
        tl.debug_barrier()  # all threads' stores come before the one thread's arrival
        arrived = tl.atomic_add(arrivals + request * tl.num_programs(0) + kv_head, 1, sem="acq_rel")
        if arrived == tl.minimum(tl.num_programs(1), num_splits) - 1:
            tl.store(arrivals + request * tl.num_programs(0) + kv_head, 0)
            _put_together(
                split_values + place * GROUP * DIMS, split_sums + place * GROUP, peaks + place * GROUP, own_output,
                num_splits, GROUP, MOST_SPLITS, HEAD_DIM, DIMS,
            )  # fmt: skip


@triton.jit
def _put_together(
    split_values, split_totals, split_peaks, output, num_splits,
    GROUP: tl.constexpr, MOST_SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """One softmax of a kv head's splits: weights are shrunk to the highest score of all, and summed."""
    # So many rows at a time, [splits, rows, dims], as fit into a warp's registers.
    AT_ONCE: tl.constexpr = min(triton.next_power_of_2(GROUP), max(1, 4096 // (MOST_SPLITS * DIMS)))
    splits = tl.arange(0, MOST_SPLITS)[:, None]
    dims = tl.arange(0, DIMS)
    is_there = splits < num_splits
    for first in tl.static_range(0, GROUP, AT_ONCE):
        rows = tl.minimum(first + tl.arange(0, AT_ONCE), GROUP - 1)
        here = splits * GROUP + rows[None, :]
        # Other multiprocessors wrote these: they are not to come from this one's own cache.
        peak = tl.load(split_peaks + here, mask=is_there, other=LOWEST, cache_modifier=".cg")
        total = tl.load(split_totals + here, mask=is_there, other=0, cache_modifier=".cg")
        values = tl.load(
            split_values + here[:, :, None] * DIMS + dims, mask=is_there[:, :, None], other=0, cache_modifier=".cg"
        )
        shrink = tl.exp2(peak - tl.max(peak, 0)[None, :])
        result = tl.sum(values * shrink[:, :, None], 0) / tl.sum(total * shrink, 0)[:, None]
        places = output + rows[:, None] * HEAD_DIM + dims[None, :]
        tl.store(places, result.to(output.dtype.element_ty), mask=dims[None, :] < HEAD_DIM)


def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    sliding_window: int,
    arrivals: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Attention of each request's last token over its cached keys and values.

    Args:
        query: [num_decodes, num_heads, head_dim], one token of each request.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim], or int8 as `round_heads` makes it.
        block_table: [num_decodes, max_blocks] int32
        seq_lens: [num_decodes] int32, tokens in the cache, the query's own the last.
        max_seq_len: no request is longer; changes how the work is shared out, and no result.
        sliding_window: a token sees itself and so many less one before it; 0 for all.
        arrivals: [num_decodes, num_kv_heads] int32, zeros, left as zeros: those who call for layer after layer save
            making them each time.
        output: [num_decodes, num_heads, head_dim], contiguous, where the result goes; made anew where there is none.

    Returns:
        [num_decodes, num_heads, head_dim]
    """
    num_decodes, num_heads, head_dim = query.shape
    num_kv_heads = key_cache.shape[2]
    group = num_heads // num_kv_heads
    if output is None:
        output = query.new_empty(query.shape)
    if not num_decodes:
        return output
    assert query.stride()[1:] == (head_dim, 1)
    assert block_table.stride(1) == 1
    key_cache, value_cache = as_words(key_cache), as_words(value_cache)
    constants = cache_constants(key_cache, value_cache, head_dim)
    longest = min(max_seq_len, sliding_window or max_seq_len)
    num_programs = min(
        triton.cdiv(longest, MIN_SPLIT), MOST_SPLITS, triton.cdiv(ENOUGH_PROGRAMS, num_decodes * num_kv_heads)
    )
    if arrivals is None:
        arrivals = seq_lens.new_zeros(num_decodes, num_kv_heads)
    # Nothing is written to these where no request has a second split.
    most_splits = MOST_SPLITS if longest > MIN_SPLIT else 0
    places = (num_decodes, num_kv_heads, most_splits, group)
    split_values = torch.empty(*places, constants["DIMS"], dtype=torch.float32, device=query.device)
    split_sums = torch.empty(2, *places, dtype=torch.float32, device=query.device)
    early = begins_early(query.device)
    _paged_decode[(num_kv_heads, num_programs, num_decodes)](
        query, key_cache, value_cache, block_table, seq_lens, output,
        split_values, split_sums, arrivals, scale * LOG2_E, block_table.stride(0), query.stride(0),
        BEGINS_EARLY=early, WINDOW=sliding_window, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        MIN_SPLIT=MIN_SPLIT, MOST_SPLITS=MOST_SPLITS, launch_pdl=early, **constants,
        **decode_config(query.dtype, head_dim, constants["IS_INT8"]),
    )  # fmt: skip
    return output


def begins_early(device: torch.device) -> bool:
    """Whether the kernel may be launched before the one ahead of it has ended, which it then waits for itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def decode_config(dtype: torch.dtype, head_dim: int, is_int8: bool) -> dict[str, int]:
    """Keys of a tile, and how a program runs: one warp need wait for no other."""
    if dtype == torch.float32:
        return {"TILE": 32, "num_warps": 4, "num_stages": 2}
    # Numbers of four bytes are no good to copy ahead of their use: it takes an instruction each.
    return {"TILE": 32, "num_warps": 1 if head_dim <= 128 else 2, "num_stages": 1 if is_int8 else 5}
