"""Self-attention as a layer: projections, optional query/key norm, rotary embedding, and the call to the backend."""

from dataclasses import dataclass

from torch import Tensor

from lightvllm import kernels
from lightvllm.attention.base import Attention, AttentionLayer
from lightvllm.attention.paged import DeviceAttention
from lightvllm.layers.linear import Linear
from lightvllm.layers.module import Module
from lightvllm.layers.norm import RMSNorm
from lightvllm.model_config import ModelConfig


@dataclass(frozen=True)
class AttentionOptions:
    """Where one architecture's self-attention differs from another's."""

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None


class SelfAttention(Module):
    """Grouped-query self-attention (Ainslie et al., 2023, https://arxiv.org/abs/2305.13245)."""

    def __init__(self, config: ModelConfig, index: int, options: AttentionOptions) -> None:
        super().__init__()
        head_dim, sizes = config.head_dim, [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.layer = AttentionLayer(
            index, config.num_heads, config.num_kv_heads, head_dim, head_dim**-0.5, options.sliding_window
        )
        self.num_heads = sizes  # of queries, keys and values
        self.eps = config.rms_norm_eps
        self.qkv_proj = Linear(config.hidden_size, [size * head_dim for size in sizes], options.qkv_bias)
        self.o_proj = Linear(config.num_heads * head_dim, [config.hidden_size], options.output_bias)
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps) if options.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps) if options.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """x: [num_tokens, hidden_size]; cos, sin: [num_tokens, 1, head_dim] float32 -> the shape of x"""
        return self.o_proj(self.attend(self.qkv_proj(x), cos, sin, attention))

    def attend(self, qkv: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """qkv: [num_tokens, size of all heads] -> [num_tokens, num_heads * head_dim]"""
        query_weight, key_weight = (None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm))
        if isinstance(attention, DeviceAttention):
            return attention.attend_product(self.layer, qkv, query_weight, key_weight, self.eps, cos, sin)
        heads = kernels.rotary_qkv(qkv, query_weight, key_weight, self.eps, cos, sin, *self.num_heads[:2])
        query, key, value = heads.split(self.num_heads, dim=1)  # [num_tokens, heads, head_dim]
        return attention.attend(self.layer, query, key, value)

    def few_rows(self, x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """x + attention(norm(x)) for a few rows, in three kernels where that can be."""
        attended = self.attend(self.qkv_proj.few_rows(x, norm), cos, sin, attention)
        return self.o_proj.few_rows(attended, residual=x)
