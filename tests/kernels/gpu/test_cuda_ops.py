"""The compiled CUDA ops against their references: types, odd sizes, strides, empty batches, extreme values, graphs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import SCHEMAS, gpu, reference

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if not gpu.load_compiled():
    pytest.skip("the CUDA kernels were not built", allow_module_level=True)

ops = torch.ops.lightvllm_cuda
TYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device("cuda"):
        yield


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def shifted(x: Tensor) -> Tensor:
    """The same numbers where no vector of 16 bytes begins."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype)
    return room[1:].view(x.shape).copy_(x)


@pytest.mark.parametrize("name", gpu.CUDA_TWINS)
def test_a_twin_has_the_schema_of_its_op(name: str) -> None:
    assert str(getattr(ops, name).default._schema) == f"lightvllm_cuda::{name}{SCHEMAS[name]}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 255, 4096, 100_003])
def test_vector_add(dtype: torch.dtype, size: int) -> None:
    a, b = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    assert torch.equal(ops.vector_add(a, b), a + b)
    assert torch.equal(ops.vector_add(shifted(a), b), a + b)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 17, 1024, 5120])
@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_embedding(dtype: torch.dtype, size: int, tokens: int) -> None:
    weight, token_ids = torch.randn(50, size).to(dtype), torch.randint(50, (tokens,))
    assert torch.equal(ops.embedding(weight, token_ids), reference.embedding(weight, token_ids))


def test_embedding_of_what_is_no_token() -> None:
    weight = torch.randn(50, 16)
    vectors = ops.embedding(weight, torch.tensor([-1, 3, 50, 2**40]))
    assert torch.equal(vectors[1], weight[3])
    assert not vectors[[0, 2, 3]].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 8, 15, 64, 100, 128, 1024, 4096, 12288, 5001, 40000])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_rms_norm(dtype: torch.dtype, size: int, rows: int) -> None:
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    assert_close(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    assert_close(ops.rms_norm(shifted(x), weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_rms_norm_of_extreme_rows(scale: float) -> None:
    x, weight = torch.randn(4, 48) * scale, torch.randn(48)
    assert_close(ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


def test_a_norm_of_what_is_no_number_stays_in_its_row() -> None:
    x, weight = torch.randn(5, 128, dtype=torch.bfloat16), torch.ones(128, dtype=torch.bfloat16)
    expected = ops.rms_norm(x, weight, 1e-6)
    x[2, 77] = float("nan")
    actual = ops.rms_norm(x, weight, 1e-6)
    assert actual[2].isnan().all()
    assert torch.equal(actual[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 16, 17, 100, 1024, 4096, 40000])
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_add_rms_norm(dtype: torch.dtype, size: int, rows: int) -> None:
    """The sum is rounded to its type before the norm: bitwise what the two ops give one after the other."""
    x, update = torch.randn(rows, size).to(dtype), torch.randn(rows, size).to(dtype)
    weight, before = torch.randn(size).to(dtype), x.clone()
    total, normed = ops.add_rms_norm(x, update, weight, 1e-6)
    assert torch.equal(x, before)
    assert torch.equal(total, x + update)
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-6))
    assert_close(normed, reference.add_rms_norm(x, update, weight, 1e-6)[1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 16, 30, 64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (32, 8), (64, 8)])
@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotary_qkv(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, tokens: int, has_norms: bool) -> None:
    """Against its reference, and what norm and rotation give one after the other."""
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    weights = [torch.randn(head_dim).to(dtype) if has_norms else None for _ in range(2)]
    angles = torch.randn(tokens, 1, head_dim)
    args = (qkv, *weights, 1e-5, angles.cos(), angles.sin(), heads, kv_heads)
    actual = ops.rotary_qkv(*args)
    assert_close(actual, reference.rotary_qkv(*args))
    assert torch.equal(actual[:, heads + kv_heads :].flatten(1), qkv[:, (heads + kv_heads) * head_dim :])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 30, 64, 128])
def test_norm_and_rotary_of_strided_heads(dtype: torch.dtype, head_dim: int) -> None:
    """Queries and keys are slices of one product: neither tokens nor heads need be adjacent."""
    qkv = torch.randn(9, 5 * head_dim).to(dtype)
    query = qkv[:, head_dim : 4 * head_dim].unflatten(-1, (3, head_dim))
    weight = torch.randn(head_dim).to(dtype)
    assert_close(ops.rms_norm(query, weight, 1e-5), reference.rms_norm(query, weight, 1e-5))
    assert_close(ops.rms_norm(query[:, ::2], weight, 1e-5), reference.rms_norm(query[:, ::2], weight, 1e-5))
    angles = torch.randn(9, 1, head_dim)
    cos, sin = angles.cos(), angles.sin()
    assert_close(ops.rotary(query, cos, sin), reference.rotary(query, cos, sin))
    assert_close(ops.rotary(query[:, ::2], cos, sin), reference.rotary(query[:, ::2], cos, sin))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 16, 33, 96, 3072, 12288])
@pytest.mark.parametrize("tokens", [0, 7])
def test_silu_and_mul(dtype: torch.dtype, size: int, tokens: int) -> None:
    """The product is rounded once, so the reference of narrow types is that of float32, rounded."""
    x = (torch.randn(tokens, 2 * size) * 4).to(dtype)
    expected = reference.silu_and_mul(x.float()).to(dtype)
    assert_close(ops.silu_and_mul(x), expected)
    assert_close(ops.silu_and_mul(torch.cat((x, x), dim=-1)[:, : 2 * size]), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_silu_and_mul_of_extreme_values(dtype: torch.dtype) -> None:
    gate = torch.tensor([-3e4, -200.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 200.0, 3e4]).repeat(2)
    x = torch.cat((gate, torch.ones_like(gate))).unsqueeze(0).to(dtype)
    assert_close(ops.silu_and_mul(x), reference.silu_and_mul(x.float()).to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [1, 30, 64, 128])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_write_kv(dtype: torch.dtype, head_dim: int, tokens: int) -> None:
    qkv = torch.randn(tokens, 7, head_dim).to(dtype)
    key, value = qkv[:, 1:4], qkv[:, 4:]
    slots = torch.randperm(48)[:tokens]
    mine, theirs = ([torch.zeros(3, 16, 3, head_dim, dtype=dtype) for _ in range(2)] for _ in range(2))
    ops.write_kv(key, value, *mine, slots)
    reference.write_kv(key, value, *theirs, slots)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 8, 30, 32, 112, 128, 256])
def test_write_kv_of_int8(dtype: torch.dtype, head_dim: int) -> None:
    """Bytewise the reference's, whatever the size of the numbers; each head rounded by its own largest."""
    tokens, heads = 40, 3
    sizes = 10.0 ** torch.randint(-38, 38, (tokens, 2 * heads, 1))
    kv = (torch.randn(tokens, 2 * heads, head_dim) * sizes).to(dtype)
    kv[3, 0], kv[4, 1, 1], kv[5, 2, 0], kv[6, 4, head_dim - 1] = 0, float("nan"), float("inf"), float("-inf")
    key, value = kv.split(heads, dim=1)
    slots = torch.randperm(48)[:tokens]
    mine, theirs = ([torch.zeros(12, 4, heads, head_dim + 4, dtype=torch.int8) for _ in range(2)] for _ in range(2))
    ops.write_kv(key, value, *mine, slots)
    theirs = [cache.cpu() for cache in theirs]  # where a division by a number is one; on a GPU PyTorch multiplies
    reference.write_kv(key.cpu(), value.cpu(), *theirs, slots.cpu())
    for cache, expected in zip([cache.cpu() for cache in mine], theirs, strict=True):
        assert torch.equal(cache[..., :head_dim], expected[..., :head_dim])
        scales = [x[..., head_dim:].contiguous().view(torch.float32) for x in (cache, expected)]
        torch.testing.assert_close(*scales, rtol=0, atol=0, equal_nan=True)


def graph_cases() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Each op, its reference, and arguments of which the first is filled anew before the replay."""
    dtype = torch.bfloat16
    x, y, weight = torch.randn(5, 512).to(dtype), torch.randn(5, 512).to(dtype), torch.randn(512).to(dtype)
    angles, head = torch.randn(5, 1, 128), torch.randn(128).to(dtype)
    cos, sin = angles.cos(), angles.sin()
    cache = [torch.zeros(2, 4, 1, 128, dtype=dtype) for _ in range(2)]
    kv = [torch.randn(5, 1, 128).to(dtype) for _ in range(2)]
    return {
        "vector_add": (torch.add, [x, y]),
        "embedding": (lambda ids, table: reference.embedding(table, ids), [torch.randint(5, (9,)), x]),
        "rms_norm": (reference.rms_norm, [x, weight, 1e-6]),
        "add_rms_norm": (reference.add_rms_norm, [x, y, weight, 1e-6]),
        "rotary": (reference.rotary, [x.view(5, 4, 128), cos, sin]),
        "rotary_qkv": (reference.rotary_qkv, [x, head, head, 1e-6, cos, sin, 2, 1]),
        "silu_and_mul": (reference.silu_and_mul, [x]),
        "write_kv": (reference.write_kv, [kv[0], kv[1], *cache, torch.tensor([7, 0, 3, 2, 6])]),
    }


@pytest.mark.parametrize("name", ["vector_add", *sorted(set(gpu.CUDA_TWINS) - set(gpu.ONLY_CUDA))])
def test_in_a_graph(name: str) -> None:
    """A replay computes with what is in the inputs then."""
    expect, args = graph_cases()[name]
    call = getattr(ops, name)
    run = (lambda: call(args[1], args[0])) if name == "embedding" else (lambda: call(*args))
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = run()
    args[0].copy_(args[0].roll(1, 0))
    if name == "write_kv":
        expected = [torch.zeros_like(cache) for cache in args[2:4]]
        reference.write_kv(*args[:2], *expected, args[4])
        actual = args[2:4]
    else:
        expected = expect(*args)
    graph.replay()
    torch.testing.assert_close(
        actual, type(actual)(expected) if name == "add_rms_norm" else expected, rtol=2e-2, atol=2e-2
    )


def test_a_stream_of_ones_own_is_kept_to() -> None:
    """Work on a stream waits for what was given to that stream before."""
    stream = torch.cuda.Stream()
    x = torch.zeros(1 << 24, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.fill_(1)
        result = ops.vector_add(x, x)
    stream.synchronize()
    assert (result == 2).all()
