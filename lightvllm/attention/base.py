"""The one attention call: a batch of variable-length queries against the keys and values each may see.

A model holds no cache and knows no batch: its layers hand queries, keys and values to the `Attention` object that comes
with the step. Who makes that object decides where keys live: `dense` (nowhere: plain causal sequences, for training and
for holding logits against other programs), or one of the paged backends, a file each.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class AttentionLayer:
    """What a layer's attention is, apart from its weights.

    `sliding_window`: a token sees itself and the `sliding_window - 1` tokens before it; None sees all before it.
    """

    index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None


class Attention(Protocol):
    """Attention for one step's batch."""

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend causally.

        Args:
            query: [num_tokens, num_heads, head_dim], positions already encoded.
            key: [num_tokens, num_kv_heads, head_dim], of the same tokens.
            value: [num_tokens, num_kv_heads, head_dim]

        Returns:
            [num_tokens, num_heads * head_dim]
        """
        ...
