"""A quantized weight as every format's tensors come out, and the product with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvllm.quantization.product import QuantizedProduct


@dataclass(frozen=True)
class QuantizedWeight:
    """scales * (values - zeros), or with a codebook scales * (codebook[values] - zeros).

    Attributes:
        values: [outputs, inputs] uint8, of 4 bits below 16.
        scales: [outputs, groups] float32
        zeros: [outputs, groups] int32; None for 2^(bits - 1), with a codebook for 128.
        bits: 4 or 8.
        group_size: neighbouring inputs that share a scale.
        order: [inputs] int64, which input each column of `values` belongs to; None where they lie in order.
        codebook: [16] uint8, what values of 4 bits stand for; None for themselves.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int
    order: Tensor | None = None
    codebook: Tensor | None = None

    @property
    def middle(self) -> int:
        """What means zero where there are no zeros."""
        return 128 if self.codebook is not None else 2 ** (self.bits - 1)

    def zeros_or_middle(self) -> Tensor:
        """[outputs, groups] int32"""
        return torch.full_like(self.scales, self.middle, dtype=torch.int32) if self.zeros is None else self.zeros

    def product(self) -> "QuantizedProduct | PermutedProduct":
        """The product with this weight."""
        zeros = self.zeros
        if zeros is not None and bool((zeros == self.middle).all()):
            zeros = None  # of symmetric checkpoints that write them out
        product = QuantizedProduct(self.values, self.scales, zeros, self.bits, self.group_size, self.codebook)
        return product if self.order is None else PermutedProduct(product, self.order)


class PermutedProduct:
    """A product with a weight whose columns are in another order than the inputs.

    Args:
        order: [inputs] int64, the input that belongs to each column.
    """

    def __init__(self, product: QuantizedProduct, order: Tensor) -> None:
        self.product = product
        self.order = order

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `lightvllm.layers.linear.Product`."""
        return self.product(x.index_select(1, self.order), bias)


def have_one_layout(weights: list[QuantizedWeight]) -> bool:
    """Whether these can lie in one weight, one below the other."""
    first = weights[0]
    return all(
        (weight.bits, weight.group_size) == (first.bits, first.group_size)
        and _same(weight.order, first.order)
        and _same(weight.codebook, first.codebook)
        for weight in weights
    )


def stack(weights: list[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one layout in one, their outputs in order."""
    first, zeros = weights[0], None
    if len(weights) == 1:
        return first
    if any(weight.zeros is not None for weight in weights):
        zeros = torch.cat([weight.zeros_or_middle() for weight in weights])
    return QuantizedWeight(
        torch.cat([weight.values for weight in weights]),
        torch.cat([weight.scales for weight in weights]),
        zeros,
        first.bits,
        first.group_size,
        first.order,
        first.codebook,
    )


def order_of_groups(groups: Tensor, group_size: int, name: str) -> Tensor | None:
    """The inputs sorted by group, None if they lie so: what `act-order` checkpoints need.

    Args:
        groups: [inputs], each input's group.
        name: the tensor's, for the error.

    Raises:
        ValueError: the groups are not all of `group_size` inputs, but for a shorter last one.
    """
    regular = torch.arange(len(groups), device=groups.device) // group_size
    if torch.equal(groups.long(), regular):
        return None
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order].long(), regular):
        raise ValueError(f"model: {name} does not divide {len(groups)} inputs into groups of {group_size}")
    return order


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
