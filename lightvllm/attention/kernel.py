"""Paged attention through our own op, `torch.ops.lightvllm.paged_attention`, which follows the block table itself.

One call for decodes and prefill chunks alike. A token's result depends on neither, and on nothing beside it: it is
bitwise the same alone, in a batch, in a chunk of any size, and behind a cached prefix.
"""

import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import LayerCache, PagedAttention, PagedBatch
from lightvllm.kernels import reference


class KernelAttention(PagedAttention):
    """The op in its fastest form for the device."""

    op = staticmethod(kernels.paged_attention)

    def __init__(self, cache: list[LayerCache], batch: PagedBatch) -> None:
        super().__init__(cache, batch)
        self.block_table, self.query_lens, self.seq_lens = (
            torch.from_numpy(x).to(self.device) for x in (batch.block_table, batch.query_lens, batch.seq_lens)
        )

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.op(
            query,
            cache.key,
            cache.value,
            self.block_table,
            self.query_lens,
            self.seq_lens,
            layer.scale,
            layer.sliding_window or 0,
        )


class ReferenceAttention(KernelAttention):
    """The op's reference: the oracle of every other backend."""

    op = staticmethod(reference.paged_attention)
