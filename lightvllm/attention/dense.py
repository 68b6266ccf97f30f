"""Attention without a cache over whole sequences of equal length: training, and the bare model's logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm.attention.base import AttentionLayer


class DenseAttention:
    """Causal attention within each of `batch_size` sequences laid end to end.

    Args:
        batch_size: number of sequences; the step's tokens are [batch_size * seq_len].
        mask: [batch_size, 1, seq_len, seq_len] or broadcastable, True where a query (row) may see a key (column); takes
            the place of the causal mask. A layer's sliding window still holds.
    """

    def __init__(self, batch_size: int, mask: Tensor | None = None) -> None:
        self.batch_size = batch_size
        self.mask = mask

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`."""
        query, key, value = (
            x.view(self.batch_size, -1, x.shape[-2], x.shape[-1]).transpose(1, 2) for x in (query, key, value)
        )
        mask = self._mask(layer, query.shape[2], query.device)
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=layer.scale,
            enable_gqa=layer.num_heads != layer.num_kv_heads,
        )  # [batch_size, num_heads, seq_len, head_dim]
        return output.transpose(1, 2).flatten(0, 1).flatten(1)

    def _mask(self, layer: AttentionLayer, seq_len: int, device: torch.device) -> Tensor | None:
        if layer.sliding_window is None or layer.sliding_window >= seq_len:
            return self.mask
        causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=device).tril()
        window = causal.triu(1 - layer.sliding_window)
        return window if self.mask is None else window & self.mask
