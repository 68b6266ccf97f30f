"""Weights of 8 and 4 bits by rounding to the nearest."""

import torch
from torch import Tensor

# Inputs that share a scale, of 4 bits.
GROUP_SIZE = 128


def round_weight(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The nearest values and the scales that keep each group's largest weight; zero is 2^(bits - 1).

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
