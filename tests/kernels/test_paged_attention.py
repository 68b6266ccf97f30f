"""The paged attention op against its reference, and bitwise invariance: to company, chunking, threads and splits."""

import pytest
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.kernels import reference
from tests.kernels.test_ops import TYPES, assert_close

Types = tuple[torch.dtype, torch.dtype]

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


# Of the queries and of the cache.
TYPES_OF_BOTH = [*((dtype, dtype) for dtype in TYPES), *((dtype, torch.int8) for dtype in TYPES)]
BATCH = [(1, 1), (9, 9), (1, 33), (40, 300), (1, 64), (1, 31), (5, 130), (1, 257)]


def paged_case(
    types: Types, head_dim: int, heads: int, kv_heads: int, block_size: int, batch: list[tuple[int, int]] = BATCH
) -> list[Tensor]:
    """Queries, caches, block table, and the batch's query and sequence lengths."""
    query_lens, seq_lens = torch.tensor(batch).unbind(1)
    count, blocks = len(batch), -(-int(seq_lens.max()) // block_size)
    table = torch.randperm(count * blocks).view(count, blocks).int()
    shape = (count * blocks, block_size, kv_heads, head_dim)
    cache = [torch.randn(shape) * torch.rand(*shape[:-1], 1) for _ in range(2)]  # no two scales alike
    cache = [reference.round_heads(x) if types[1] == torch.int8 else x.to(types[1]) for x in cache]
    query = torch.randn(int(query_lens.sum()), heads, head_dim).to(types[0])
    return [query, *cache, table, query_lens.contiguous(), seq_lens.contiguous()]


def poison(heads: Tensor) -> None:
    """Make heads of a cache NaN; of int8 their scale: four bytes of ones."""
    heads.fill_(-1 if heads.dtype == torch.int8 else float("nan"))


def decodes(case: list[Tensor], request: int) -> list[list[Tensor]]:
    """Each token that a request of the case computes as a decode of its own."""
    query, key, value, table, query_lens, seq_lens = case
    first, length = int(query_lens[:request].sum()), int(query_lens[request])
    return [
        [query[first + t : first + t + 1], key, value, table[request : request + 1], torch.tensor([1]),
         seq_lens[request : request + 1] - length + t + 1]
        for t in range(length)
    ]  # fmt: skip


@pytest.mark.parametrize("types", TYPES_OF_BOTH, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (16, 1), (64, 1)])
@pytest.mark.parametrize("head_dim", [16, 48, 112, 128])
@pytest.mark.parametrize("window", [0, 1, 20, 1000])
def test_paged_attention(types: Types, heads: int, kv_heads: int, head_dim: int, window: int) -> None:
    case = paged_case(types, head_dim, heads, kv_heads, 16 if window else 5)
    scale = head_dim**-0.5
    assert_close(kernels.paged_attention(*case, scale, window), reference.paged_attention(*case, scale, window))


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float32, torch.int8)], ids=str)
def test_paged_attention_of_large_scores(types: Types) -> None:
    """Scores far beyond exp's range: the softmax is a choice of one key, not a nan."""
    case = paged_case(types, 32, 2, 2, 16)
    actual = kernels.paged_attention(*case, 1e3, 0)
    assert_close(actual, reference.paged_attention(*case, 1e3, 0))


@pytest.mark.parametrize("types", TYPES_OF_BOTH, ids=str)
def test_paged_attention_ignores_what_lies_behind_the_sequence(types: Types) -> None:
    """A block's unused slots may hold anything, another request's nan included."""
    query, key, value, table, query_lens, seq_lens = paged_case(types, 32, 2, 2, 16)
    expected = kernels.paged_attention(query, key, value, table, query_lens, seq_lens, 0.2, 0)
    for i, seq_len in enumerate(seq_lens.tolist()):
        block = table[i, (seq_len - 1) // 16]
        poison(key[block, (seq_len - 1) % 16 + 1 :])
        poison(value[block, (seq_len - 1) % 16 + 1 :])
    assert torch.equal(kernels.paged_attention(query, key, value, table, query_lens, seq_lens, 0.2, 0), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("broken", [0, 1], ids=["key", "value"])
def test_a_broken_head_of_an_int8_cache_breaks_those_who_see_it(dtype: torch.dtype, window: int, broken: int) -> None:
    """Whoever sees its token through its head is NaN; all others are bitwise as they were."""
    case = paged_case((dtype, torch.int8), 32, 4, 2, 16, [(140, 300)])
    expected = kernels.paged_attention(*case, 0.2, window)
    poison(case[1 + broken][case[3][0, 200 // 16], 200 % 16, 1])
    actual = kernels.paged_attention(*case, 0.2, window)
    positions = torch.arange(160, 300)
    sees = (positions >= 200) & ((positions < 200 + window) | (window == 0))
    assert actual[sees][:, 2:].isnan().all()
    assert torch.equal(actual[:, :2], expected[:, :2])
    assert torch.equal(actual[~sees], expected[~sees])


@pytest.mark.parametrize("types", TYPES_OF_BOTH, ids=str)
@pytest.mark.parametrize("window", [0, 20, 200])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 64), (4, 4, 112), (8, 2, 128), (20, 1, 32)])
def test_paged_attention_is_bitwise_the_same_in_any_company(
    types: Types, window: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    """Few rows that share a key take another way through the kernel than many."""
    case = paged_case(types, head_dim, heads, kv_heads, 16)
    together = kernels.paged_attention(*case, 0.2, window).split(case[4].tolist())
    for request in range(len(BATCH)):
        alone = [kernels.paged_attention(*one, 0.2, window) for one in decodes(case, request)]
        assert torch.equal(torch.cat(alone), together[request])


@pytest.mark.parametrize("types", TYPES_OF_BOTH, ids=str)
@pytest.mark.parametrize("window", [0, 700])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1)])
def test_long_contexts_are_split_without_a_trace(types: Types, window: int, heads: int, kv_heads: int) -> None:
    """A decode's keys are cut among threads when there is little else to do: bitwise as in a crowd."""
    case = paged_case(types, 80, heads, kv_heads, 16, [(1, 1500), *[(1, 3)] * 40])
    (alone,) = decodes(case, 0)
    threads = torch.get_num_threads()
    results = [kernels.paged_attention(*case, 0.1, window)[:1]]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(kernels.paged_attention(*alone, 0.1, window))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert_close(results[0], reference.paged_attention(*alone, 0.1, window))


@pytest.mark.parametrize("types", TYPES_OF_BOTH, ids=str)
def test_a_chunk_is_bitwise_the_same_with_any_number_of_threads(types: Types) -> None:
    case = paged_case(types, 32, 6, 2, 16, [(200, 500), (1, 70)])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(kernels.paged_attention(*case, 0.1, 0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_no_requests() -> None:
    case = paged_case((torch.float32, torch.float32), 32, 2, 2, 16)
    empty = [case[0][:0], case[1], case[2], case[3][:0], case[4][:0], case[5][:0]]
    assert kernels.paged_attention(*empty, 1.0, 0).shape == (0, 2, 32)


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="before torch 2.12 a check that fails in a kernel ends the process"
)
def test_a_wrong_head_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="multiple of 16"):
        kernels.paged_attention(*paged_case((torch.float32, torch.float32), 24, 2, 2, 16), 1.0, 0)
