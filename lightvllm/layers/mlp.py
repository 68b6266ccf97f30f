"""The gated feed-forward block of Llama and its kin (SwiGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

from torch import Tensor

from lightvllm import kernels
from lightvllm.layers.linear import Linear
from lightvllm.layers.module import Module
from lightvllm.layers.norm import RMSNorm


class GatedMLP(Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, [intermediate_size, intermediate_size], bias)
        self.down_proj = Linear(intermediate_size, [hidden_size], bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape."""
        return self.down_proj(kernels.silu_and_mul(self.gate_up_proj(x)))

    def few_rows(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x + mlp(norm(x)) for a few rows, in two kernels."""
        return self.down_proj.few_rows(self.gate_up_proj.few_rows(x, norm, is_gated=True), residual=x)
