"""Linear layers. A model asks for one and never knows whether it is full precision, quantized, sharded or adapted."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.layers.module import Module
from lightvllm.layers.norm import RMSNorm
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


class PlainProduct:
    """In the weight's own type by PyTorch, where there is no kernel for it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Product`."""
        return F.linear(x, self.weight, bias)


class InvariantProduct:
    """In the weight's own type, on a GPU: bitwise the same for a row whatever rows stand beside it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Product`."""
        from lightvllm.kernels.triton.invariant import linear

        return linear(x, self.weight, bias)


class SplitProduct:
    """Of several weights that share their inputs and cannot lie in one; their outputs in order.

    Args:
        sizes: how many outputs each has.
    """

    def __init__(self, products: list[Product], sizes: list[int]) -> None:
        self.products = products
        self.sizes = sizes

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Product`."""
        biases = [None] * len(self.sizes) if bias is None else bias.split(self.sizes)
        return torch.cat([product(x, part) for product, part in zip(self.products, biases, strict=True)], dim=1)


def plain_product(weight: Tensor) -> PackedProduct | PlainProduct:
    """The product with a weight in its own type."""
    has_kernel = kernels.has_fast_linear(weight.device, weight.dtype)
    return PackedProduct(weight) if has_kernel else PlainProduct(weight)


class WidenedProduct:
    """By way of float32, for types that a CPU's kernels of quantized products do not take."""

    def __init__(self, product: Product) -> None:
        self.product = product

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Product`."""
        return self.product(x.float(), None if bias is None else bias.float()).to(x.dtype)


def quantized_product(product: Product, dtype: torch.dtype, device: torch.device) -> Product:
    """A product with a quantized weight, for inputs of this type."""
    takes_type = device.type == "cuda" or dtype in kernels.COMPILED_TYPES
    return product if takes_type else WidenedProduct(product)


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
        self.has_few_rows = False  # a kernel for few rows

    def set_weight(self, weight: Tensor) -> None:
        """Take this weight, [sum(out_features), in_features], for one that is not to be trained."""
        self.weight = nn.Parameter(weight, requires_grad=False)

    def set_product(self, product: Product) -> None:
        """Multiply in this way, without a weight."""
        self.product = product
        self.weight, self.has_few_rows = None, False

    def pack(self, bits: int | None = None) -> None:
        """Make the layer ready for serving; the plain weight is let go. One that a checkpoint had quantized is ready.

        Args:
            bits: 8 or 4 rounds the weight to so many; None keeps it. Where it is kept and there is no kernel for it,
                on a GPU and in float16, the weight stays as it is.
        """
        if self.product is not None:
            return
        assert self.weight is not None
        weight = self.weight.detach()
        if bits is not None:
            self.set_product(quantized_product(QuantizedProduct.round(weight, bits), weight.dtype, weight.device))
        elif kernels.has_fast_linear(weight.device, weight.dtype):
            self.set_product(PackedProduct(weight))
        else:
            is_small = len(weight) <= kernels.FEW_ROWS_MOST_OUTPUTS
            self.has_few_rows = is_small and kernels.has_few_rows(weight.device, weight.dtype)

    def few_rows(
        self, x: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None, is_gated: bool = False
    ) -> Tensor:
        """The product of a few rows and what goes around it, see `kernels.few_rows_linear`; with `has_few_rows`."""
        assert self.weight is not None
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        return kernels.few_rows_linear(x, self.weight, self.bias, weight, eps, residual, is_gated)

    def make_invariant(self) -> None:
        """From now on a row's result is the same in any company, see `InvariantProduct`.

        Raises:
            ValueError: the weight is quantized.
        """
        if self.weight is None:
            raise ValueError("batch_invariant: quantized weights are not so on a GPU, leave one of the two out")
        self.set_product(InvariantProduct(self.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, sum(out_features)]"""
        if self.product is None:
            assert self.weight is not None
            if self.has_few_rows and len(x) <= kernels.FEW_ROWS:
                return self.few_rows(x)
            return F.linear(x, self.weight, self.bias)
        return self.product(x, self.bias)
