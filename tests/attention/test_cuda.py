"""The CUDA backend against the reference: decodes, chunks and both, with Triton's prefill and without."""

from collections.abc import Iterator

import pytest
import torch

from lightvllm.attention import cuda
from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.cuda import CudaAttention, why_not
from lightvllm.attention.paged import DeviceBatch, LayerCache
from lightvllm.kernels import gpu, reference

needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or not gpu.load_compiled(), reason="needs a CUDA device and the CUDA kernels"
)


@pytest.fixture(params=["triton", "v1"])
def _prefill(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "v1":
        monkeypatch.setattr(cuda, "_paged_prefill", lambda: None)
    elif cuda._paged_prefill() is None:
        pytest.skip("needs triton")
    with torch.inference_mode(), torch.device("cuda"):
        yield


@needs_kernels
@pytest.mark.usefixtures("_prefill")
@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 1, 7, 30], [20, 3]])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("context", [3, 300])
@pytest.mark.parametrize("is_int8", [False, True], ids=["", "int8"])
def test_backend_equals_reference(query_lens: list[int], window: int | None, context: int, is_int8: bool) -> None:
    torch.manual_seed(0)
    lens = torch.tensor(query_lens)
    count, blocks, starts = len(query_lens), 30, torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()
    seq_lens = (lens + context - torch.arange(count)).int()
    table = torch.randperm(count * blocks).view(count, blocks).int()
    positions = torch.cat([torch.arange(int(s - q), int(s)) for q, s in zip(query_lens, seq_lens, strict=True)])
    owner = torch.arange(count).repeat_interleave(lens)
    slots = table[owner, positions // 16].long() * 16 + positions % 16
    chunks = [length for length in query_lens if length > 1]
    batch = DeviceBatch(
        count - len(chunks), max(chunks, default=0), int(seq_lens.max()), starts, seq_lens, table, slots
    )
    numbers = [torch.randn(count * blocks, 16, 2, 64).bfloat16() for _ in range(2)]
    layer_cache = LayerCache(*(reference.round_heads(x) if is_int8 else x for x in numbers))
    query, key, value = torch.randn(int(lens.sum()), 12, 64).bfloat16().split([8, 2, 2], dim=1)
    layer = AttentionLayer(0, 8, 2, 64, 0.125, window)
    actual = CudaAttention([layer_cache], batch).attend(layer, query, key, value)
    reference.write_kv(key, value, layer_cache.key, layer_cache.value, slots)
    expected = reference.paged_attention(
        query, layer_cache.key, layer_cache.value, table, lens, seq_lens.long(), 0.125, window or 0
    )
    torch.testing.assert_close(actual, expected.flatten(1), rtol=1.6e-2, atol=1.6e-2)


def test_why_not() -> None:
    assert why_not(torch.device("cpu"), torch.bfloat16, 128, False) == "as no compiled CUDA kernels are there for cpu"


def test_why_not_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(gpu, "load_compiled", lambda: True)
    assert why_not(device, torch.bfloat16, 256, False) is None
    assert why_not(device, torch.float64, 128, False) == "as the CUDA kernels do not know torch.float64"
    assert why_not(device, torch.float16, 288, False) == "as the head size, 288, is above 256"
    monkeypatch.setattr(gpu, "load_compiled", lambda: False)
    assert why_not(device, torch.bfloat16, 128, False) == "as no compiled CUDA kernels are there for cuda"
