"""Paged attention on a GPU through FlashAttention: the package flash-attn where it is installed, else PyTorch's copy.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/attention/test_flash.py.

flash-attn 3 (module flash_attn_interface) follows a block table of blocks of any size, flash-attn 2 of blocks whose
size is a multiple of 256. For PyTorch's own, which need know no block table, keys and values are gathered first, padded
to the longest request: that costs memory and time. It serves to compare with, and not to capture in a graph, whose
longest request is far longer than those it mostly runs.

FlashAttention-2 and 3: https://arxiv.org/abs/2307.08691, https://arxiv.org/abs/2407.08608.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import DeviceAttention, DeviceBatch, LayerCache

LARGEST_HEAD = 256
BLOCK_MULTIPLE = 256  # of flash-attn 2


class FlashAttention(DeviceAttention):
    """See the module's docstring."""

    is_capturable = False

    def __init__(self, cache: list[LayerCache], batch: DeviceBatch) -> None:
        super().__init__(cache, batch)
        self.library = library_for(cache[0].key.shape[1])
        self.max_query_len = max(batch.max_query_len, 1)
        # Where each request's keys begin: in flash-attn 2 among all its keys, in PyTorch's among the gathered ones.
        self.key_starts = torch.zeros_like(batch.query_starts)
        if self.library == "flash-attn 2":
            torch.cumsum(batch.seq_lens, 0, dtype=torch.int32, out=self.key_starts[1:])
        if self.library == "torch":
            self.slots = gathered_slots(batch, cache[0].key.shape[1])
            self.key_starts += torch.arange(len(self.key_starts), device=batch.seq_lens.device) * batch.max_seq_len

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        window = (layer.sliding_window - 1, 0) if layer.sliding_window else (-1, -1)
        if self.library == "torch":
            return self._with_torch(layer, cache, query, window)
        batch = self.batch
        if self.library == "flash-attn 3":
            from flash_attn_interface import flash_attn_with_kvcache

            return flash_attn_with_kvcache(
                query, cache.key, cache.value, cache_seqlens=batch.seq_lens, page_table=batch.block_table,
                cu_seqlens_q=batch.query_starts, max_seqlen_q=self.max_query_len, softmax_scale=layer.scale,
                causal=True, window_size=window,
            )  # fmt: skip
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query, cache.key, cache.value, cu_seqlens_q=batch.query_starts, cu_seqlens_k=self.key_starts,
            max_seqlen_q=self.max_query_len, max_seqlen_k=batch.max_seq_len, softmax_scale=layer.scale, causal=True,
            window_size=window, block_table=batch.block_table,
        )  # fmt: skip

    def _with_torch(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, window: tuple[int, int]) -> Tensor:
        key, value = (x.flatten(0, 1).index_select(0, self.slots) for x in (cache.key, cache.value))
        output, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, self.batch.query_starts, self.key_starts, self.max_query_len, self.batch.max_seq_len,
            0.0, True, False, scale=layer.scale, window_size_left=window[0], window_size_right=window[1],
            seqused_k=self.batch.seq_lens,
        )  # fmt: skip
        return output


@cache
def library_for(block_size: int) -> str:
    """Whose kernels run with a cache of that block size; looked for once, as each step asks."""
    if find_spec("flash_attn_interface"):
        return "flash-attn 3"
    if find_spec("flash_attn") and block_size % BLOCK_MULTIPLE == 0:
        return "flash-attn 2"
    return "torch"


def gathered_slots(batch: DeviceBatch, block_size: int) -> Tensor:
    """Where in the cache each request's tokens are, [num_requests * max_seq_len]; behind its end the first one's."""
    positions = torch.arange(batch.max_seq_len, device=batch.seq_lens.device)
    positions = torch.where(positions < batch.seq_lens.unsqueeze(1), positions, 0)
    blocks = batch.block_table.gather(1, positions // block_size)
    return (blocks * block_size + positions % block_size).flatten()


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int, is_int8: bool) -> str | None:
    """Why this backend cannot run there, as the end of a sentence; None where it can."""
    if device.type != "cuda":
        return f"as FlashAttention runs on NVIDIA GPUs, not on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "as FlashAttention needs a GPU of compute capability 8.0 (Ampere) or above"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"as FlashAttention knows float16 and bfloat16, not {dtype}"
    if head_dim > LARGEST_HEAD or head_dim % 8:
        return f"as FlashAttention's head sizes are multiples of 8 up to {LARGEST_HEAD}, not {head_dim}"
    if is_int8:
        return "as FlashAttention does not read an int8 cache"
    return None
