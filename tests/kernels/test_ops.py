"""Each compiled op against its reference: types, odd sizes, strides, empty batches, extreme values; and invariance."""

import pytest
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.kernels import reference

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 2e-6 if actual.dtype == torch.float32 else 1e-2
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 17, 1024])
@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_embedding(dtype: torch.dtype, size: int, tokens: int) -> None:
    weight, token_ids = torch.randn(50, size).to(dtype), torch.randint(50, (tokens,))
    assert torch.equal(kernels.embedding(weight, token_ids), reference.embedding(weight, token_ids))


@pytest.mark.parametrize("token_id", [-1, 50])
def test_embedding_of_what_is_no_token(token_id: int) -> None:
    with pytest.raises(RuntimeError, match="a token id is outside the vocabulary"):
        kernels.embedding(torch.randn(50, 16), torch.tensor([3, token_id]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 8, 15, 16, 17, 64, 100, 1024])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_rms_norm(dtype: torch.dtype, size: int, rows: int) -> None:
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_rms_norm_of_extreme_rows(scale: float) -> None:
    x, weight = torch.randn(4, 48) * scale, torch.randn(48)
    assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 16, 17, 100, 1024])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_add_rms_norm(dtype: torch.dtype, size: int, rows: int) -> None:
    """The sum is rounded to its type before the norm: bitwise what the two ops give one after the other."""
    x, update, weight = (
        torch.randn(rows, size).to(dtype),
        torch.randn(rows, size).to(dtype),
        torch.randn(size).to(dtype),
    )
    before = x.clone()
    total, normed = kernels.add_rms_norm(x, update, weight, 1e-6)
    assert torch.equal(x, before)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, kernels.rms_norm(total, weight, 1e-6))
    for mine, theirs in zip((total, normed), reference.add_rms_norm(x, update, weight, 1e-6), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 30, 32, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (4, 4)])
@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotary_qkv(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, tokens: int, has_norms: bool) -> None:
    """Against its reference, and bitwise what norm and rotation give one after the other."""
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    weights = [torch.randn(head_dim).to(dtype) if has_norms else None for _ in range(2)]
    angles = torch.randn(tokens, 1, head_dim)
    args = (qkv, *weights, 1e-5, angles.cos(), angles.sin(), heads, kv_heads)
    actual = kernels.rotary_qkv(*args)
    assert_close(actual, reference.rotary_qkv(*args))
    parts = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=1)
    for mine, part, weight in zip(
        actual.split([heads, kv_heads, kv_heads], dim=1), parts, [*weights, None], strict=True
    ):
        part = part if weight is None else kernels.rms_norm(part, weight, 1e-5)
        expected = part if part is parts[2] else kernels.rotary(part, angles.cos(), angles.sin())
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 30, 32, 64, 128])
def test_norm_and_rotary_of_strided_heads(dtype: torch.dtype, head_dim: int) -> None:
    """Queries and keys are slices of one product: neither tokens nor heads need be adjacent."""
    qkv = torch.randn(9, 5 * head_dim).to(dtype)
    query = qkv[:, head_dim : 4 * head_dim].unflatten(-1, (3, head_dim))
    weight = torch.randn(head_dim).to(dtype)
    assert_close(kernels.rms_norm(query, weight, 1e-5), reference.rms_norm(query, weight, 1e-5))
    angles = torch.randn(9, 1, head_dim)
    cos, sin = angles.cos(), angles.sin()
    assert_close(kernels.rotary(query, cos, sin), reference.rotary(query, cos, sin))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 16, 33, 96, 3072])
def test_silu_and_mul(dtype: torch.dtype, size: int) -> None:
    x = (torch.randn(7, 2 * size) * 4).to(dtype)
    assert_close(kernels.silu_and_mul(x), reference.silu_and_mul(x))


def test_silu_and_mul_of_extreme_values() -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 200.0, 1e30]).repeat(2)
    x = torch.cat((gate, torch.ones_like(gate))).unsqueeze(0)
    torch.testing.assert_close(kernels.silu_and_mul(x), reference.silu_and_mul(x), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_write_kv(dtype: torch.dtype) -> None:
    qkv = torch.randn(6, 3 * 2 * 8).to(dtype)
    key, value = (part.unflatten(-1, (2, 8)) for part in qkv.split(16, dim=-1)[1:])
    slots = torch.tensor([3, 0, 11, 7, 8, 5])
    mine, theirs = ([torch.zeros(3, 4, 2, 8, dtype=dtype) for _ in range(2)] for _ in range(2))
    kernels.write_kv(key, value, *mine, slots)
    reference.write_kv(key, value, *theirs, slots)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])
    assert mine[0].count_nonzero() > 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 30, 32, 112, 128])
def test_write_kv_of_int8(dtype: torch.dtype, head_dim: int) -> None:
    """Bytewise the reference's, whatever the size of the numbers; each head rounded by its own largest."""
    tokens, heads = 40, 3
    sizes = 10.0 ** torch.randint(-38, 38, (tokens, 2 * heads, 1))
    kv = (torch.randn(tokens, 2 * heads, head_dim) * sizes).to(dtype)
    kv[3, 0], kv[4, 1, 1], kv[5, 2, 0], kv[6, 4, head_dim - 1] = 0, float("nan"), float("inf"), float("-inf")
    key, value = kv.split(heads, dim=1)
    slots = torch.randperm(48)[:tokens]
    mine, theirs = ([torch.zeros(12, 4, heads, head_dim + 4, dtype=torch.int8) for _ in range(2)] for _ in range(2))
    kernels.write_kv(key, value, *mine, slots)
    reference.write_kv(key, value, *theirs, slots)
    for cache, expected, x in zip(mine, theirs, (key, value), strict=True):
        assert torch.equal(cache, expected)
        numbers = reference.widen_heads(cache.flatten(0, 1)[slots])
        finite = x.isfinite().all(dim=-1)
        assert numbers[~finite].isnan().all()
        largest = x.float().abs().amax(dim=-1)
        is_tiny = largest < 127 * torch.finfo(torch.float32).tiny
        assert not numbers[is_tiny].any()
        error = (numbers - x.float()).abs().amax(dim=-1) / largest
        assert error[finite & ~is_tiny].max() < 0.501 / 127


def test_int8_is_rounded_to_nearest_and_ties_to_even() -> None:
    x = torch.tensor([[[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 2.51, -126.4, *[0.0] * 24]]])
    expected = [127, 0, 2, 2, 0, -2, 3, -126, *[0] * 24]
    cache = [torch.zeros(1, 1, 1, 36, dtype=torch.int8) for _ in range(2)]
    kernels.write_kv(x, -x, *cache, torch.tensor([0]))
    assert cache[0].flatten()[:32].tolist() == expected
    assert cache[1].flatten()[:32].tolist() == [-number for number in expected]


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="before torch 2.12 a check that fails in a kernel ends the process"
)
def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match="one type"):
        kernels.rms_norm(torch.randn(2, 8), torch.randn(8).bfloat16(), 1e-6)


def test_gradients_go_through_the_reference() -> None:
    with torch.inference_mode(False), torch.enable_grad():
        x, weight = torch.randn(3, 16, requires_grad=True), torch.ones(16, requires_grad=True)
        kernels.rms_norm(x, weight, 1e-6).sum().backward()
        assert x.grad is not None
        x.grad = None
        total, normed = kernels.add_rms_norm(x, x, weight, 1e-6)
        (total.sum() + normed.sum()).backward()
        assert x.grad is not None
