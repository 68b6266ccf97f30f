"""`paged_prefill` for Hopper, in Gluon: copies, products and softmax at the same time.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/kernels/gpu/test_paged_prefill.py.

Twelve warps are a program. One has the copy engine fetch tiles of keys and values, page by page, into a ring in shared
memory. Two groups of four have 64 rows of the queries each: while a group's exponentials of one tile run, the matrix
unit has its product with the values of the tile before, or the other group's. What a row adds up, and in which order,
is as in `paged_prefill`: tiles begin at multiples of TILE, so that a token's result is the same in any chunk and
company.

FlashAttention-3: Shah et al., 2024, https://arxiv.org/abs/2407.08608.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lightvllm.kernels.triton.paged_cache import LOG2_E, LOWEST

TILE = 128  # keys
STAGES = 2  # tiles of keys, and of values, in shared memory
GROUP_ROWS = gl.constexpr(64)  # of a product of one group of four warps
COLUMNS = gl.constexpr(64)  # 128 bytes: the widest rows that shared memory keeps free of bank conflicts
REGISTERS = 168  # of a thread before the groups take from the copying warps what these do not need
SHARED = gl.NVMMASharedLayout(128, 16, 2)


@gluon.jit
def _fetch(
    keys, values, key_pages, value_pages, ready, free, table, column, begin, end, num_slots,
    TILE: gl.constexpr, PAGE: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Fill the ring with the tiles of keys [begin, end); what lies past the last page is zeros."""
    PAGES: gl.constexpr = TILE // PAGE
    for start in range(begin, end, TILE):
        i = (start - begin) // TILE
        stage = i % STAGES
        for which in gl.static_range(2):
            bar = which * STAGES + stage
            mbarrier.wait(free.index(bar), (i // STAGES + 1) % 2)
            mbarrier.expect(ready.index(bar), TILE * PARTS * 128)
            for page in gl.static_range(PAGES):
                position = start + page * PAGE
                row = num_slots
                if position < end:
                    row = gl.load(table + position // BLOCK_SIZE) * BLOCK_SIZE + position % BLOCK_SIZE
                for part in gl.static_range(PARTS):
                    place = (stage * PARTS + part) * PAGES + page
                    where = [row, column + part * COLUMNS]
                    if which == 0:
                        tma.async_copy_global_to_shared(keys, where, ready.index(bar), key_pages.index(place))
                    else:
                        tma.async_copy_global_to_shared(values, where, ready.index(bar), value_pages.index(place))


@gluon.jit
def _weigh(scores, peak, total, positions, first, seen_by_first, scale, WINDOW: gl.constexpr, SCORES: gl.constexpr):
    """The softmax's weights of a tile whose keys begin at `first`, and how much those before it shrink."""
    if WINDOW > 0 or first + scores.shape[1] > seen_by_first:
        keys = first + gl.arange(0, scores.shape[1], gl.SliceLayout(0, SCORES))
        is_seen = keys[None, :] <= positions[:, None]
        if WINDOW > 0:
            is_seen = is_seen & (keys[None, :] > positions[:, None] - WINDOW)
        scores = gl.where(is_seen, scores, float("-inf"))
    new_peak = gl.maximum(peak, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - new_peak[:, None])
    shrink = gl.exp2(peak - new_peak)
    return weights, shrink, new_peak, total * shrink + gl.sum(weights, 1)


@gluon.jit
def _clear_behind(value_pages, place, kept, PARTS: gl.constexpr, PAGES: gl.constexpr):
    """Zeros where the last page's tokens end: the weights there are zero, but 0 * NaN is NaN."""
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, value_pages.shape[1], gl.SliceLayout(1, THREADS))
    for part in gl.static_range(PARTS):
        page = value_pages.index(place + part * PAGES)
        page.store(gl.where(rows[:, None] < kept, page.load(THREADS), 0.0).to(page.dtype))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _attend_tiles(
    query, positions, key_tiles, value_tiles, value_pages, ready, free, begin, end, seen_by_first, scale,
    WINDOW: gl.constexpr, PAGE: gl.constexpr, STAGES: gl.constexpr, SCORES: gl.constexpr, VALUES: gl.constexpr,
):  # fmt: skip
    """The weighted values of 64 rows and the sum of their weights."""
    TILE: gl.constexpr = key_tiles.shape[1]
    DIMS: gl.constexpr = key_tiles.shape[2]
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    dtype: gl.constexpr = query.dtype
    values_sum = gl.zeros([GROUP_ROWS, DIMS], gl.float32, VALUES)
    total = gl.zeros([GROUP_ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    peak = gl.full([GROUP_ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
    nothing = gl.zeros([GROUP_ROWS, TILE], gl.float32, SCORES)

    mbarrier.wait(ready.index(0), 0)
    scores = warpgroup_mma(query, key_tiles.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [scores])
    gl.thread_barrier()  # all four warps are through with the tile
    mbarrier.arrive(free.index(0))
    weights, shrink, peak, total = _weigh(scores, peak, total, positions, begin, seen_by_first, scale, WINDOW, SCORES)
    weights = gl.convert_layout(weights.to(dtype), WEIGHTS)
    last = (end - begin - 1) // TILE
    for i in range(1, last + 1):
        stage, before = i % STAGES, (i - 1) % STAGES
        mbarrier.wait(ready.index(stage), i // STAGES % 2)
        scores = warpgroup_mma(query, key_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(ready.index(STAGES + before), (i - 1) // STAGES % 2)
        values_sum = warpgroup_mma(weights, value_tiles.index(before), values_sum, is_async=True)
        scores = warpgroup_mma_wait(1, [scores])
        gl.thread_barrier()
        mbarrier.arrive(free.index(stage))
        new_weights, shrink, peak, total = _weigh(
            scores, peak, total, positions, begin + i * TILE, seen_by_first, scale, WINDOW, SCORES
        )
        # The weights' registers are read until here.
        values_sum, weights = warpgroup_mma_wait(0, [values_sum, weights])
        gl.thread_barrier()
        mbarrier.arrive(free.index(STAGES + before))
        values_sum *= gl.convert_layout(shrink, gl.SliceLayout(1, VALUES))[:, None]
        weights = gl.convert_layout(new_weights.to(dtype), WEIGHTS)

    stage = last % STAGES
    mbarrier.wait(ready.index(STAGES + stage), last // STAGES % 2)
    here = (end - begin) % TILE
    if here % PAGE > 0:
        PAGES: gl.constexpr = TILE // PAGE
        PARTS: gl.constexpr = DIMS // COLUMNS
        _clear_behind(value_pages, stage * PARTS * PAGES + here // PAGE, here % PAGE, PARTS, PAGES)
    values_sum = warpgroup_mma(weights, value_tiles.index(stage), values_sum, is_async=True)
    return warpgroup_mma_wait(0, [values_sum]), total


@gluon.jit
def _attend(
    query, output, query_tiles, key_tiles, value_tiles, value_pages, ready, free, kv_head, query_start, query_len,
    first_token, computed, begin, end, scale, query_stride, output_stride,
    WHICH: gl.constexpr, WINDOW: gl.constexpr, GROUP: gl.constexpr, TOKENS: gl.constexpr, PAGE: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """The rows of one group of warps, from queries to output."""
    TILE: gl.constexpr = key_tiles.shape[1]
    DIMS: gl.constexpr = key_tiles.shape[2]
    THREADS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIMS, DIMS // 8], [4, 1], [1, 0])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIMS, 16])

    places, is_used = _places(
        kv_head, query_start, query_len, first_token, query_stride, WHICH, GROUP, TOKENS, DIMS, THREADS
    )
    own_query = query_tiles.index(WHICH)
    own_query.store(gl.load(query + places, mask=is_used, other=0.0))
    fence_async_shared()
    gl.thread_barrier()

    rows = WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, SCORES))
    # Rows without a token of their own see what the last one sees.
    positions = gl.minimum(computed + first_token + rows // GROUP, end - 1)
    values_sum, total = _attend_tiles(
        own_query, positions, key_tiles, value_tiles, value_pages, ready, free, begin, end, computed + first_token + 1,
        scale, WINDOW, PAGE, STAGES, SCORES, VALUES,
    )  # fmt: skip
    result = values_sum / gl.convert_layout(total, gl.SliceLayout(1, VALUES))[:, None]
    places, is_used = _places(
        kv_head, query_start, query_len, first_token, output_stride, WHICH, GROUP, TOKENS, DIMS, VALUES
    )
    gl.store(output + places, result.to(output.dtype.element_ty), mask=is_used)


@gluon.jit
def _places(
    kv_head, query_start, query_len, first_token, stride,
    WHICH: gl.constexpr, GROUP: gl.constexpr, TOKENS: gl.constexpr, DIMS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Where the rows of a group of warps lie in queries or output, [64, DIMS], and which there are."""
    rows = WHICH * GROUP_ROWS + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, DIMS, gl.SliceLayout(0, LAYOUT))
    tokens = first_token + rows // GROUP
    is_used = (rows < TOKENS * GROUP) & (tokens < query_len)
    places = (query_start + tokens).to(gl.int64) * stride + (kv_head * GROUP + rows % GROUP) * DIMS
    return places[:, None] + dims[None, :], is_used[:, None]


@gluon.jit
def _hopper_prefill(
    query,  # [num_tokens, num_heads, head_dim]
    keys,  # the cache as [num_slots, num_kv_heads * head_dim]
    values,
    block_table,  # [num_requests, max_blocks]
    query_starts,  # [num_requests + 1]
    seq_lens,  # [num_requests]
    output,  # [num_tokens, num_heads, head_dim]
    scale,
    table_stride,
    query_stride,
    num_slots,
    WINDOW: gl.constexpr,
    GROUP: gl.constexpr,  # query heads of a kv head
    TILE: gl.constexpr,
    PAGE: gl.constexpr,  # slots of a copy
    DIMS: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
):
    TOKENS: gl.constexpr = 2 * GROUP_ROWS // GROUP
    PARTS: gl.constexpr = DIMS // COLUMNS
    kv_head, request = gl.program_id(0), gl.program_id(1)
    first_token = (
        gl.num_programs(2) - 1 - gl.program_id(2)
    ) * TOKENS  # the last tokens see most keys: they begin first
    query_start = gl.load(query_starts + request)
    query_len = gl.load(query_starts + request + 1) - query_start
    if first_token >= query_len:
        return
    computed = gl.load(seq_lens + request) - query_len
    end = computed + gl.minimum(first_token + TOKENS, query_len)
    begin = end * 0
    if WINDOW > 0:
        begin = gl.maximum(computed + first_token + 1 - WINDOW, 0) // TILE * TILE

    dtype: gl.constexpr = keys.dtype
    query_tiles = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, DIMS], keys.layout)
    key_tiles = gl.allocate_shared_memory(dtype, [STAGES, TILE, DIMS], keys.layout)
    value_tiles = gl.allocate_shared_memory(dtype, [STAGES, TILE, DIMS], keys.layout)
    # A tile is 64 columns of all its tokens after the other 64, and of each the pages in their order.
    PAGES: gl.constexpr = STAGES * PARTS * (TILE // PAGE)
    key_pages = key_tiles._reinterpret(dtype, [PAGES, PAGE, COLUMNS], keys.layout)
    value_pages = value_tiles._reinterpret(dtype, [PAGES, PAGE, COLUMNS], keys.layout)
    # Of each tile of keys, then of values: that it is there, and that both groups are through with it.
    ready = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    for bar in gl.static_range(2 * STAGES):
        mbarrier.init(ready.index(bar), count=1)
        mbarrier.init(free.index(bar), count=2)
    fence_async_shared()
    gl.thread_barrier()

    table = block_table + request.to(gl.int64) * table_stride
    output_stride = gl.num_programs(0) * GROUP * DIMS
    gl.warp_specialize(
        [
            (_attend, (
                query, output, query_tiles, key_tiles, value_tiles, value_pages, ready, free, kv_head, query_start,
                query_len, first_token, computed, begin, end, scale, query_stride, output_stride,
                gl.constexpr(0), WINDOW, GROUP, TOKENS, PAGE, STAGES,
            )),
            (_attend, (
                query, output, query_tiles, key_tiles, value_tiles, value_pages, ready, free, kv_head, query_start,
                query_len, first_token, computed, begin, end, scale, query_stride, output_stride,
                gl.constexpr(1), WINDOW, GROUP, TOKENS, PAGE, STAGES,
            )),
            (_fetch, (
                keys, values, key_pages, value_pages, ready, free, table, kv_head * DIMS, begin, end, num_slots,
                TILE, PAGE, PARTS, STAGES, BLOCK_SIZE,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def hopper_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    max_query_len: int,
    scale: float,
    sliding_window: int,
    output: Tensor,
) -> None:
    """See `paged_prefill`, which knows what this is for."""
    num_heads, head_dim = query.shape[1:]
    num_blocks, block_size, num_kv_heads, _ = key_cache.shape
    group, page = num_heads // num_kv_heads, min(block_size, TILE)
    keys, values = (
        TensorDescriptor.from_tensor(x.view(-1, num_kv_heads * head_dim), [page, COLUMNS.value], SHARED)
        for x in (key_cache, value_cache)
    )
    num_parts = triton.cdiv(max_query_len, 2 * GROUP_ROWS.value // group)
    _hopper_prefill[(num_kv_heads, seq_lens.shape[0], num_parts)](
        query, keys, values, block_table, query_starts, seq_lens, output, scale * LOG2_E, block_table.stride(0),
        query.stride(0), num_blocks * block_size, WINDOW=sliding_window, GROUP=group, TILE=TILE, PAGE=page,
        DIMS=head_dim, STAGES=STAGES, BLOCK_SIZE=block_size, num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
