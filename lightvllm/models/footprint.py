"""How much memory a checkpoint's weights take once they are loaded, told before they are."""

import re
from pathlib import Path

import torch

from lightvllm.layers.linear import Linear
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import empty_model
from lightvllm.models.checkpoint import open_weights
from lightvllm.models.decoder import CausalLM
from lightvllm.models.quantized import Part
from lightvllm.quantization.format import StoredTensor
from lightvllm.quantization.product import GROUP_SIZE


def weight_bytes(path: Path, config: ModelConfig, dtype: torch.dtype, quantization: str | None) -> int:
    """Bytes on a GPU, by the sizes in the files' headers. A layer that is rounded while it is loaded takes more then.

    Raises:
        ValueError: see `lightvllm.models.checkpoint.open_weights`.
    """
    model = empty_model(config)
    weights = open_weights(model, path)
    total = 0
    for name in weights.sources:
        module_name, _, leaf = name.rpartition(".")
        module, parameter = model.get_submodule(module_name), model.get_parameter(name)
        bits = model.rounded_bits(module, quantization) if isinstance(module, Linear) and leaf == "weight" else None
        total += parameter.numel() * dtype.itemsize if bits is None else _rounded(parameter.shape, bits)
    if "lm_head.weight" not in weights.sources and "lm_head" not in weights.quantized:
        total += _tied_head(model, quantization)
    parts = [part for layer in weights.quantized.values() for part in layer]
    return total + sum(_part(part, weights.tensors, dtype) for part in parts)


def _tied_head(model: CausalLM, quantization: str | None) -> int:
    """What the head takes beside the embedding that it shares its weight with."""
    bits = model.rounded_bits(model.lm_head, quantization)
    return 0 if bits is None else _rounded(model.model.embed_tokens.weight.shape, bits)


def _rounded(shape: torch.Size, bits: int) -> int:
    """Values of so many bits, and float32 scales: see `QuantizedProduct.round`."""
    outputs, inputs = shape
    num_groups = 1 if bits == 8 else -(-inputs // GROUP_SIZE)
    return outputs * (inputs * bits // 8 + num_groups * 4)


def _part(part: Part, tensors: dict[str, StoredTensor], dtype: torch.dtype) -> int:
    stored = [tensors[name] for name in part.tensors() if name in tensors]
    if part.weight is None or any(tensor.get_dtype().startswith("F8") for tensor in stored):
        return part.shape[0] * part.shape[1] * dtype.itemsize  # floats of 8 bits become plain weights
    return sum(map(_stored, stored))


def _stored(tensor: StoredTensor) -> int:
    """Bytes in the file; types are named after their bits: BF16, I32, F8_E4M3."""
    bits = re.search(r"\d+", tensor.get_dtype())
    count = 1
    for size in tensor.get_shape():
        count *= size
    return count * (int(bits[0]) if bits else 8) // 8
