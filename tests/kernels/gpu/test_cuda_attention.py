"""The compiled CUDA attention against the reference: types, heads, groups, windows, blocks, splits, int8, graphs."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import gpu, reference
from tests.kernels.test_paged_attention import paged_case, poison

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if not gpu.load_compiled():
    pytest.skip("the CUDA kernels were not built", allow_module_level=True)

ops = torch.ops.lightvllm_cuda
TYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DECODES = [(1, n) for n in (1, 2, 15, 16, 17, 64, 65, 257, 1000, 2049)]
CHUNKS = [(1, 2), (9, 9), (1, 33), (40, 300), (5, 130), (1, 257)]


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device("cuda"):
        yield


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def v1(case: list[Tensor], scale: float, window: int) -> Tensor:
    *tensors, query_lens, seq_lens = case
    starts = torch.nn.functional.pad(query_lens.cumsum(0), (1, 0)).int()
    return ops.paged_attention_v1(*tensors, starts, seq_lens.int(), scale, window)


def v2(case: list[Tensor], scale: float, window: int, max_seq_len: int | None = None) -> Tensor:
    *tensors, _, seq_lens = case
    return ops.paged_attention_v2(*tensors, seq_lens.int(), max_seq_len or int(seq_lens.max()), scale, window)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (16, 1)])
@pytest.mark.parametrize("head_dim", [16, 30, 64, 80, 112, 128, 256])
@pytest.mark.parametrize("window", [0, 20, 1000])
def test_v1(dtype: torch.dtype, is_int8: bool, heads: int, kv_heads: int, head_dim: int, window: int) -> None:
    """Decodes and chunks alike, each token for itself."""
    types = (dtype, torch.int8 if is_int8 else dtype)
    case = paged_case(types, head_dim, heads, kv_heads, 16 if window else 5, CHUNKS)
    scale = head_dim**-0.5
    assert_close(v1(case, scale, window), reference.paged_attention(*case, scale, window))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        (2, 2, 16),
        (4, 4, 64),
        (6, 2, 112),
        (4, 4, 128),
        (6, 2, 128),
        (8, 2, 128),
        (8, 1, 256),
        (16, 1, 128),
        (20, 1, 64),
    ],
)
@pytest.mark.parametrize("window", [0, 1, 20, 700])
def test_v2(dtype: torch.dtype, is_int8: bool, heads: int, kv_heads: int, head_dim: int, window: int) -> None:
    """With the context cut into as many parts as a longer one would be, and left whole."""
    types = (dtype, torch.int8 if is_int8 else dtype)
    case = paged_case(types, head_dim, heads, kv_heads, 16 if window else 5, DECODES)
    expected = reference.paged_attention(*case, head_dim**-0.5, window)
    for max_seq_len in (None, 256, 100_000):
        assert_close(v2(case, head_dim**-0.5, window, max_seq_len), expected)


@pytest.mark.parametrize("attend", [v1, v2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_queries_and_tables(attend, dtype: torch.dtype) -> None:
    """Queries are a slice of what rotary_qkv gives; a graph's block table is wider than its step's."""
    query, keys, values, table, query_lens, seq_lens = paged_case((dtype, dtype), 128, 8, 2, 16, DECODES)
    wide = torch.randn(len(query), 12, 128, dtype=dtype)
    wide[:, :8] = query
    room = torch.full((len(table), table.shape[1] + 3), -1, dtype=torch.int32)
    room[:, : table.shape[1]] = table
    case = [wide[:, :8], keys, values, room[:, : table.shape[1]], query_lens, seq_lens]
    assert_close(attend(case, 0.1, 0), reference.paged_attention(*case, 0.1, 0))


@pytest.mark.parametrize("attend", [v1, v2])
@pytest.mark.parametrize("dtype", TYPES)
def test_large_scores(attend, dtype: torch.dtype) -> None:
    """Scores far beyond exp's range: the softmax is a choice of one key, not a nan."""
    case = paged_case((dtype, dtype), 128, 8, 2, 16, DECODES)
    actual, expected = attend(case, 1e3, 0), reference.paged_attention(*case, 1e3, 0)
    assert actual.isfinite().all()
    # Two keys may come so close that rounding the product decides between them.
    wrong = (actual.float() - expected.float()).abs().amax(-1) > 2e-2
    assert wrong.float().mean() < 0.05


@pytest.mark.parametrize("attend", [v1, v2])
@pytest.mark.parametrize("types", [(x, y) for x in TYPES for y in (x, torch.int8)], ids=str)
def test_what_lies_behind_the_sequence_is_ignored(attend, types: tuple[torch.dtype, torch.dtype]) -> None:
    """A block's unused slots may hold anything, another request's nan included."""
    case = paged_case(types, 128, 8, 2, 16, DECODES)
    _, key, value, table, _, seq_lens = case
    expected = attend(case, 0.2, 0)
    for i, seq_len in enumerate(seq_lens.tolist()):
        block = table[i, (seq_len - 1) // 16]
        poison(key[block, (seq_len - 1) % 16 + 1 :])
        poison(value[block, (seq_len - 1) % 16 + 1 :])
    assert torch.equal(attend(case, 0.2, 0), expected)


@pytest.mark.parametrize("attend", [v1, v2])
def test_no_tokens(attend) -> None:
    case = paged_case((torch.bfloat16, torch.bfloat16), 128, 8, 2, 16, [(1, 5)])
    case[0], case[3], case[4], case[5] = case[0][:0], case[3][:0], case[4][:0], case[5][:0]
    assert v1(case, 0.2, 0).shape == (0, 8, 128) if attend is v1 else v2(case, 0.2, 0, 5).shape == (0, 8, 128)


@pytest.mark.parametrize("is_v2", [False, True])
def test_in_a_graph(is_v2: bool) -> None:
    """Lengths and blocks are read when the graph runs; a launch is made for the longest."""
    case = paged_case((torch.bfloat16, torch.bfloat16), 128, 8, 2, 16, DECODES)
    *tensors, query_lens, seq_lens = case
    lens = torch.ones_like(seq_lens).int()

    def run() -> Tensor:
        if is_v2:
            return ops.paged_attention_v2(*tensors, lens, 4096, 0.1, 0)
        return ops.paged_attention_v1(*tensors, None, lens, 0.1, 0)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = run()
    lens.copy_(seq_lens)
    tensors[0].copy_(tensors[0].flip(0))
    graph.replay()
    assert_close(actual, reference.paged_attention(*tensors, query_lens, seq_lens, 0.1, 0))
