"""Attention over packed sequences, in which a branch sees the schema and itself, not the other branches.

`PackedAttention` computes only what is seen, which a processor gains by: with a mask every branch is held against every
other one, and most of that is thrown away. `MaskedAttention` does just this for a whole batch in one call, which an
accelerator gains by.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm.attention.base import AttentionLayer


@dataclass
class Layout:
    """Where one packed sequence lies among the tokens of a batch.

    Attributes:
        start: its first token.
        schema_length: number of tokens of its schema.
        branches: [num_branches, longest] int64; each branch's tokens, the short ones filled up with `start`.
        valid: [num_branches, longest] bool; which of these are tokens of the branch.
    """

    start: int
    schema_length: int
    branches: Tensor
    valid: Tensor

    @classmethod
    def of(cls, segments: np.ndarray, start: int) -> "Layout":
        """segments: [length], 0 for the schema and then 1, 2, ... for the branches, in order."""
        counts = np.bincount(segments)
        schema_length, lengths = int(counts[0]), counts[1:]
        places = np.arange(lengths.max())
        valid = places < lengths[:, None]
        first = start + schema_length + np.cumsum(lengths) - lengths
        branches = np.where(valid, first[:, None] + places, start)
        return cls(start, schema_length, torch.from_numpy(branches), torch.from_numpy(valid))


class PackedAttention:
    """The `Attention` of a batch of packed sequences laid end to end."""

    def __init__(self, layouts: list[Layout]) -> None:
        self.layouts = layouts

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`."""
        assert layer.sliding_window is None
        parts: list[Tensor] = []
        for layout in self.layouts:
            span = slice(layout.start, layout.start + layout.schema_length)
            parts.append(_attend_schema(layer, query[span], key[span], value[span]))
            parts.append(_attend_branches(layer, layout, query, key, value))
        return torch.cat(parts)


class MaskedAttention:
    """The `Attention` of a batch of packed sequences filled up to one length.

    segments: [batch_size, seq_len], 0 for the schema, 1 and up for the branches; what fills up is a branch of its own.
    """

    def __init__(self, segments: Tensor) -> None:
        length = segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        query, key = segments[:, :, None], segments[:, None, :]
        seen = ((query == key) | (key == 0)) & causal
        bias = torch.zeros(seen.shape, dtype=torch.bfloat16, device=segments.device)
        self.bias = bias.masked_fill_(~seen, float("-inf")).unsqueeze(1)  # [batch_size, 1, seq_len, seq_len]

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`."""
        assert layer.sliding_window is None
        query, key, value = (x.unflatten(0, (len(self.bias), -1)).transpose(1, 2) for x in (query, key, value))
        # The fast kernels take a mask or grouped heads, not both.
        key, value = (x.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1) for x in (key, value))
        bias = self.bias.to(query.dtype)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=layer.scale)
        return output.transpose(1, 2).flatten(0, 1).flatten(1)


def _attend_schema(layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query: [schema_length, num_heads, head_dim]; key, value alike -> [schema_length, num_heads * head_dim]"""
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    grouped = layer.num_heads != layer.num_kv_heads
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=layer.scale, enable_gqa=grouped)
    return output[0].transpose(0, 1).flatten(1)


def _attend_branches(layer: AttentionLayer, layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """All branches of one sequence at once -> [number of their tokens, num_heads * head_dim]"""
    longest = layout.branches.shape[1]
    groups = layer.num_heads // layer.num_kv_heads
    schema = slice(layout.start, layout.start + layout.schema_length)
    # Query heads that share a key head become rows of one product: [num_branches, num_kv_heads, groups * longest, ...]
    rows = query[layout.branches].unflatten(2, (layer.num_kv_heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    rows = rows * layer.scale
    own_key, own_value = (x[layout.branches].transpose(1, 2) for x in (key, value))
    schema_key, schema_value = (x[schema].transpose(0, 1) for x in (key, value))  # [num_kv_heads, schema_length, ...]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=query.device).tril().repeat(groups, 1)
    own_scores = (rows @ own_key.transpose(-1, -2)).masked_fill(~causal, float("-inf"))
    scores = torch.cat((rows @ schema_key.transpose(-1, -2), own_scores), dim=-1)
    weights = scores.softmax(-1).to(value.dtype)
    to_schema, to_own = weights.split((layout.schema_length, longest), dim=-1)
    output = to_schema @ schema_value + to_own @ own_value
    output = output.unflatten(2, (groups, longest)).permute(0, 3, 1, 2, 4).flatten(2)
    return output[layout.valid]
