"""The backend over FlashAttention against the reference; what it asks of the packages, of stand-ins for them."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightvllm.attention import flash
from lightvllm.attention.base import AttentionLayer
from lightvllm.kernels import reference
from tests.attention.device_batches import Step
from tests.kernels.gpu.conftest import cuda_only


@pytest.fixture(autouse=True)
def _packages_are_looked_for_anew():
    flash.library_for.cache_clear()
    yield
    flash.library_for.cache_clear()


@cuda_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_decodes", "num_chunks"), [(3, 0), (0, 2), (4, 3)])
@pytest.mark.parametrize("window", [None, 6])
def test_a_step_equals_the_reference(
    dtype: torch.dtype, num_decodes: int, num_chunks: int, window: int | None, device: str
) -> None:
    step = Step.random(AttentionLayer(0, 6, 2, 32, 0.3, window), dtype, False, 16, num_decodes, num_chunks)
    tolerance = 2e-3 if dtype == torch.float16 else 2e-2
    torch.testing.assert_close(step.run(flash.FlashAttention, device), step.expected(), rtol=tolerance, atol=tolerance)


def window_of(window_size: tuple[int, int]) -> int:
    """As flash-attn counts: keys to the left of the own one."""
    return 0 if window_size == (-1, -1) else window_size[0] + 1


def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """flash-attn 2's, by the reference."""
    assert given.pop("causal")
    query_lens, seq_lens = (given.pop(name).diff() for name in ("cu_seqlens_q", "cu_seqlens_k"))
    assert query_lens.max() == given.pop("max_seqlen_q")
    assert seq_lens.max() == given.pop("max_seqlen_k")
    table, scale, window = (given.pop(name) for name in ("block_table", "softmax_scale", "window_size"))
    assert not given
    return reference.paged_attention(q, k, v, table, query_lens, seq_lens, scale, window_of(window))


def flash_attn_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Tensor:
    """flash-attn 3's, by the reference."""
    assert given.pop("causal")
    query_lens = given.pop("cu_seqlens_q").diff()
    assert query_lens.max() == given.pop("max_seqlen_q")
    table, seq_lens, scale, window = (
        given.pop(name) for name in ("page_table", "cache_seqlens", "softmax_scale", "window_size")
    )
    assert not given
    return reference.paged_attention(q, k_cache, v_cache, table, query_lens, seq_lens, scale, window_of(window))


@pytest.mark.parametrize(
    ("module", "function", "block_size"),
    [("flash_attn", flash_attn_varlen_func, 256), ("flash_attn_interface", flash_attn_with_kvcache, 16)],
)
@pytest.mark.parametrize("window", [None, 6])
def test_the_packages_are_asked_for_the_same(
    module: str, function: Any, block_size: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function.__name__: function}, __spec__=object()))
    step = Step.random(AttentionLayer(0, 4, 2, 16, 0.3, window), torch.float32, False, block_size, 3, 2)
    torch.testing.assert_close(step.run(flash.FlashAttention, "cpu"), step.expected())


def test_flash_attn_2_runs_only_with_its_own_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "find_spec", lambda name: object() if name == "flash_attn" else None)
    assert [flash.library_for(size) for size in (16, 256, 512)] == ["torch", "flash-attn 2", "flash-attn 2"]


def test_what_cannot_run_is_told() -> None:
    assert "not on cpu" in (flash.why_not(torch.device("cpu"), torch.float16, 64, False) or "")
