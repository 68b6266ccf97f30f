"""Triton's norms, activation, rotation and cache write against their references: types, odd sizes, strides, extremes."""

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import gpu, reference

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def check(name: str, *args: object) -> object:
    """The twin's result, after a look that it is the reference's, but for the last bit."""
    actual, expected = gpu.triton_twin(name)(*args), getattr(reference, name)(*args)
    pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
    for mine, theirs in pairs:
        assert_close(mine, theirs)
    return actual


def assert_close(actual: Tensor, expected: Tensor) -> None:
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 100, 1024, 4096])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_rms_norm(device: str, dtype: torch.dtype, size: int, rows: int) -> None:
    x, weight = torch.randn(rows, size, device=device).to(dtype), torch.randn(size, device=device).to(dtype)
    check("rms_norm", x, weight, 1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_rms_norm_of_extreme_rows(device: str, scale: float) -> None:
    check("rms_norm", torch.randn(4, 48, device=device) * scale, torch.randn(48, device=device), 1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 17, 1024, 4096])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_add_rms_norm(device: str, dtype: torch.dtype, size: int, rows: int) -> None:
    """The sum is rounded to its type before the norm: bitwise what the two ops give one after the other."""
    wide = torch.randn(rows, 3 * size, device=device).to(dtype)
    x, update, weight = wide[:, :size], wide[:, size : 2 * size], torch.randn(size, device=device).to(dtype)
    before = wide.clone()
    total, normed = check("add_rms_norm", x, update, weight, 1e-6)
    assert torch.equal(wide, before)
    if device == "cuda" or dtype != torch.bfloat16:  # which the interpreter cuts off instead of rounding
        assert torch.equal(total, x + update)
    assert torch.equal(normed, gpu.triton_twin("rms_norm")(total, weight, 1e-6))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 33, 96, 3072])
def test_silu_and_mul(device: str, dtype: torch.dtype, size: int) -> None:
    wide = (torch.randn(7, 2 * size + 3, device=device) * 4).to(dtype)
    check("silu_and_mul", wide[:, 3:])
    check("silu_and_mul", wide[:, 3:].contiguous())
    assert gpu.triton_twin("silu_and_mul")(wide[:0, 3:]).shape == (0, size)


def test_silu_and_mul_of_extreme_values(device: str) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 200.0, 1e30], device=device).repeat(2)
    check("silu_and_mul", torch.cat((gate, torch.ones_like(gate))).unsqueeze(0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 30, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (16, 8)])
@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotary_qkv(
    device: str, dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, tokens: int, has_norms: bool
) -> None:
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device).to(dtype)
    weights = [torch.randn(head_dim, device=device).to(dtype) if has_norms else None for _ in range(2)]
    angles = torch.randn(tokens, 1, head_dim, device=device)
    heads_out = check("rotary_qkv", qkv, *weights, 1e-5, angles.cos(), angles.sin(), heads, kv_heads)
    assert torch.equal(heads_out[:, heads + kv_heads :].flatten(1), qkv[:, (heads + kv_heads) * head_dim :])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 30, 128])
def test_norm_and_rotary_of_strided_heads(device: str, dtype: torch.dtype, head_dim: int) -> None:
    """Queries and keys are slices of one product: neither tokens nor heads need be adjacent."""
    qkv = torch.randn(9, 5 * head_dim, device=device).to(dtype)
    query = qkv[:, head_dim : 4 * head_dim].unflatten(-1, (3, head_dim))
    check("rms_norm", query, torch.randn(head_dim, device=device).to(dtype), 1e-5)
    angles = torch.randn(9, 1, head_dim, device=device)
    check("rotary", query, angles.cos(), angles.sin())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [8, 30])
def test_write_kv(device: str, dtype: torch.dtype, head_dim: int) -> None:
    qkv = torch.randn(6, 3 * 3 * head_dim, device=device).to(dtype)
    key, value = (part.unflatten(-1, (3, head_dim)) for part in qkv.split(3 * head_dim, dim=-1)[1:])
    slots = torch.tensor([3, 0, 11, 7, 8, 5], device=device)
    mine, theirs = ([torch.zeros(3, 4, 3, head_dim, dtype=dtype, device=device) for _ in range(2)] for _ in range(2))
    gpu.triton_twin("write_kv")(key, value, *mine, slots)
    reference.write_kv(key, value, *theirs, slots)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])
    assert mine[0].count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [2, 30, 32, 112, 128])
def test_write_kv_of_int8(device: str, dtype: torch.dtype, head_dim: int) -> None:
    """Bytewise the reference's, whatever the size of the numbers; each head rounded by its own largest."""
    tokens, heads = 40, 3
    sizes = 10.0 ** torch.randint(-38, 38, (tokens, 2 * heads, 1))
    kv = (torch.randn(tokens, 2 * heads, head_dim) * sizes).to(dtype)
    kv[3, 0], kv[4, 1, 1], kv[5, 2, 0], kv[6, 4, head_dim - 1] = 0, float("nan"), float("inf"), float("-inf")
    slots = torch.randperm(48)[:tokens]
    mine, theirs = ([torch.zeros(12, 4, heads, head_dim + 4, dtype=torch.int8) for _ in range(2)] for _ in range(2))
    mine = [cache.to(device) for cache in mine]
    gpu.triton_twin("write_kv")(*kv.to(device).split(heads, dim=1), *mine, slots.to(device))
    reference.write_kv(*kv.split(heads, dim=1), *theirs, slots)
    for cache, expected in zip(mine, theirs, strict=True):
        assert torch.equal(cache.cpu(), expected)


def test_int8_is_rounded_to_nearest_and_ties_to_even(device: str) -> None:
    x = torch.tensor([[[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 2.51, -126.4, *[0.0] * 24]]], device=device)
    expected = [127, 0, 2, 2, 0, -2, 3, -126, *[0] * 24]
    cache = [torch.zeros(1, 1, 1, 36, dtype=torch.int8, device=device) for _ in range(2)]
    gpu.triton_twin("write_kv")(x, -x, *cache, torch.tensor([0], device=device))
    assert cache[0].flatten()[:32].tolist() == expected
    assert cache[1].flatten()[:32].tolist() == [-number for number in expected]
