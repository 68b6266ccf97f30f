"""Triton's products with quantized weights against the product in float64 with the weight that they stand for."""

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import gpu
from tests.kernels.gpu.conftest import cuda_only

TYPES = [torch.float32, torch.float16, torch.bfloat16]
# 16 levels of NF4 and the like need not be in order, nor all different.
CODEBOOK = torch.tensor([0, 255, 38, 61, 79, 97, 112, 128, 128, 138, 149, 160, 184, 201, 220, 254], dtype=torch.uint8)
SCHEMES = [(8, 0), (8, 64), (4, 32), (4, 128), (4, 8), (4, 0)]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest, device: str) -> torch.dtype:
    if request.param == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter's products in bfloat16 are wrong")
    return request.param


class Weight:
    """A quantized weight on both sides: packed, and as the numbers it means; its values reach both ends."""

    def __init__(
        self, device: str, outputs: int, inputs: int, bits: int, group_size: int, zeros: bool, codebook: bool = False
    ) -> None:
        self.bits, self.group_size, self.outputs = bits, group_size or inputs, outputs
        values = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8)
        scales = torch.rand(outputs, -(-inputs // self.group_size)) / 2**bits
        self.codebook = CODEBOOK.to(device) if codebook else None
        highest = 256 if codebook else 2**bits
        points = torch.randint(0, highest, scales.shape, dtype=torch.int32) if zeros else None
        middle = torch.full_like(scales, highest // 2) if points is None else points
        numbers = CODEBOOK[values.int()] if codebook else values
        scale, zero = (part.repeat_interleave(self.group_size, 1)[:, :inputs] for part in (scales, middle))
        self.exact = (scale.double() * (numbers - zero)).to(device)
        self.packed = gpu.triton_twin("pack_quantized")(values.to(device), bits)
        self.scales, self.zeros = (
            part if part is None else gpu.triton_twin("pack_groups")(part.to(device)) for part in (scales, points)
        )

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return gpu.triton_twin("quantized_linear")(
            x, self.packed, self.scales, self.zeros, self.codebook, bias, self.bits, self.group_size, self.outputs
        )

    def check(self, x: Tensor, bias: Tensor | None = None) -> None:
        y = self.product(x, bias)
        expected = x.double() @ self.exact.T + (0 if bias is None else bias.double())
        assert (y.dtype, y.shape) == (x.dtype, expected.shape)
        if y.numel():
            # Of many rows the weight too is rounded to the type.
            tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[x.dtype]
            assert (y - expected).norm() < tolerance * expected.norm()
            assert (y - expected).abs().max() < 4 * tolerance * expected.abs().max()


@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 64), (3, 328, 70), (17, 1024, 33), (513, 200, 40)])
def test_quantized(device: str, dtype: torch.dtype, bits: int, group_size: int, rows: int, inputs: int, outputs: int):
    """Sizes that tiles do and do not divide, with a bias or none."""
    x = torch.randn(rows, inputs, device=device).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    Weight(device, outputs, inputs, bits, group_size, zeros=True).check(x, bias)
    Weight(device, outputs, inputs, bits, group_size, zeros=False).check(x)
    if bits == 4:
        Weight(device, outputs, inputs, bits, group_size, zeros=False, codebook=True).check(x)
        Weight(device, outputs, inputs, bits, group_size, zeros=True, codebook=True).check(x, bias)


@cuda_only
@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 64, 200, 511, 1024])
def test_quantized_at_real_sizes(device: str, dtype: torch.dtype, bits: int, group_size: int, rows: int) -> None:
    x = torch.randn(rows, 4096, device=device).to(dtype)
    for outputs in (1024, 6144):
        Weight(device, outputs, 4096, bits, group_size, zeros=rows % 2 == 0).check(x)


def test_no_rows_and_rows_that_lie_apart(device: str) -> None:
    weight = Weight(device, 40, 100, 4, 32, zeros=False)
    assert weight.product(torch.randn(0, 100, device=device), None).shape == (0, 40)
    wide = torch.randn(9, 300, device=device)
    assert torch.equal(weight.product(wide[:, 7:107], None), weight.product(wide[:, 7:107].contiguous(), None))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row(device: str, value: float) -> None:
    for bits in (8, 4):
        x = torch.randn(8, 300, device=device)
        x[3, 170] = value
        finite = Weight(device, 70, 300, bits, 0, zeros=False).product(x, None).isfinite()
        assert finite.all(dim=1).tolist() == [True] * 3 + [False] + [True] * 4
