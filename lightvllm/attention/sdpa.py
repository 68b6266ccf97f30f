"""Paged attention through PyTorch's own kernel, scaled_dot_product_attention.

Reference twin: `lightvllm.kernels.reference.paged_attention`; test: tests/attention/test_backends.py.

PyTorch has no kernel that follows a block table, so keys and values are gathered into workspace first; int8 is widened
there. What the step's requests need is worked out once for all layers: requests with one token (decodes) go through in
groups of like length, the heads that share keys folded into the query dimension; longer ones (chunks) one by one.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import LayerCache, PagedAttention, PagedBatch
from lightvllm.kernels.reference import visible, widen_heads


@dataclass(frozen=True)
class DecodeGroup:
    """Requests that compute one token each, their contexts padded to the same number of blocks.

    tokens: [group] indices into the step's tokens; slots: [group * padded_len] indices into the cache; seq_lens:
    [group, 1]
    """

    tokens: Tensor
    slots: Tensor
    seq_lens: Tensor


@dataclass(frozen=True)
class Chunk:
    """One request's tokens [start, end) of the step.

    `blocks` is None where there is nothing to gather: they are its first, and the cache holds them as they are.
    """

    start: int
    end: int
    seq_len: int
    blocks: Tensor | None


class SDPAAttention(PagedAttention):
    """See the module's docstring."""

    def __init__(self, cache: list[LayerCache], batch: PagedBatch) -> None:
        super().__init__(cache, batch)
        self.is_int8 = cache[0].key.dtype == torch.int8
        self.groups = self._decode_groups()
        self.chunks = self._chunks()
        self.masks: dict[tuple[int, int | None], Tensor | None] = {}

    def _decode_groups(self) -> list[DecodeGroup]:
        starts = np.cumsum(self.batch.query_lens) - self.batch.query_lens
        num_blocks = -(-self.batch.seq_lens // self.block_size)
        # Powers of two bound both the padding (under half of the gathered keys) and the number of groups.
        padded = 1 << np.ceil(np.log2(num_blocks)).astype(np.int64)
        decode = self.batch.query_lens == 1
        groups = []
        for size in np.unique(padded[decode]):
            members = np.flatnonzero(decode & (padded == size))
            groups.append(
                DecodeGroup(
                    self._tensor(starts[members]),
                    self._tensor(self._slots(members, num_blocks[members].max() * self.block_size)),
                    self._tensor(self.batch.seq_lens[members]).unsqueeze(1),
                )
            )
        return groups

    def _slots(self, members: np.ndarray, padded_len: int) -> np.ndarray:
        """Where in the cache each request's tokens are, [len(members) * padded_len].

        Behind a request's end come its first token's: the mask hides them, but 0 * NaN is NaN, so what others left in
        the cache must not be there.
        """
        positions = np.arange(padded_len)
        positions = np.where(positions < self.batch.seq_lens[members, None], positions, 0)
        blocks = np.take_along_axis(self.batch.block_table[members], positions // self.block_size, axis=1)
        return (blocks.astype(np.int64) * self.block_size + positions % self.block_size).ravel()

    def _chunks(self) -> list[Chunk]:
        chunks = []
        start = 0
        for i, (query_len, seq_len) in enumerate(zip(self.batch.query_lens, self.batch.seq_lens, strict=True)):
            if query_len > 1:
                is_at_hand = query_len == seq_len and not self.is_int8
                num_blocks = -(-seq_len // self.block_size)
                blocks = None if is_at_hand else self._tensor(self.batch.block_table[i, :num_blocks])
                chunks.append(Chunk(start, start + int(query_len), int(seq_len), blocks))
            start += int(query_len)
        return chunks

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device)

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        for i, group in enumerate(self.groups):
            output[group.tokens] = self._decode(layer, cache, query[group.tokens], group, i)
        for i, chunk in enumerate(self.chunks):
            part = slice(chunk.start, chunk.end)
            output[part] = self._prefill(layer, cache, query[part], key[part], value[part], chunk, len(self.groups) + i)
        return output

    def _numbers(self, gathered: Tensor, dtype: torch.dtype) -> Tensor:
        return widen_heads(gathered).to(dtype) if self.is_int8 else gathered

    def _decode(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, group: DecodeGroup, i: int) -> Tensor:
        """query: [group, num_heads, head_dim] -> the same shape"""
        size = len(query)
        keys, values = (
            self._numbers(x.flatten(0, 1).index_select(0, group.slots), query.dtype)
            .view(size, -1, layer.num_kv_heads, layer.head_dim)
            .transpose(1, 2)
            for x in (cache.key, cache.value)
        )  # [group, num_kv_heads, padded_len, head_dim]
        if (i, layer.sliding_window) not in self.masks:
            positions = torch.arange(keys.shape[2], device=self.device)
            seen = positions < group.seq_lens
            if layer.sliding_window is not None:
                seen &= positions >= group.seq_lens - layer.sliding_window
            self.masks[i, layer.sliding_window] = seen[:, None, None, :]
        heads_per_kv = layer.num_heads // layer.num_kv_heads
        mask = self.masks[i, layer.sliding_window]
        assert mask is not None
        output = F.scaled_dot_product_attention(
            query.view(size, layer.num_kv_heads, heads_per_kv, layer.head_dim),
            keys,
            values,
            attn_mask=mask.expand(-1, 1, heads_per_kv, -1),
            scale=layer.scale,
        )
        return output.reshape(query.shape)

    def _prefill(
        self, layer: AttentionLayer, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor, chunk: Chunk, i: int
    ) -> Tensor:
        """query: [query_len, num_heads, head_dim]; key, value: [query_len, num_kv_heads, head_dim] -> shape of query"""
        if chunk.blocks is not None:
            key, value = (
                self._numbers(x.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.seq_len], query.dtype)
                for x in (cache.key, cache.value)
            )
        is_causal = chunk.blocks is None and (layer.sliding_window is None or chunk.seq_len <= layer.sliding_window)
        if (i, layer.sliding_window) not in self.masks:
            self.masks[i, layer.sliding_window] = (
                None if is_causal else visible(len(query), chunk.seq_len, layer.sliding_window or 0, self.device)
            )
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            key.transpose(0, 1).unsqueeze(0),
            value.transpose(0, 1).unsqueeze(0),
            attn_mask=self.masks[i, layer.sliding_window],
            is_causal=is_causal,
            scale=layer.scale,
            enable_gqa=layer.num_heads != layer.num_kv_heads,
        )
        return output[0].transpose(0, 1)
