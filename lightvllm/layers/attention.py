"""Self-attention as a layer: projections, optional query/key norm, rotary embedding, and the call to the backend."""

from dataclasses import dataclass

from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.attention.base import Attention, AttentionLayer
from lightvllm.layers.linear import Linear
from lightvllm.layers.norm import RMSNorm
from lightvllm.model_config import ModelConfig


@dataclass(frozen=True)
class AttentionOptions:
    """Where one architecture's self-attention differs from another's."""

    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None


class SelfAttention(nn.Module):
    """Grouped-query self-attention (Ainslie et al., 2023, https://arxiv.org/abs/2305.13245)."""

    def __init__(self, config: ModelConfig, index: int, options: AttentionOptions) -> None:
        super().__init__()
        head_dim = config.head_dim
        self.layer = AttentionLayer(
            index, config.num_heads, config.num_kv_heads, head_dim, head_dim**-0.5, options.sliding_window
        )
        self.split = [config.num_heads * head_dim, config.num_kv_heads * head_dim, config.num_kv_heads * head_dim]
        self.qkv_proj = Linear(config.hidden_size, self.split, options.qkv_bias)
        self.o_proj = Linear(config.num_heads * head_dim, [config.hidden_size], options.output_bias)
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps) if options.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps) if options.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """x: [num_tokens, hidden_size]; cos, sin: [num_tokens, 1, head_dim] float32 -> the shape of x"""
        query, key, value = (
            part.unflatten(-1, (-1, self.layer.head_dim)) for part in self.qkv_proj(x).split(self.split, dim=-1)
        )  # [num_tokens, heads, head_dim]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = kernels.rotary(query, cos, sin), kernels.rotary(key, cos, sin)
        return self.o_proj(attention.attend(self.layer, query, key, value))
