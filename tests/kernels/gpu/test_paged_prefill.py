"""Triton's paged prefill against the reference, and bitwise: each token as a decode of its own, and in any company.

On a Hopper GPU head sizes of 64 and 128 in 16-bit types run another kernel than the rest.
"""

from itertools import accumulate

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lightvllm.kernels import reference
from lightvllm.kernels.triton.paged_prefill import paged_prefill
from tests.kernels.gpu.test_paged_decode import TYPES, assert_close
from tests.kernels.test_paged_attention import Types, paged_case, poison

BATCH = [(5, 5), (3, 70), (1, 40), (40, 130), (9, 9)]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def prefill_case(
    types: Types,
    head_dim: int,
    heads: int,
    kv_heads: int,
    block_size: int,
    device: str,
    batch: list[tuple[int, int]] = BATCH,
) -> list[Tensor]:
    """Queries, caches, block table, starts and lengths as `paged_prefill` takes them."""
    *tensors, query_lens, seq_lens = paged_case(types, head_dim, heads, kv_heads, block_size, batch)
    starts = torch.tensor([0, *accumulate(query_lens.tolist())])
    return [*(x.to(device) for x in tensors), starts.int().to(device), seq_lens.int().to(device)]


def expected(case: list[Tensor], scale: float, window: int) -> Tensor:
    *tensors, starts, seq_lens = case
    return reference.paged_attention(*tensors, starts.diff(), seq_lens, scale, window)


def tokens_alone(case: list[Tensor], scale: float, window: int) -> Tensor:
    """Each token of each request as a chunk of one token."""
    query, key, value, table, starts, seq_lens = case
    query_lens = starts.diff()
    positions = [range(seq - num, seq) for num, seq in zip(query_lens.tolist(), seq_lens.tolist(), strict=True)]
    lengths = torch.tensor([position + 1 for request in positions for position in request])
    tables = table.repeat_interleave(query_lens, dim=0)
    starts = torch.arange(len(query) + 1)
    return paged_prefill(
        query, key, value, tables, starts.int().to(query.device), lengths.int().to(query.device), 1, scale, window
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window"),
    [
        (4, 4, 16, 4, 0),
        (2, 1, 128, 16, 20),
        (6, 2, 80, 5, 0),
        (16, 1, 64, 256, 1),
        (20, 1, 32, 1, 100),
        (2, 2, 256, 16, 50),
        (6, 2, 128, 8, 0),
        (4, 1, 64, 32, 30),
    ],
)
def test_paged_prefill(
    dtype: torch.dtype,
    is_int8: bool,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    device: str,
) -> None:
    case = prefill_case((dtype, torch.int8 if is_int8 else dtype), head_dim, heads, kv_heads, block_size, device)
    assert_close(paged_prefill(*case, 40, 0.2, window), expected(case, 0.2, window))


@pytest.mark.parametrize("types", [(torch.float16, torch.float16), (torch.float16, torch.int8)], ids=str)
@pytest.mark.parametrize(("head_dim", "window"), [(48, 0), (64, 0), (64, 30)])
def test_a_token_is_bitwise_the_same_as_a_decode(types: Types, head_dim: int, window: int, device: str) -> None:
    """And as a chunk of any other size, therefore, and in any company."""
    case = prefill_case(types, head_dim, 6, 2, 16, device)
    assert torch.equal(tokens_alone(case, 0.2, window), paged_prefill(*case, 40, 0.2, window))


def test_more_room_than_tokens_changes_nothing(device: str) -> None:
    case = prefill_case((torch.float16, torch.float16), 32, 4, 2, 16, device)
    assert torch.equal(paged_prefill(*case, 300, 0.2, 0), paged_prefill(*case, 40, 0.2, 0))


@pytest.mark.parametrize("head_dim", [32, 64])
def test_what_lies_behind_a_sequence_may_be_anything(head_dim: int, device: str) -> None:
    case = prefill_case((torch.float16, torch.float16), head_dim, 4, 2, 16, device)
    _, key, value, table, _, seq_lens = case
    clean = paged_prefill(*case, 40, 0.2, 0)
    for i, seq_len in enumerate(seq_lens.tolist()):
        last = (seq_len - 1) // 16
        poison(key[table[i, last], (seq_len - 1) % 16 + 1 :])
        poison(value[table[i, last], (seq_len - 1) % 16 + 1 :])
        for block in table[i, last + 1 :]:
            poison(key[block])
            poison(value[block])
    assert torch.equal(paged_prefill(*case, 40, 0.2, 0), clean)


@pytest.mark.parametrize("broken", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("window", [0, 10])
def test_a_broken_head_of_an_int8_cache_breaks_those_who_see_it(broken: int, window: int, device: str) -> None:
    case = prefill_case((torch.float16, torch.int8), 32, 4, 2, 16, device, [(40, 130)])
    clean = paged_prefill(*case, 40, 0.2, window)
    poison(case[1 + broken][case[3][0, 100 // 16], 100 % 16, 1])
    actual = paged_prefill(*case, 40, 0.2, window)
    positions = torch.arange(90, 130, device=device)
    sees = (positions >= 100) & ((positions < 100 + window) | (window == 0))
    assert actual[sees][:, 2:].isnan().all()
    assert torch.equal(actual[:, :2], clean[:, :2])
    assert torch.equal(actual[~sees], clean[~sees])


@pytest.mark.parametrize("head_dim", [32, 64])
def test_long_chunks(head_dim: int, device: str) -> None:
    """Several programs to a chunk, and tiles that need no mask, more than there is room for at a time."""
    case = prefill_case((torch.float16, torch.float16), head_dim, 4, 1, 16, device, [(150, 700), (70, 70)])
    assert_close(paged_prefill(*case, 150, 0.2, 0), expected(case, 0.2, 0))
