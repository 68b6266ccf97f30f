"""The op that finds the most likely tokens against its reference: ties, infinities, NaN, sizes and strides."""

import pytest
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.kernels import reference
from tests.kernels.test_ops import TYPES

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")


def check(logits: Tensor) -> Tensor:
    with torch.inference_mode():
        actual = kernels.most_likely(logits)
    assert torch.equal(actual, reference.most_likely(logits))
    return actual


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 300, 8192, 8193, 50_000])
@pytest.mark.parametrize("rows", [0, 1, 3, 20])
def test_random_logits(dtype: torch.dtype, size: int, rows: int) -> None:
    """Of 50,000 numbers in bfloat16 many are equal: the first of the largest counts."""
    check(torch.randn(rows, size, generator=torch.Generator().manual_seed(size)).to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [5, 40, 20_000])
def test_ties_and_what_is_not_finite(dtype: torch.dtype, size: int) -> None:
    inf, nan = float("inf"), float("nan")
    for first, second in [(0, size - 1), (1, size // 2), (size - 1, size - 1), (size // 2, size - 2)]:
        logits = torch.full((7, size), -3.0).to(dtype)
        logits[0, [first, second]] = 5.0
        logits[1, [first, second]] = torch.tensor([-inf, inf]).to(dtype)
        logits[2, [first, second]] = torch.tensor([nan, inf]).to(dtype)
        logits[3, [second, first]] = torch.tensor([9.0, nan]).to(dtype)
        logits[4] = -inf
        logits[5] = -inf
        logits[5, second] = -1e30
        logits[6] = nan
        assert check(logits).tolist() == [min(first, second), -1, -1, -1, -1, second, -1]


def test_rows_that_are_not_neighbours() -> None:
    check(torch.randn(6, 100)[::2, 10:77])
