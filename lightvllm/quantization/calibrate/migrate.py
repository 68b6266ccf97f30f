"""Moving the scale of each input between a linear layer and what produces that input, before rounding.

W x = (W diag(s)) (x / s): the layer computes the same, with s in its weight and 1 / s in the norm or the projection
before it. What rounds better for it:
- AWQ (Lin et al., 2023, https://arxiv.org/abs/2306.00978), for weights alone: s is the mean size of each input to a
  power, so that the weights of large inputs are rounded more finely.
- SmoothQuant (Xiao et al., 2022, https://arxiv.org/abs/2211.10438), where inputs are rounded too: s is each input's
  largest value to a power over its weights' largest to the rest of it, so that no input outgrows the others.
The power is the one, of a few, with which the layer's outputs change least; leaving all as it is, is one of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightvllm.layers.linear import Linear
from lightvllm.layers.norm import RMSNorm
from lightvllm.models.decoder import DecoderLayer
from lightvllm.quantization.calibrate.grid import Grid, round_inputs
from lightvllm.quantization.calibrate.observe import Inputs

POWERS = tuple(power / 8 for power in range(1, 9))
SMALLEST = 1e-4


@dataclass(frozen=True)
class Fold:
    """A linear layer and what gives it its inputs.

    Attributes:
        share: makes a wanted s one that the producer can take over: where it gives several inputs the same, these
            share one. [inputs] -> [inputs]
        divide: divides the producer by s; returns the s that it took, of which rounding may have changed some digits.
    """

    linear: Linear
    share: Callable[[Tensor], Tensor]
    divide: Callable[[Tensor], Tensor]


def folds(layer: DecoderLayer, dtype: torch.dtype) -> Iterator[Fold]:
    """Of all four linear layers of a decoder layer. dtype: the one that norms are stored in."""
    attention, mlp = layer.self_attn, layer.mlp
    num_heads, num_kv_heads, _ = attention.num_heads
    groups = num_heads // num_kv_heads
    query_key, value = sum(attention.qkv_proj.out_features[:2]), attention.qkv_proj.out_features[2]

    def share_heads(scale: Tensor) -> Tensor:
        heads = scale.view(num_kv_heads, groups, -1)
        return heads.log().mean(dim=1, keepdim=True).exp().expand_as(heads).flatten()

    def divide_values(scale: Tensor) -> Tensor:
        first_of_group = scale.view(num_kv_heads, groups, -1)[:, 0].flatten()
        _divide_rows(attention.qkv_proj, slice(query_key, query_key + value), first_of_group)
        return scale

    def divide_up(scale: Tensor) -> Tensor:
        gate, up = mlp.gate_up_proj.out_features
        _divide_rows(mlp.gate_up_proj, slice(gate, gate + up), scale)
        return scale

    def keep(scale: Tensor) -> Tensor:
        return scale

    yield Fold(attention.qkv_proj, keep, lambda scale: _divide_norm(layer.input_layernorm, scale, dtype))
    yield Fold(attention.o_proj, share_heads, divide_values)
    yield Fold(mlp.gate_up_proj, keep, lambda scale: _divide_norm(layer.post_attention_layernorm, scale, dtype))
    yield Fold(mlp.down_proj, keep, divide_up)


def migrate(fold: Fold, inputs: Inputs, grid: Grid, rounds_inputs: bool) -> None:
    """Find the best s for one linear layer, put it into the layer's weight and take it out of the producer."""
    assert fold.linear.weight is not None
    weight, rows = fold.linear.weight.detach(), inputs.rows
    wanted = rows @ weight.T

    def error(scale: Tensor) -> float:
        x = round_inputs(rows / scale) if rounds_inputs else rows / scale
        return (x @ grid.nearest(weight * scale).T - wanted).square().sum().item()

    best = torch.ones(weight.shape[1])
    least = error(best)
    for power in POWERS:
        scale = fold.share(_candidate(weight, rows, power, rounds_inputs))
        found = error(scale)
        if found < least:
            best, least = scale, found
    weight *= fold.divide(best)


def _candidate(weight: Tensor, rows: Tensor, power: float, rounds_inputs: bool) -> Tensor:
    """The s of a power, [inputs], its largest and smallest equally far from 1."""
    if rounds_inputs:
        of_inputs, of_weights = rows.abs().amax(dim=0), weight.abs().amax(dim=0)
        scale = of_inputs.clamp(min=SMALLEST) ** power / of_weights.clamp(min=SMALLEST) ** (1 - power)
    else:
        scale = rows.abs().mean(dim=0).clamp(min=SMALLEST) ** power
    return scale / (scale.max() * scale.min()).sqrt()


def _divide_norm(norm: RMSNorm, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm's weight is stored rounded: what that changes goes into s, where nothing is lost."""
    before = norm.weight.detach().clone()
    norm.weight.copy_((before / scale).to(dtype))
    return torch.where(norm.weight != 0, before / norm.weight, 1.0)


def _divide_rows(linear: Linear, rows: slice, scale: Tensor) -> None:
    assert linear.weight is not None
    linear.weight[rows] /= scale.unsqueeze(1)
    if linear.bias is not None:
        linear.bias[rows] /= scale
