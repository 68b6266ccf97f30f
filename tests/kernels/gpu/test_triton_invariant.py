"""Products, norms and log-probabilities that are bitwise the same in any company; against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from lightvllm.kernels.triton.invariant import linear, log_softmax
from lightvllm.kernels.triton.norms import add_rms_norm, rms_norm
from tests.kernels.gpu.conftest import cuda_only

TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest, device: str) -> torch.dtype:
    if request.param == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter's products in bfloat16 are wrong")
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 16, 16), (1, 64, 70), (5, 1030, 33), (67, 600, 130)])
def test_linear(device: str, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for added in (bias, None):
        expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
        actual = linear(x, weight, added)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * inputs**0.5)
    wide = torch.randn(rows, inputs + 9, device=device).to(dtype)
    assert torch.equal(linear(wide[:, 4:-5], weight), linear(wide[:, 4:-5].contiguous(), weight))


def test_an_infinity_stays_in_its_row(device: str) -> None:
    x = torch.randn(8, 128, device=device)
    x[3, 5] = torch.inf
    finite = linear(x, torch.randn(70, 128, device=device)).isfinite().all(dim=1)
    assert finite.tolist() == [True] * 3 + [False] + [True] * 4


def test_a_row_is_the_same_in_few_and_in_many(device: str) -> None:
    """More parts than one, where they are added by one program and by several."""
    x, weight = torch.randn(80, 1100, device=device), torch.randn(40, 1100, device=device)
    whole = linear(x, weight)
    for count in (1, 17, 64, 65):
        assert torch.equal(linear(x[:count], weight), whole[:count])


@cuda_only
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 6144), (4096, 4096), (12_288, 1024), (1000, 300)])
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    x = torch.randn(700, inputs, device="cuda").to(dtype)
    weight, bias = torch.randn(outputs, inputs, device="cuda").to(dtype), torch.randn(outputs, device="cuda").to(dtype)
    whole = linear(x, weight, bias)
    for count in (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 256, 500):
        assert torch.equal(linear(x[:count], weight, bias), whole[:count]), count
        assert torch.equal(linear(x[700 - count :], weight, bias), whole[700 - count :]), count


@pytest.mark.parametrize("size", [1, 70, 5000])
def test_log_softmax(device: str, size: int) -> None:
    x = torch.randn(3, size, device=device) * 5
    torch.testing.assert_close(log_softmax(x), x.log_softmax(-1), rtol=1e-5, atol=1e-5)


@cuda_only
def test_norms_and_log_softmax_in_any_company(dtype: torch.dtype) -> None:
    for size, operations in ((4096, (rms_norm, add_rms_norm)), (128, (rms_norm,)), (50_257, (log_softmax,))):
        x, update = (torch.randn(200, size, device="cuda").to(dtype) for _ in range(2))
        weight = torch.randn(size, device="cuda").to(dtype)
        for operation in operations:
            others = {rms_norm: (weight, 1e-6), add_rms_norm: (weight, 1e-6), log_softmax: ()}[operation]

            def result(rows: slice, operation=operation, others=others, x=x, update=update) -> torch.Tensor:
                first = (x[rows], update[rows]) if operation is add_rms_norm else (x[rows],)
                found = operation(*first, *others)
                return found[1] if isinstance(found, tuple) else found

            whole = result(slice(0, 200))
            for rows in (slice(0, 1), slice(7, 8), slice(3, 50), slice(100, 200)):
                assert torch.equal(result(rows), whole[rows])
