"""Weights of 8 and 4 bits by rounding to the nearest, and the products with them.

A weight w is s (q - 2^(bits - 1)): q an unsigned integer, s a scale for each output (8 bits), or for each output and
group of inputs (4 bits). Inputs are rounded to 8 bits, each token by a scale of its own: products are of integers.
"""

import torch
from torch import Tensor

# Inputs that share a scale, of 4 bits.
GROUP_SIZE = 128


class QuantizedProduct:
    """The product with a quantized weight.

    Args:
        values: [out_features, in_features] uint8, of 4 bits below 16.
        scales: [out_features, groups] float32
        zeros: [out_features, groups] int32, the values that mean zero; None for 2^(bits - 1).
        group_size: neighbouring inputs that share a scale; a multiple of 8 where there are several groups.
    """

    def __init__(self, values: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> None:
        ops = torch.ops.lightvllm
        self.packed = ops.pack_quantized(values, bits)
        self.scales = ops.pack_groups(scales)
        self.zeros = None if zeros is None else ops.pack_groups(zeros)
        self.bits = bits
        self.group_size = group_size
        self.out_features = len(values)

    @classmethod
    def round(cls, weight: Tensor, bits: int) -> "QuantizedProduct":
        """Of a plain weight, [out_features, in_features]: one scale for each output, of 4 bits for each group."""
        group_size = weight.shape[1] if bits == 8 else GROUP_SIZE
        values, scales = round_weight(weight, bits, group_size)
        return cls(values, scales, None, bits, group_size)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]"""
        return torch.ops.lightvllm.quantized_linear(
            x, self.packed, self.scales, self.zeros, bias, self.bits, self.group_size, self.out_features
        )


def round_weight(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The nearest values and the scales that keep each group's largest weight.

    weight: [outputs, inputs] -> values [outputs, inputs] uint8, scales [outputs, groups] float32
    """
    outputs, inputs = weight.shape
    num_groups = -(-inputs // group_size)
    limit = 2 ** (bits - 1) - 1
    groups = torch.nn.functional.pad(weight.float(), (0, num_groups * group_size - inputs))
    groups = groups.view(outputs, num_groups, group_size)
    scales = groups.abs().amax(dim=2) / limit
    values = (groups / scales.clamp(min=1e-38).unsqueeze(2)).round_() + 2 ** (bits - 1)
    return values.to(torch.uint8).view(outputs, -1)[:, :inputs].contiguous(), scales
