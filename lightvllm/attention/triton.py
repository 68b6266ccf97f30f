"""Paged attention on a GPU through our Triton kernels: decodes split over their keys, chunks in tiles.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/attention/test_triton.py.

Either kernel gives a request bitwise the same result in any company. A token's result may differ in its last bits
between the two, so between a chunk and a decode, unless all go through the one: `InvariantTritonAttention`.
"""

import torch
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import DeviceAttention, DeviceBatch, LayerCache
from lightvllm.kernels import gpu
from lightvllm.kernels.triton.paged_decode import paged_decode
from lightvllm.kernels.triton.paged_prefill import paged_prefill

LARGEST_HEAD = 256


class TritonAttention(DeviceAttention):
    """See the module's docstring."""

    fuses_lone_decodes = True

    def __init__(self, cache: list[LayerCache], batch: DeviceBatch) -> None:
        super().__init__(cache, batch)
        num_kv_heads = max(layer.key.shape[2] for layer in cache)
        self.arrivals = batch.seq_lens.new_zeros(batch.num_decodes, num_kv_heads)

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        batch, decodes = self.batch, self.batch.num_decodes
        output = query.new_empty(query.shape)
        window = layer.sliding_window or 0
        if decodes:
            paged_decode(
                query[:decodes], cache.key, cache.value, batch.block_table[:decodes], batch.seq_lens[:decodes],
                batch.max_seq_len, layer.scale, window, self.arrivals, output[:decodes],
            )  # fmt: skip
        if batch.max_query_len:
            paged_prefill(
                query, cache.key, cache.value, batch.block_table[decodes:], batch.query_starts[decodes:],
                batch.seq_lens[decodes:], batch.max_query_len, layer.scale, window, output,
            )  # fmt: skip
        return output


class InvariantTritonAttention(DeviceAttention):
    """Decodes as chunks of one token: a token's result is bitwise the same in a decode and in a chunk of any size."""

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        batch = self.batch
        return paged_prefill(
            query, cache.key, cache.value, batch.block_table, batch.query_starts, batch.seq_lens,
            max(batch.max_query_len, 1), layer.scale, layer.sliding_window or 0,
        )  # fmt: skip


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int, is_int8: bool) -> str | None:
    """Why this backend cannot run there, as the end of a sentence; None where it can."""
    if device.type != "cuda":
        return f"as its kernels run on NVIDIA GPUs, not on {device.type}"
    if not gpu.has_triton():
        return "as the package triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "as Triton's kernels need a GPU of compute capability 8.0 (Ampere) or above"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"as its kernels do not know {dtype}"
    if head_dim > LARGEST_HEAD:
        return f"as the head size, {head_dim}, is above {LARGEST_HEAD}"
    if is_int8 and head_dim % 4:
        return f"as with an int8 cache the head size, {head_dim}, must be a multiple of 4"
    return None
