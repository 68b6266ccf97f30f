"""Triton's most likely tokens against the reference: ties, infinities, NaN, sizes and strides."""

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import gpu, reference
from tests.kernels.gpu.conftest import cuda_only

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(logits: Tensor) -> Tensor:
    actual = gpu.triton_twin("most_likely")(logits)
    assert torch.equal(actual, reference.most_likely(logits))
    return actual


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 17, 8193])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_most_likely_of_random_logits(device: str, dtype: torch.dtype, size: int, rows: int) -> None:
    """Of 50,000 numbers in bfloat16 many are equal: the first of the largest counts."""
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size))
    check(logits.to(device).to(dtype))


@cuda_only
@pytest.mark.parametrize("rows", [1, 7, 256, 2000])
def test_most_likely_of_a_vocabulary(device: str, rows: int) -> None:
    check(torch.randn(rows, 151_936, device=device).bfloat16())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [5, 40, 20_000])
def test_ties_and_what_is_not_finite(device: str, dtype: torch.dtype, size: int) -> None:
    inf, nan = float("inf"), float("nan")
    for first, second in [(0, size - 1), (1, size // 2), (size - 1, size - 1), (size // 2, size - 2)]:
        logits = torch.full((7, size), -3.0).to(dtype)
        logits[0, [first, second]] = 5.0
        logits[1, [first, second]] = torch.tensor([-inf, inf]).to(dtype)
        logits[2, [first, second]] = torch.tensor([nan, inf]).to(dtype)
        logits[3, [second, first]] = torch.tensor([9.0, nan]).to(dtype)
        logits[4] = -inf
        logits[5] = -inf
        logits[5, second] = -1e4
        logits[6] = nan
        assert check(logits.to(device)).tolist() == [min(first, second), -1, -1, -1, -1, second, -1]


def test_most_likely_of_rows_that_are_not_neighbours(device: str) -> None:
    check(torch.randn(6, 100, device=device)[::2, 10:77])
