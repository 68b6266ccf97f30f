"""GPTQ (Frantar et al., 2022, https://arxiv.org/abs/2210.17323): rounding that makes up for its own errors.

A layer's outputs change by tr(E H Eᵀ), where E is the change of its weight and H = XᵀX the products of its inputs.
These are rounded one after the other, those that matter most first, and the weights of those that are still to come
move so that they cancel as much of the error as they can: by the rows of the Cholesky factor of H's inverse. Scales are
those of the weight as it was, so that the order leaves no trace in the checkpoint.
"""

import torch
from torch import Tensor

from lightvllm.quantization.calibrate.grid import Grid

BLOCK = 128  # inputs after which the others are brought up to date, in one product
DAMPING = 0.01  # of the mean of H's diagonal, added to it: few tokens leave H singular


def compensated_rounding(weight: Tensor, scales: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Round a weight for the inputs of which H is given.

    Args:
        weight: [outputs, inputs] float32
        scales: [outputs, groups] float32
        hessian: [inputs, inputs] float32, the sum over tokens of x xᵀ.

    Returns:
        [outputs, inputs] int8
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = _inverse_factor(hessian[order][:, order])
    remaining = weight[:, order]
    scale_of_input = scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)[:, order]
    values = torch.empty_like(weight, dtype=torch.int8)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.empty(len(weight), end - start)
        for i in range(start, end):
            column, scale = remaining[:, i : i + 1], scale_of_input[:, i : i + 1]
            rounded = grid.round(column, scale)
            values[:, order[i]] = rounded[:, 0]
            errors[:, i - start] = ((column - rounded * scale) / inverse[i, i])[:, 0]
            remaining[:, i:end] -= errors[:, i - start, None] * inverse[i, i:end]
        remaining[:, end:] -= errors @ inverse[start:end, end:]
    return values


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with UᵀU = H⁻¹. Inputs that are always zero count as if they were independent."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    return torch.linalg.cholesky(inverse, upper=True).float()
