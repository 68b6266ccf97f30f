"""The values a quantized weight can have, and rounding to them.

A weight is s q: q a whole number in [-2^(bits - 1), 2^(bits - 1) - 1], s the scale of its group of inputs. Scales are
stored in the checkpoint's own type, so they are rounded to that type before anything is divided by them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the scale that keeps the largest weight, what is tried.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Grid:
    """What a scheme's weights are rounded to.

    Attributes:
        group_size: neighbouring inputs that share a scale; None for all of an output's.
        dtype: of the stored scales.
    """

    bits: int
    group_size: int | None
    dtype: torch.dtype

    def scales(self, weight: Tensor) -> Tensor:
        """Those that keep each group's largest weight: [outputs, inputs] -> [outputs, groups] float32"""
        groups = weight.unflatten(1, (-1, self.group_size or weight.shape[1]))
        scales = (groups.abs().amax(dim=2) / (2 ** (self.bits - 1) - 1)).to(self.dtype).float()
        return torch.where(scales > 0, scales, 1.0)  # a group of zeros may have any

    def fitted_scales(self, weight: Tensor, importance: Tensor) -> Tensor:
        """Those that lose least, of a few: the largest weight may fall short, for the others to be rounded more finely.

        importance: [inputs], how much an error of each input's weights counts.
        """
        largest = self.scales(weight)
        best, least = largest, torch.full_like(largest, torch.inf)
        for share in SHARES:
            scales = (share * largest).to(self.dtype).float()
            errors = (restore(self.round(weight, scales), scales) - weight).square() * importance
            lost = errors.unflatten(1, (scales.shape[1], -1)).sum(2)
            best, least = torch.where(lost < least, scales, best), torch.minimum(lost, least)
        return best

    def round(self, weight: Tensor, scales: Tensor) -> Tensor:
        """The nearest whole numbers: [outputs, inputs], scales [outputs, groups] -> [outputs, inputs] int8"""
        limit = 2 ** (self.bits - 1)
        values = (weight.unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(2)).round_()
        return values.clamp_(-limit, limit - 1).to(torch.int8).flatten(1)

    def nearest(self, weight: Tensor) -> Tensor:
        """The weight rounded to the nearest, as it will be: [outputs, inputs] float32 -> the same"""
        scales = self.scales(weight)
        return restore(self.round(weight, scales), scales)


def restore(values: Tensor, scales: Tensor) -> Tensor:
    """s q: values [outputs, inputs] int8, scales [outputs, groups] -> [outputs, inputs] float32"""
    return (values.float().unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(2)).flatten(1)


def round_inputs(x: Tensor) -> Tensor:
    """Each token to 8 bits by its own scale, as `quantized_linear` does while running: [num_tokens, inputs]"""
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return (x / scale.clamp(min=1e-38)).round() * scale
