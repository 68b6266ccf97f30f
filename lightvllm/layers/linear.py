"""Linear layers. A model asks for one and never knows whether it is full precision, quantized, sharded or adapted."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightvllm import kernels


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
        self.weight: Tensor | None = nn.Parameter(torch.empty(sum(out_features), in_features))
        self.bias = nn.Parameter(torch.empty(sum(out_features))) if bias else None
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Lay the weight out as the CPU's kernel reads it, for inference only; the plain weight is let go.

        On a GPU, in float16, and without the compiled kernels, the weight stays as it is.
        """
        if self.weight is None or not kernels.can_pack(self.weight):
            return
        self.packed = torch.ops.lightvllm.pack_linear(self.weight.detach())
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, sum(out_features)]"""
        if self.packed is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        return torch.ops.lightvllm.packed_linear(x, self.packed, self.bias, sum(self.out_features))
