"""Every backend that gets its batch from the host, against the reference: random batches, windows, head counts."""

from importlib import import_module

import numpy as np
import pytest
import torch

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.kernel import ReferenceAttention
from lightvllm.attention.paged import LayerCache, PagedBatch
from lightvllm.attention.registry import BACKENDS, ON_GPU
from lightvllm.kernels.reference import round_heads

BLOCK_SIZE = 4


def random_batch(rng: np.random.Generator, num_requests: int) -> tuple[PagedBatch, int]:
    """Requests with random contexts, their blocks scattered, the last two sharing their first block."""
    query_lens = rng.choice([1, 1, 2, 5, 9], size=num_requests)
    seq_lens = query_lens + rng.choice([0, 1, 3, 4, 8, 30], size=num_requests)
    num_blocks = -(-seq_lens // BLOCK_SIZE)
    ids = rng.permutation(num_blocks.sum())
    block_table = np.zeros((num_requests, num_blocks.max()), dtype=np.int32)
    slots = []
    for i, start in enumerate(np.cumsum(num_blocks) - num_blocks):
        block_table[i, : num_blocks[i]] = ids[start : start + num_blocks[i]]
        positions = np.arange(seq_lens[i] - query_lens[i], seq_lens[i])
        slots.append(block_table[i, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE)
    return PagedBatch(query_lens, seq_lens, block_table, np.concatenate(slots)), int(num_blocks.sum())


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in (*ON_GPU, "reference")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("sliding_window", [None, 1, 6])
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
def test_backend_equals_reference(
    backend: str,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    sliding_window: int | None,
    is_int8: bool,
) -> None:
    module, name = BACKENDS[backend]
    backend_class = getattr(import_module(module), name)
    rng = np.random.default_rng(num_heads * 10 + num_kv_heads)
    torch.manual_seed(0)
    layer = AttentionLayer(1, num_heads, num_kv_heads, 16, 0.3, sliding_window)
    for num_requests in (1, 2, 7, 20):
        batch, num_blocks = random_batch(rng, num_requests)
        shape = (num_blocks, BLOCK_SIZE, num_kv_heads, 16)
        numbers = [torch.randn(shape).to(dtype) for _ in range(4)]
        if is_int8:
            numbers = [round_heads(x) for x in numbers]
        cache = [LayerCache(*numbers[:2]), LayerCache(*numbers[2:])]
        copy = [LayerCache(layer.key.clone(), layer.value.clone()) for layer in cache]
        num_tokens = int(batch.query_lens.sum())
        query = torch.randn(num_tokens, num_heads, 16).to(dtype)
        key, value = (torch.randn(num_tokens, num_kv_heads, 16).to(dtype) for _ in range(2))
        expected = ReferenceAttention(cache, batch).attend(layer, query, key, value)
        actual = backend_class(copy, batch).attend(layer, query, key, value)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        for mine, theirs in zip(copy, cache, strict=True):
            assert torch.equal(mine.key, theirs.key)
            assert torch.equal(mine.value, theirs.value)


def test_reference_equals_plain_softmax() -> None:
    """The oracle itself, against attention over whole sequences without a cache."""
    torch.manual_seed(0)
    layer = AttentionLayer(0, 2, 2, 8, 0.5)
    query, key, value = (torch.randn(6, 2, 8) for _ in range(3))
    cache = [LayerCache(torch.zeros(3, BLOCK_SIZE, 2, 8), torch.zeros(3, BLOCK_SIZE, 2, 8))]
    slots = np.array([8, 9, 10, 11, 0, 1])
    batch = PagedBatch(np.array([6]), np.array([6]), np.array([[2, 0]]), slots)
    actual = ReferenceAttention(cache, batch).attend(layer, query, key, value)
    expected = torch.empty(6, 2, 8)
    for head in range(2):
        for i in range(6):
            weights = ((key[: i + 1, head] @ query[i, head]) * 0.5).softmax(0)
            expected[i, head] = weights @ value[: i + 1, head]
    torch.testing.assert_close(actual, expected.flatten(1))
