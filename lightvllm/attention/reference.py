"""Paged attention written out: the oracle of every other backend (tests/attention/test_backends.py)."""

import torch
from torch import Tensor

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.paged import LayerCache, PagedAttention, visible


class ReferenceAttention(PagedAttention):
    """One request after the other: gather its keys, scores in float32, mask, softmax, weighted sum."""

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        start = 0
        for i, (query_len, seq_len) in enumerate(zip(self.batch.query_lens, self.batch.seq_lens, strict=True)):
            blocks = torch.from_numpy(self.batch.block_table[i, : -(-seq_len // self.block_size)]).to(self.device)
            keys, values = (
                x[blocks]
                .flatten(0, 1)[:seq_len]
                .repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)
                .float()
                for x in (cache.key, cache.value)
            )  # [seq_len, num_heads, head_dim]
            scores = torch.einsum("qhd,khd->hqk", query[start : start + query_len].float(), keys) * layer.scale
            hidden = ~visible(query_len, seq_len, layer.sliding_window, self.device)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
            output[start : start + query_len] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
            start += query_len
        return output
