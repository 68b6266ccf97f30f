"""The kernels for few rows against their references: row counts, types, odd sizes, strides, graphs; and invariance."""

import pytest
import torch
from torch import Tensor

from lightvllm.kernels import gpu, reference

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and gpu.load_compiled()), reason="needs a CUDA device and the compiled kernels"
)

TYPES = [torch.bfloat16, torch.float16, torch.float32]
ERRORS = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 2e-6}  # of the whole result, relative


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def few_rows_linear(*arguments: object) -> Tensor:
    return torch.ops.lightvllm_cuda.few_rows_linear(*arguments)


def few_rows_attention(*arguments: object) -> Tensor:
    return torch.ops.lightvllm_cuda.few_rows_attention(*arguments)


def randn(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*size, device="cuda").to(dtype)


def widened(arguments: tuple) -> list:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    error = ERRORS[actual.dtype]
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    assert (actual.double() - expected).norm() <= error * expected.norm()
    torch.testing.assert_close(actual.double(), expected, rtol=8 * error, atol=8 * error * expected.std().item())


def product(rows: int, inputs: int, outputs: int, dtype: torch.dtype, *options: str) -> tuple:
    """Arguments of `few_rows_linear`; options: bias, norm, residual, gated."""
    results = outputs // 2 if "gated" in options else outputs
    return (
        randn(rows, inputs, dtype=dtype),
        randn(outputs, inputs, dtype=dtype) / inputs**0.5,
        randn(outputs, dtype=dtype) if "bias" in options else None,
        1 + randn(inputs, dtype=dtype) / 8 if "norm" in options else None,
        1e-6,
        randn(rows, results, dtype=dtype) if "residual" in options else None,
        "gated" in options,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", range(9))
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 4096), (2048, 1024), (896, 1152), (4864, 896), (12288, 512)])
def test_products(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    arguments = product(rows, inputs, outputs, dtype)
    if rows:
        assert_near(few_rows_linear(*arguments), reference.few_rows_linear(*widened(arguments)))
    else:
        assert few_rows_linear(*arguments).shape == (0, outputs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    "options",
    [("bias",), ("norm",), ("residual",), ("gated",), ("norm", "gated"), ("bias", "norm", "residual", "gated")],
    ids="-".join,
)
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 6144), (4096, 2062), (40, 34)])
def test_what_goes_around_a_product(dtype: torch.dtype, rows: int, options: tuple, inputs: int, outputs: int) -> None:
    arguments = product(rows, inputs, outputs, dtype, *options)
    assert_near(few_rows_linear(*arguments), reference.few_rows_linear(*widened(arguments)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (33, 2), (100, 131), (1000, 17), (1032, 151)])
def test_odd_sizes(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    arguments = product(5, inputs, outputs, dtype, "bias", "norm", "residual")
    assert_near(few_rows_linear(*arguments), reference.few_rows_linear(*widened(arguments)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("begin", [0, 1, 8])
def test_rows_that_lie_apart(dtype: torch.dtype, begin: int) -> None:
    """Parts of wider tensors; from 1 on their rows do not begin at multiples of 16 bytes."""
    x, weight = randn(3, 1100, dtype=dtype)[:, begin : begin + 512], randn(300, 600, dtype=dtype)[:, begin:][:, :512]
    arguments = (x, weight, None, None, 0.0, None, False)
    assert_near(few_rows_linear(*arguments), reference.few_rows_linear(*widened(arguments)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inputs", [1024, 12288, 1000])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, inputs: int) -> None:
    options = ("norm", "residual") if inputs != 12288 else ("residual",)
    x, weight, bias, norm_weight, eps, residual, gated = product(8, inputs, 640, dtype, *options)
    together = few_rows_linear(x, weight, bias, norm_weight, eps, residual, gated)
    for rows in range(1, 8):
        some = few_rows_linear(x[:rows], weight, bias, norm_weight, eps, residual[:rows], gated)
        assert torch.equal(some, together[:rows])
    assert torch.equal(few_rows_linear(x[6:7], weight, bias, norm_weight, eps, residual[6:7], gated), together[6:7])


def test_a_chain_in_a_graph() -> None:
    """Each product begins while the one before it ends, and still sees all of its result, every time."""
    weights = [randn(1024, 1024, dtype=torch.bfloat16) / 32 for _ in range(40)]
    norm_weight, x = torch.ones(1024, device="cuda", dtype=torch.bfloat16), randn(2, 1024, dtype=torch.bfloat16)

    def run() -> Tensor:
        y = x
        for weight in weights:
            y = few_rows_linear(y, weight, None, norm_weight, 1e-6, y, False)
        return y

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    for _ in range(20):
        x.copy_(randn(2, 1024, dtype=torch.bfloat16))
        graph.replay()
        step_by_step = x
        for weight in weights:
            step_by_step = few_rows_linear(step_by_step, weight, None, norm_weight, 1e-6, step_by_step, False)
            torch.cuda.synchronize()
        assert torch.equal(y, step_by_step)


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12),
    reason="before torch 2.12 an exception in a compiled op ends the process",
)
def test_more_rows_are_refused() -> None:
    with pytest.raises(RuntimeError, match="x has 9 rows, at most 8"):
        few_rows_linear(*product(9, 64, 64, torch.bfloat16))


def decodes(
    seq_lens: list[int], heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, has_norms: bool, block_size: int
) -> tuple:
    """Arguments of `few_rows_attention`, but for scale and window. Each request has blocks of its own, in no order."""
    rows, max_blocks = len(seq_lens), -(-max(seq_lens) // block_size)
    table = torch.randperm(rows * max_blocks, device="cuda", dtype=torch.int32).view(rows, max_blocks)
    ends = torch.tensor(seq_lens, device="cuda")
    last = table[torch.arange(rows, device="cuda"), (ends - 1) // block_size].long()
    cache = (rows * max_blocks, block_size, kv_heads, head_dim)
    angles = torch.rand(rows, 1, head_dim // 2, device="cuda").repeat(1, 1, 2) * 6
    return (
        randn(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype),
        1 + randn(head_dim, dtype=dtype) / 8 if has_norms else None,
        1 + randn(head_dim, dtype=dtype) / 8 if has_norms else None,
        1e-6,
        angles.cos(),
        angles.sin(),
        randn(*cache, dtype=dtype),
        randn(*cache, dtype=dtype),
        last * block_size + (ends - 1) % block_size,
        table,
        ends.int(),
        heads,
        kv_heads,
    )


def assert_attends(arguments: tuple, sliding_window: int) -> None:
    options = (arguments[6].shape[3] ** -0.5, sliding_window)
    wide = widened(arguments)
    wide[4:6] = arguments[4:6]
    expected = reference.few_rows_attention(*wide, *options)
    slots = arguments[8]
    before = [cache.flatten(0, 1).clone() for cache in arguments[6:8]]
    assert_near(few_rows_attention(*arguments, *options), expected)
    for cache, old, new in zip(arguments[6:8], before, wide[6:8], strict=True):
        assert_near(cache.flatten(0, 1)[slots], new.flatten(0, 1)[slots])
        old[slots] = cache.flatten(0, 1)[slots]
        assert torch.equal(cache.flatten(0, 1), old)  # nothing else was touched


@pytest.mark.parametrize("dtype", TYPES[:2])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(16, 8, 128), (32, 4, 128), (14, 2, 64), (4, 4, 256)])
@pytest.mark.parametrize("seq_lens", [[1], [2], [17], [1000], [1, 16, 129, 2500, 33, 5, 300, 64]], ids=str)
def test_attention(
    dtype: torch.dtype, has_norms: bool, heads: int, kv_heads: int, head_dim: int, seq_lens: list[int]
) -> None:
    assert_attends(decodes(seq_lens, heads, kv_heads, head_dim, dtype, has_norms, 16), 0)


@pytest.mark.parametrize("block_size", [1, 7, 32])
@pytest.mark.parametrize("sliding_window", [0, 1, 20, 300, 5000])
def test_attention_in_windows_and_other_blocks(block_size: int, sliding_window: int) -> None:
    assert_attends(decodes([1, 40, 301, 700], 8, 2, 128, torch.bfloat16, True, block_size), sliding_window)


def test_a_request_does_not_depend_on_the_others() -> None:
    arguments = decodes([900, 30, 2000], 16, 8, 128, torch.bfloat16, True, 16)
    together = few_rows_attention(*arguments, 0.1, 0)
    for row in range(3):
        alone = [x[row : row + 1] if i in (0, 4, 5, 8, 9, 10) else x for i, x in enumerate(arguments)]
        assert torch.equal(few_rows_attention(*alone, 0.1, 0), together[row : row + 1])
