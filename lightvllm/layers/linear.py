"""Linear layers. A model asks for one and never knows whether it is full precision, quantized, sharded or adapted."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T + b, with several outputs that share an input fused into one product.

    Args:
        in_features: size of the input.
        out_features: sizes of the outputs; a checkpoint has a weight for each, here they lie in one, in order.
        bias: whether each output has a bias.
    """

    def __init__(self, in_features: int, out_features: list[int], bias: bool = False) -> None:
        super().__init__()
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(sum(out_features), in_features))
        self.bias = nn.Parameter(torch.empty(sum(out_features))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] -> [..., sum(out_features)]"""
        return F.linear(x, self.weight, self.bias)
