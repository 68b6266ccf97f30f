"""Products with packed weights against their reference; a row knows nothing of its company."""

import pytest
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.kernels import reference
from lightvllm.layers.linear import Linear, PackedProduct
from lightvllm.quantization.product import QuantizedProduct

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")

TYPES = [torch.float32, torch.bfloat16]
# Rows around the micro-kernel's six; sizes around panels of 64 outputs and groups of 2, 4, 8 and 128 inputs.
SHAPES = [(1, 64, 64), (2, 1, 1), (3, 65, 70), (4, 30, 66), (5, 2, 63), (6, 130, 129), (7, 128, 200), (13, 333, 65)]
SHAPES += [(32, 1024, 192), (0, 16, 16), (100, 40, 64), (130, 40, 66)]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-2
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed(dtype: torch.dtype, rows: int, inputs: int, outputs: int, has_bias: bool) -> None:
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if has_bias else None
    expected = reference.packed_linear(x.double(), weight.double(), None if bias is None else bias.double(), outputs)
    assert_close(PackedProduct(weight)(x, bias), expected.to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_packed_takes_rows_that_are_a_slice(dtype: torch.dtype) -> None:
    wide, weight = torch.randn(9, 300).to(dtype), torch.randn(80, 101).to(dtype)
    for start in (0, 1, 64):
        x = wide[:, start : start + 100]
        product = PackedProduct(weight[:, :100].contiguous())
        assert torch.equal(product(x, None), product(x.contiguous(), None))
        x = wide[:, start : start + 101]
        assert torch.equal(PackedProduct(weight)(x, None), PackedProduct(weight)(x.contiguous(), None))


def test_an_infinity_stays_in_its_row() -> None:
    x = torch.randn(8, 128)
    x[3, 5] = torch.inf
    finite = PackedProduct(torch.randn(70, 128))(x, None).isfinite().all(dim=1)
    assert finite.tolist() == [True] * 3 + [False] + [True] * 4


def products(dtype: torch.dtype) -> list[object]:
    weight = torch.randn(200, 384).to(dtype)
    coded = QuantizedProduct(
        torch.randint(0, 16, (200, 384), dtype=torch.uint8),
        torch.rand(200, 12),
        torch.randint(0, 256, (200, 12), dtype=torch.int32),
        4,
        32,
        torch.randint(0, 256, (16,), dtype=torch.uint8),
    )
    return [PackedProduct(weight), QuantizedProduct.round(weight, 8), QuantizedProduct.round(weight, 4), coded]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_is_bitwise_the_same_in_any_company(dtype: torch.dtype) -> None:
    x = torch.randn(140, 384).to(dtype)
    for product in products(dtype):
        whole = product(x, None)
        for count in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 32, 33, 64, 128, 129):
            assert torch.equal(product(x[:count], None), whole[:count]), count
            assert torch.equal(product(x[140 - count :], None), whole[140 - count :]), count


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    x = torch.randn(9, 384).to(dtype)
    try:
        for product in products(dtype):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(product(x, None))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


def test_a_layer_lets_its_weight_go_when_it_is_packed() -> None:
    layer = Linear(64, [32, 32], bias=True)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 64)
    plain = layer(x)
    layer.pack()
    assert layer.weight is None
    assert_close(layer(x), plain)
