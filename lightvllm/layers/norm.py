"""Root-mean-square layer norm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

import torch
from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.layers.module import Module


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) * weight, over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, size] or [num_tokens, num_heads, size] -> the same shape and type."""
        return kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + update and its norm, in one pass; with no update, x and its norm. All [num_tokens, size]."""
        if update is None:
            return x, self(x)
        return kernels.add_rms_norm(x, update, self.weight, self.eps)
