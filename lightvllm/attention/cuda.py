"""Paged attention through the compiled CUDA kernels, `lightvllm/kernels/cuda/paged_attention*.cu`.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/attention/test_cuda.py.

Decodes go through v2, which cuts contexts into as many parts as fill the GPU, of short ones into one. Chunks go through
Triton's paged prefill; where there is no Triton, v1 takes each of their tokens as a decode.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import DeviceAttention, LayerCache
from lightvllm.kernels import gpu

TYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256  # of kernels/cuda/paged_attention.h


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int, is_int8: bool) -> str | None:
    """Why this backend cannot run there, as the end of a sentence; None where it can, with a cache of int8 or not."""
    if device.type != "cuda" or not gpu.load_compiled():
        return f"as no compiled CUDA kernels are there for {device.type}"
    if dtype not in TYPES:
        return f"as the CUDA kernels do not know {dtype}"
    if head_dim > LARGEST_HEAD:
        return f"as the head size, {head_dim}, is above {LARGEST_HEAD}"
    return None


@cache
def _paged_prefill() -> Callable | None:
    if not gpu.has_triton():
        return None
    from lightvllm.kernels.triton.paged_prefill import paged_prefill

    return paged_prefill


class CudaAttention(DeviceAttention):
    """Decodes and chunks by a kernel each."""

    fuses_lone_decodes = True

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        decodes = self.batch.num_decodes
        if not self.batch.max_query_len:
            return self._decode(layer, cache, query)
        output = query.new_empty(query.shape)
        self._prefill(layer, cache, query, output)
        if decodes:
            output[:decodes] = self._decode(layer, cache, query[:decodes])
        return output

    def _decode(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        batch, count = self.batch, self.batch.num_decodes
        return torch.ops.lightvllm_cuda.paged_attention_v2(
            query, cache.key, cache.value, batch.block_table[:count], batch.seq_lens[:count], batch.max_seq_len,
            layer.scale, layer.sliding_window or 0,
        )  # fmt: skip

    def _prefill(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, output: Tensor) -> None:
        batch, decodes, window = self.batch, self.batch.num_decodes, layer.sliding_window or 0
        table, starts, seq_lens = (x[decodes:] for x in (batch.block_table, batch.query_starts, batch.seq_lens))
        if prefill := _paged_prefill():
            prefill(
                query, cache.key, cache.value, table, starts, seq_lens, batch.max_query_len, layer.scale, window, output
            )
        else:
            output[decodes:] = torch.ops.lightvllm_cuda.paged_attention_v1(
                query[decodes:], cache.key, cache.value, table, starts - decodes, seq_lens, layer.scale, window
            )
