"""Random steps as a GPU's backends get them, and what the reference makes of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.kernel import ReferenceAttention
from lightvllm.attention.paged import DeviceBatch, LayerCache, PagedBatch
from lightvllm.kernels.reference import round_heads


@dataclass
class Step:
    """A layer, its cache before the step, the step's requests, and their queries, keys and values."""

    layer: AttentionLayer
    cache: list[LayerCache]
    batch: PagedBatch
    qkv: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def random(
        cls,
        layer: AttentionLayer,
        dtype: torch.dtype,
        is_int8: bool,
        block_size: int,
        num_decodes: int,
        num_chunks: int,
    ) -> "Step":
        """Decodes first, then chunks; blocks are scattered."""
        torch.manual_seed(0)
        rng = np.random.default_rng(num_decodes * 10 + num_chunks)
        query_lens = np.concatenate((np.ones(num_decodes, int), rng.choice([2, 5, 40], size=num_chunks)))
        seq_lens = query_lens + rng.choice([0, 1, 3, 8, 30, 300], size=num_decodes + num_chunks)
        blocks = -(-seq_lens // block_size)
        ids = rng.permutation(blocks.sum())
        table = np.zeros((len(blocks), blocks.max()), dtype=np.int32)
        slots = []
        for i, start in enumerate(np.cumsum(blocks) - blocks):
            table[i, : blocks[i]] = ids[start : start + blocks[i]]
            positions = np.arange(seq_lens[i] - query_lens[i], seq_lens[i])
            slots.append(table[i, positions // block_size].astype(np.int64) * block_size + positions % block_size)
        batch = PagedBatch(query_lens, seq_lens, table, np.concatenate(slots))
        shape = (int(blocks.sum()), block_size, layer.num_kv_heads, layer.head_dim)
        numbers = [round_heads(x) if is_int8 else x.to(dtype) for x in torch.randn(2, *shape)]
        heads = (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
        query, key, value = (torch.randn(query_lens.sum(), n, layer.head_dim).to(dtype) for n in heads)
        return cls(layer, [LayerCache(*numbers)], batch, (query, key, value))

    def expected(self) -> Tensor:
        cache = [LayerCache(layer.key.clone(), layer.value.clone()) for layer in self.cache]
        return ReferenceAttention(cache, self.batch).attend(self.layer, *self.qkv)

    def run(self, backend: type, device: str) -> Tensor:
        """What a backend makes of it on a device."""
        cache = [LayerCache(layer.key.clone().to(device), layer.value.clone().to(device)) for layer in self.cache]
        qkv = [x.to(device) for x in self.qkv]
        return backend(cache, self.device_batch(device)).attend(self.layer, *qkv).cpu()

    def device_batch(self, device: str) -> DeviceBatch:
        chunks = self.batch.query_lens[self.batch.query_lens > 1]
        starts = np.concatenate(([0], np.cumsum(self.batch.query_lens)))
        tensors = (starts, self.batch.seq_lens, self.batch.block_table)
        return DeviceBatch(
            len(self.batch.query_lens) - len(chunks),
            int(chunks.max(initial=0)),
            int(self.batch.seq_lens.max()),
            *(torch.from_numpy(x).int().to(device) for x in tensors),
            torch.from_numpy(self.batch.slot_mapping).to(device),
        )
