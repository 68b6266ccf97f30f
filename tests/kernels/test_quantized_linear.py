"""Products with quantized weights against their reference: bits, groups, zero points, codebooks, extreme inputs."""

import pytest
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.kernels import reference, round_weight
from lightvllm.quantization.product import QuantizedProduct
from tests.kernels.test_linear import SHAPES, TYPES, assert_close

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")

# 16 levels of NF4 and the like need not be in order, nor all different.
CODEBOOK = torch.tensor([0, 255, 38, 61, 79, 97, 112, 128, 128, 138, 149, 160, 184, 201, 220, 254], dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def quantized(
    bits: int, group_size: int, inputs: int, outputs: int, has_zeros: bool, codebook: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, int, int, Tensor | None]:
    """What `QuantizedProduct` takes; values reach both ends of their range."""
    values = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8)
    scales = torch.rand(outputs, -(-inputs // group_size))
    zeros = torch.randint(0, 2**bits if codebook is None else 256, scales.shape, dtype=torch.int32)
    return values, scales, zeros if has_zeros else None, bits, group_size, codebook


def expected(x: Tensor, weight: tuple, bias: Tensor | None = None) -> Tensor:
    """By the reference."""
    values, scales, zeros, bits, group_size, codebook = weight
    return reference.quantized_linear(x, values, scales, zeros, codebook, bias, bits, group_size, len(values))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("bits", "group_size"), [(8, 0), (8, 64), (4, 32), (4, 128), (4, 8), (4, 0)])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_quantized(dtype: torch.dtype, bits: int, group_size: int, rows: int, inputs: int, outputs: int) -> None:
    x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs).to(dtype)
    for has_zeros in (False, True):
        for codebook in (None, CODEBOOK) if bits == 4 else (None,):
            weight = quantized(bits, group_size or inputs, inputs, outputs, has_zeros, codebook)
            assert_close(QuantizedProduct(*weight)(x, bias), expected(x, weight, bias))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("rows", [1, 6, 9])
def test_the_largest_sums(value: int, rows: int) -> None:
    """Inputs of 127 and -127 only, by weights at the end of their range: nothing saturates or overflows."""
    x = torch.randint(0, 2, (rows, 4096)).float() * 2 - 1
    x[0] = 1
    for bits, codebook in ((8, None), (4, None), (4, CODEBOOK[[0, 1] * 8])):
        values = torch.full((64, 4096), value if bits == 8 else value // 17, dtype=torch.uint8)
        zeros = torch.randint(0, 16, (64, 1), dtype=torch.int32)
        weight = (values, torch.ones(64, 1), zeros, bits, 4096, codebook)
        q = values.double() if codebook is None else codebook[values.int()].double()
        assert_close(QuantizedProduct(*weight)(x, None), (x.double() @ (q - zeros).T).float())


def test_an_outlier_spoils_its_group_alone() -> None:
    """Inputs are rounded by each group's largest: beside 100,000 the others of a row would be nothing."""
    values, scales, *others = quantized(4, 32, 128, 64, False)
    scales[:, 0] = 0
    x = torch.randn(3, 128)
    exact = x @ ((values.float() - 8) * scales.repeat_interleave(32, dim=1)).T
    x[:, 5] = 1e5
    assert (QuantizedProduct(values, scales, *others)(x, None) - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("scale", [0.0, 1e-39, 1e-30, 1e30])
def test_extreme_rows(scale: float) -> None:
    for bits, group_size in ((8, 64), (4, 32)):
        weight = quantized(bits, group_size, 64, 64, False)
        x = torch.randn(3, 64) * torch.tensor([[1.0], [scale], [1.0]])
        for actual_row, expected_row in zip(QuantizedProduct(*weight)(x, None), expected(x, weight), strict=True):
            assert_close(actual_row, expected_row)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    for bits in (8, 4):
        x = torch.randn(8, 300)
        x[3, 170] = value
        finite = QuantizedProduct.round(torch.randn(70, 300), bits)(x, None).isfinite()
        assert finite.all(dim=1).tolist() == [True] * 3 + [False] + [True] * 4
        assert not finite[3].any()


def test_rounding_keeps_what_it_can() -> None:
    weight = torch.randn(10, 300)
    for bits, group_size, worst in ((8, 300, 0.02), (4, 128, 0.35)):
        values, scales = round_weight(weight, bits, group_size)
        restored = (values.float() - 2 ** (bits - 1)) * scales.repeat_interleave(group_size, dim=1)[:, :300]
        assert (restored - weight).abs().max() < worst
        assert int(values.max()) < 2**bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("bits", "group_size"), [(8, 333), (8, 64), (4, 32), (4, 128)])
def test_rounding_is_bitwise_its_reference(dtype: torch.dtype, bits: int, group_size: int) -> None:
    weight = torch.randn(70, 333).to(dtype)
    weight[3], weight[4, :64], weight[5] = 0, 0, torch.arange(333) / 256  # nothing to round, and ties
    for mine, theirs in zip(
        round_weight(weight, bits, group_size), reference.round_weight(weight, bits, group_size), strict=True
    ):
        assert torch.equal(mine, theirs)
