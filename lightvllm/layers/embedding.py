"""Token embedding."""

import torch
from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.layers.module import Module


class Embedding(Module):
    """A vector for each token id. PyTorch's own initialises itself, which on the meta device imports a compiler."""

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: [num_tokens] -> [num_tokens, size]"""
        return kernels.embedding(self.weight, token_ids)
