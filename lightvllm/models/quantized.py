"""Between a quantized checkpoint's tensors and a model's linear layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightvllm.layers.linear import Linear, Product, SplitProduct, plain_product, quantized_product
from lightvllm.models.decoder import CausalLM
from lightvllm.quantization.config import checkpoint_format
from lightvllm.quantization.format import Expected, Shape, StoredTensor, StoredWeight
from lightvllm.quantization.weight import QuantizedWeight, have_one_layout, stack

Weight = QuantizedWeight | Tensor


@dataclass(frozen=True)
class Part:
    """One of the checkpoint's layers that a linear layer here is made of; `weight` is None if it is a plain one."""

    name: str
    shape: Shape
    weight: StoredWeight | None

    def tensors(self) -> dict[str, Expected]:
        """The tensors that the checkpoint must have of its weight."""
        if self.weight is None:
            return {f"{self.name}.weight": Expected((self.shape,))}
        return {f"{self.name}.{tensor}": expected for tensor, expected in self.weight.tensors().items()}

    def read(self, stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device) -> Weight:
        """The weight itself; a plain one in `dtype`."""
        start = len(self.name) + 1
        found = {name[start:]: stored[name][...].to(device) for name in self.tensors() if name in stored}
        weight = found["weight"] if self.weight is None else self.weight.read(found)
        return weight.to(dtype) if isinstance(weight, Tensor) else weight


def quantized_layers(model: CausalLM, stored: Mapping[str, StoredTensor]) -> dict[str, list[Part]]:
    """The linear layers of which the checkpoint has at least a part quantized, and their parts in order.

    Args:
        stored: all tensors of the checkpoint by name.

    Raises:
        ValueError: a layer that is quantized in a way we cannot honour, or none that is quantized.
    """
    if model.config.quantization is None:
        return {}
    checkpoint = checkpoint_format(model.config.quantization)
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, Linear) or (module is model.lm_head and _is_tied(model, stored)):
            continue
        assert module.weight is not None
        parent, _, layer = name.rpartition(".")
        names = [f"{parent}.{part}" for part in model.fused_parameters.get(layer, ())] or [name]
        parts = []
        for part, outputs in zip(names, module.out_features, strict=True):
            shape = (outputs, module.weight.shape[1])
            try:
                parts.append(Part(part, shape, checkpoint.weight(part, shape, stored)))
            except ValueError as error:
                raise ValueError(f"{error} (layer {part})") from None
        if any(part.weight is not None for part in parts):
            layers[name] = parts
    if not layers:
        method = model.config.quantization["quant_method"]
        raise ValueError(f"config.json: has a quantization_config ({method}), but none of its layers is quantized")
    return layers


def _is_tied(model: CausalLM, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the head's weight is the embedding's: config.json says so, and the file has no other for it."""
    own = {name for name in stored if name.startswith("lm_head.")} - {"lm_head.weight"}
    return model.config.tie_word_embeddings and not own


def load_layer(
    layer: Linear, parts: list[Part], stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Give a linear layer its weight, in one product if its parts can lie in one."""
    weights = [part.read(stored, dtype, device) for part in parts]
    quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if not quantized:
        layer.set_weight(torch.cat(plain))
    elif not plain and have_one_layout(quantized):
        layer.set_product(quantized_product(stack(quantized).product(), dtype, device))
    else:
        layer.set_product(SplitProduct([_product(weight, dtype, device) for weight in weights], layer.out_features))


def _product(weight: Weight, dtype: torch.dtype, device: torch.device) -> Product:
    if isinstance(weight, Tensor):
        return plain_product(weight)
    return quantized_product(weight.product(), dtype, device)
