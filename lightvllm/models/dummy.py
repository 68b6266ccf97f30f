"""Random weights in a checkpoint's place: what a step costs depends on a model's shape alone."""

from collections.abc import Callable

import torch
from torch import nn

from lightvllm.layers.linear import Linear
from lightvllm.models.decoder import CausalLM

SEED, STD = 0, 0.02  # the same weights each time, of the size that training begins with


def draw_weights(
    model: CausalLM,
    dtype: torch.dtype,
    device: torch.device,
    pack: Callable[[Linear], None] = lambda layer: None,
) -> None:
    """Give a model built on the meta device weights that are drawn where they are to lie.

    Args:
        pack: called with each layer once it has its weight.

    Raises:
        ValueError: config.json says that the weights are quantized, which random ones are not.
    """
    if model.config.quantization is not None:
        method = model.config.quantization["quant_method"]
        raise ValueError(f"load_format: 'dummy' draws plain weights, but by config.json the model's are {method}'s")
    generator = torch.Generator(device).manual_seed(SEED)
    for name, parameter in list(model.named_parameters()):
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        data = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() > 1:
            data.normal_(0.0, STD, generator=generator)
        else:
            data.fill_(0.0 if leaf == "bias" else 1.0)
        setattr(module, leaf, nn.Parameter(data, requires_grad=False))
        if isinstance(module, Linear) and leaf == "weight":
            pack(module)
    model.tie_weights()
