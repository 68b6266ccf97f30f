"""Triton's paged decode against the reference, and bitwise: in any company, and however its work is shared out."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lightvllm.kernels import reference
from lightvllm.kernels.triton import paged_decode as module
from lightvllm.kernels.triton.paged_decode import paged_decode
from tests.kernels.gpu.conftest import HAS_CUDA, cuda_only
from tests.kernels.test_paged_attention import Types, paged_case, poison

# The interpreter's products of bfloat16 are wrong.
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_CUDA else [])]
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = [1, 33, 257, 600]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def decode_case(
    types: Types, head_dim: int, heads: int, kv_heads: int, block_size: int, lengths: list[int], device: str
) -> list[Tensor]:
    """Queries, caches, block table and lengths as `paged_decode` takes them."""
    *tensors, _, seq_lens = paged_case(
        types, head_dim, heads, kv_heads, block_size, [(1, length) for length in lengths]
    )
    return [*(x.to(device) for x in tensors), seq_lens.int().to(device)]


def expected(case: list[Tensor], scale: float, window: int) -> Tensor:
    *tensors, seq_lens = case
    return reference.paged_attention(*tensors, torch.ones_like(seq_lens), seq_lens, scale, window)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window"),
    [
        (4, 4, 16, 4, 0),
        (2, 1, 128, 16, 400),
        (6, 2, 80, 5, 20),
        (16, 1, 64, 256, 0),
        (20, 1, 32, 1, 1),
        (2, 2, 256, 16, 300),
    ],
)
def test_paged_decode(
    dtype: torch.dtype,
    is_int8: bool,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    device: str,
) -> None:
    types = (dtype, torch.int8 if is_int8 else dtype)
    case = decode_case(types, head_dim, heads, kv_heads, block_size, LENGTHS, device)
    actual = paged_decode(*case, max(LENGTHS), 0.2, window)
    assert_close(actual, expected(case, 0.2, window))


def test_no_decodes(device: str) -> None:
    case = decode_case((torch.float32, torch.float32), 32, 2, 2, 16, [3], device)
    query, *caches, table, seq_lens = case
    assert paged_decode(query[:0], *caches, table[:0], seq_lens[:0], 10, 1.0, 0).shape == (0, 2, 32)


@pytest.mark.parametrize("dtype", TYPES)
def test_large_scores_choose_one_key(dtype: torch.dtype, device: str) -> None:
    case = decode_case((dtype, dtype), 32, 4, 2, 16, LENGTHS, device)
    case[0] = (case[0] * 10).round()  # exact products, so that rounding makes no other choice
    case[1] = (case[1] * 10).round()
    assert_close(paged_decode(*case, 600, 1e3, 0), expected(case, 1e3, 0))


@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("window", [0, 40])
def test_what_a_request_does_not_see_may_be_anything(is_int8: bool, window: int, device: str) -> None:
    """Slots behind the sequence, keys before the window, and blocks past the request's last."""
    types = (torch.float16, torch.int8 if is_int8 else torch.float16)
    case = decode_case(types, 32, 4, 2, 16, LENGTHS, device)
    _, key, value, table, _ = case
    clean = paged_decode(*case, 600, 0.2, window)
    for i, length in enumerate(LENGTHS):
        last = (length - 1) // 16
        hidden = [
            (table[i, last], slice((length - 1) % 16 + 1, None)),
            *((b, slice(None)) for b in table[i, last + 1 :]),
        ]
        if window:
            hidden += [(b, slice(None)) for b in table[i, : max(0, length - window) // 16]]
        for block, slots in hidden:
            poison(key[block, slots])
            poison(value[block, slots])
    assert torch.equal(paged_decode(*case, 600, 0.2, window), clean)


@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("broken", [0, 1], ids=["key", "value"])
def test_a_broken_head_breaks_those_who_see_it(is_int8: bool, broken: int, device: str) -> None:
    """In one of several splits, which the others do not hide."""
    types = (torch.float16, torch.int8 if is_int8 else torch.float16)
    case = decode_case(types, 32, 4, 2, 16, LENGTHS, device)
    clean = paged_decode(*case, 600, 0.2, 0)
    poison(case[1 + broken][case[3][3, 200 // 16], 200 % 16, 1])
    actual = paged_decode(*case, 600, 0.2, 0)
    assert actual[3, 2:].isnan().all()
    assert torch.equal(actual[3, :2], clean[3, :2])
    assert torch.equal(actual[:3], clean[:3])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 300])
def test_a_request_is_bitwise_the_same_in_any_company(
    dtype: torch.dtype, window: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in a batch, for any `max_seq_len`, and with any number of programs to a request."""
    case = decode_case((dtype, dtype), 48, 6, 2, 16, LENGTHS, device)
    query, key, value, table, seq_lens = case
    together = paged_decode(*case, 600, 0.2, window)
    for i, length in enumerate(LENGTHS):
        one = slice(i, i + 1)
        alone = paged_decode(query[one], key, value, table[one], seq_lens[one], length, 0.2, window)
        assert torch.equal(alone, together[one])
    for max_seq_len, programs in ((600, 1), (40_960, 2 * 2 * len(LENGTHS)), (40_960, 10**6)):
        monkeypatch.setattr(module, "ENOUGH_PROGRAMS", programs)
        assert torch.equal(paged_decode(*case, max_seq_len, 0.2, window), together)


def test_arrivals_are_left_as_they_were(device: str) -> None:
    case = decode_case((torch.float16, torch.float16), 32, 4, 2, 16, LENGTHS, device)
    arrivals = torch.zeros(len(LENGTHS), 2, dtype=torch.int32, device=device)
    results = [paged_decode(*case, 600, 0.2, 0, arrivals) for _ in range(2)]
    assert not arrivals.any()
    assert torch.equal(*results)


def test_queries_may_be_a_part_of_a_wider_product(device: str) -> None:
    """As rotary_qkv leaves them: rows of the query, key and value heads."""
    case = decode_case((torch.float16, torch.float16), 32, 4, 2, 16, LENGTHS, device)
    wide = torch.randn(len(LENGTHS), 8, 32, device=device).half()
    wide[:, :4] = case[0]
    assert torch.equal(paged_decode(wide[:, :4], *case[1:], 600, 0.2, 0), paged_decode(*case, 600, 0.2, 0))


@cuda_only
def test_a_captured_graph_serves_other_lengths(device: str) -> None:
    types = torch.bfloat16, torch.bfloat16
    query, key, value, table, seq_lens = decode_case(types, 128, 8, 2, 16, [600] * 4, device)
    arrivals = torch.zeros(4, 2, dtype=torch.int32, device=device)
    paged_decode(query, key, value, table, seq_lens, 40_960, 0.1, 0, arrivals)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = paged_decode(query, key, value, table, seq_lens, 40_960, 0.1, 0, arrivals)
    for lengths in (LENGTHS, LENGTHS[::-1], [1] * 4):
        seq_lens.copy_(torch.tensor(lengths))
        query.normal_()
        table.copy_(table.flatten()[torch.randperm(table.numel(), device=device)].view_as(table))
        graph.replay()
        assert_close(output, expected([query, key, value, table, seq_lens], 0.1, 0))
