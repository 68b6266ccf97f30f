"""Linear layers. A model asks for one and never knows whether it is full precision, quantized, sharded or adapted."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.layers.module import Module
from lightvllm.quantization.product import QuantizedProduct


class Product(Protocol):
    """How a linear layer multiplies, once its weight is laid out for serving."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]"""
        ...


class PackedProduct:
    """In the weight's own type, which lies as the kernel reads it."""

    def __init__(self, weight: Tensor) -> None:
        self.packed = kernels.pack_linear(weight)
        self.out_features = len(weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Product`."""
        return kernels.packed_linear(x, self.packed, bias, self.out_features)


class Linear(Module):
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
        self.product: Product | None = None

    def pack(self, bits: int | None = None) -> None:
        """Make the layer ready for serving; the plain weight is let go.

        Args:
            bits: 8 or 4 rounds the weight to so many; None keeps it. Where it is kept and there is no kernel for it,
                on a GPU and in float16, the weight stays as it is.
        """
        if self.weight is None:
            return
        weight = self.weight.detach()
        if bits is not None:
            self.product = QuantizedProduct.round(weight, bits)
        elif kernels.has_fast_linear(weight.device, weight.dtype):
            self.product = PackedProduct(weight)
        else:
            return
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, sum(out_features)]"""
        if self.product is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        return self.product(x, self.bias)
