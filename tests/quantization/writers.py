"""Quantized checkpoints of random weights, written out by each format's definition, beside their dequantised weights.

Nothing here uses the package: the layouts are put down a second time, from the tools' sources that each writer names.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
# Of a weight, [outputs, inputs]: what follows its layer's name and a dot in the file, and what it means, float32.
Writer = Callable[[Tensor], tuple[Tensors, Tensor]]

SHAPE: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,  # large enough that greedy tokens vary and errors show
}


@dataclass(frozen=True)
class Case:
    """How to quantize a checkpoint.

    Attributes:
        config: its `quantization_config`.
        writer: what quantizes a layer.
        others: layers, by a part of their names, that another writer quantizes, or None leaves as they are.
        options: what differs from SHAPE.
    """

    config: dict[str, Any]
    writer: Writer
    others: dict[str, Writer | None] = field(default_factory=lambda: {"lm_head": None})
    options: dict[str, Any] = field(default_factory=dict)

    def writer_of(self, name: str) -> Writer | None:
        """Who quantizes the weight of this name."""
        if not name.endswith("proj.weight") and name != "lm_head.weight":
            return None
        return next((writer for part, writer in self.others.items() if part in name), self.writer)


def write_checkpoint(folder: Path, case: Case) -> set[str]:
    """Write `folder/quantized` and `folder/plain`, of one meaning; the names of the layers that are quantized.

    The model is a Qwen2, which has biases at queries, keys and values.
    """
    config = transformers.Qwen2Config(**{**SHAPE, **case.options})
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM._from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one, which would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "plain")
    plain, quantized, names = load_file(folder / "plain" / "model.safetensors"), {}, set()
    for name, tensor in list(plain.items()):
        writer = case.writer_of(name)
        if writer is None:
            quantized[name] = tensor
            continue
        layer = name.removesuffix(".weight")
        names.add(layer)
        tensors, plain[name] = writer(tensor)
        quantized |= {f"{layer}.{part}": value.contiguous() for part, value in tensors.items()}
    save_file(plain, folder / "plain" / "model.safetensors", {"format": "pt"})
    (folder / "quantized").mkdir()
    save_file(quantized, folder / "quantized" / "model.safetensors", {"format": "pt"})
    entries = json.loads((folder / "plain" / "config.json").read_text()) | {"quantization_config": case.config}
    (folder / "quantized" / "config.json").write_text(json.dumps(entries))
    return names


def rounded(weight: Tensor, bits: int, group_size: int, is_symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round to the nearest.

    Returns:
        unsigned values [outputs, inputs], zeros and scales [outputs, groups], float16 scales' values, and what it means
    """
    groups = weight.unflatten(1, (-1, group_size))
    if is_symmetric:
        scales = groups.abs().amax(dim=2) / (2 ** (bits - 1) - 1)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
        scales = (high - low) / (2**bits - 1)
        zeros = (-low / scales).round()
    scales = scales.half().float()
    values = (groups / scales.unsqueeze(2) + zeros.unsqueeze(2)).round().clamp(0, 2**bits - 1)
    meaning = ((values - zeros.unsqueeze(2)) * scales.unsqueeze(2)).flatten(1)
    return values.flatten(1).long(), zeros.long(), scales, meaning


def words(values: Tensor, bits: int) -> Tensor:
    """[rows, columns] of small integers -> [rows, columns * bits / 32] int32, the first in the lowest bits"""
    shifts = torch.arange(0, 32, bits)
    total = (values.long().unflatten(1, (-1, 32 // bits)) << shifts).sum(dim=2)
    return torch.where(total >= 2**31, total - 2**32, total).int()


def gptq(
    bits: int, group_size: int, *, sym: bool = True, order: bool = False, version: int = 1, seed: int = 0
) -> Writer:
    """AutoGPTQ's auto_gptq/nn_modules/qlinear/qlinear_cuda.py, `pack`.

    Args:
        order: sort the inputs into groups in a random order, of this seed.
    """

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        inputs = weight.shape[1]
        size = inputs if group_size == -1 else group_size
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randperm(inputs, generator=generator) if order else torch.arange(inputs)
        values, zeros, scales, meaning = rounded(weight[:, columns], bits, size, sym)
        place = columns.argsort()
        if version == 1:
            zeros = (zeros - 1) % 2**bits if sym else (zeros.clamp(min=1) - 1)
            meaning = ((values.unflatten(1, (-1, size)) - zeros.unsqueeze(2) - 1) * scales.unsqueeze(2)).flatten(1)
        tensors = {
            "qweight": words(values[:, place], bits).T,
            "qzeros": words(zeros.T, bits),
            "scales": scales.T.half(),
            "g_idx": (torch.arange(inputs) // size)[place].int(),
        }
        return tensors, meaning[:, place]

    return write


def awq(group_size: int) -> Writer:
    """AutoAWQ's awq/modules/linear/gemm.py, `from_linear`."""

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        size = weight.shape[1] if group_size == -1 else group_size
        values, zeros, scales, meaning = rounded(weight, 4, size, False)

        def interleaved(rows: Tensor) -> Tensor:
            return words(rows.unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

        tensors = {"qweight": interleaved(values.T), "qzeros": interleaved(zeros.T), "scales": scales.T.half()}
        return tensors, meaning

    return write


def packed(bits: int, group_size: int, *, sym: bool = True, order: bool = False, old_zeros: bool = False) -> Writer:
    """compressed-tensors' compressors/pack_quantized.

    Args:
        order: sort the inputs into groups in a random order.
        old_zeros: do not pack the zeros.
    """

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        outputs, inputs = weight.shape
        size = inputs if group_size == -1 else group_size
        columns = torch.randperm(inputs, generator=torch.Generator().manual_seed(0)) if order else torch.arange(inputs)
        values, zeros, scales, meaning = rounded(weight[:, columns], bits, size, sym)
        place = columns.argsort()
        tensors = {
            "weight_packed": words(values[:, place], bits),
            "weight_scale": scales.half(),
            "weight_shape": torch.tensor([outputs, inputs]),
        }
        if order:
            tensors["weight_g_idx"] = (torch.arange(inputs) // size)[place].int()
        if not sym:
            tensors["weight_zero_point"] = (
                (zeros - 2 ** (bits - 1)).to(torch.int8) if old_zeros else words(zeros.T, bits).T
            )
        return tensors, meaning[:, place]

    return write


def integers(strategy: str, *, bits: int = 8, sym: bool = True, group_size: int = 0, is_static: bool = False) -> Writer:
    """compressed-tensors' compressors/naive_quantized, int-quantized: W8A8 and W8A16."""

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        shape = weight.shape
        source = weight.reshape(1, -1) if strategy == "tensor" else weight
        values, zeros, scales, meaning = rounded(source, bits, group_size or source.shape[1], sym)
        tensors = {
            "weight": (values - 2 ** (bits - 1)).to(torch.int8).view(shape),
            "weight_scale": scales[0] if strategy == "tensor" else scales,
        }
        if not sym:
            zeros = (zeros - 2 ** (bits - 1)).to(torch.int8)
            tensors["weight_zero_point"] = zeros[0] if strategy == "tensor" else zeros
        if is_static:
            tensors["input_scale"] = torch.tensor([0.02])
            tensors["input_zero_point"] = torch.tensor([3], dtype=torch.int8)
        return tensors, meaning.view(shape)

    return write


def float8(strategy: str, block: tuple[int, int] = (128, 128), scale_shape: tuple[int, ...] = (1,)) -> Writer:
    """compressed-tensors' compressors/naive_quantized, float-quantized."""

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        outputs, inputs = weight.shape
        rows, columns = {"tensor": (outputs, inputs), "channel": (1, inputs), "block": block}[strategy]
        largest = torch.nn.functional.max_pool2d(weight.abs()[None], (rows, columns), ceil_mode=True)[0]
        scales = largest / 448
        wide = scales.repeat_interleave(rows, dim=0)[:outputs].repeat_interleave(columns, dim=1)[:, :inputs]
        values = (weight / wide).to(torch.float8_e4m3fn)
        stored_scales = scales.reshape(scale_shape) if strategy == "tensor" else scales
        return {"weight": values, "weight_scale": stored_scales}, values.float() * wide

    return write


# Dettmers et al., 2023, appendix E; and of FP4 sign, exponent and mantissa as bitsandbytes/functional.py lists them.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
FP4 += [-x for x in FP4]


def four_bits(kind: str, block_size: int = 64, is_nested: bool = False) -> Writer:
    """bitsandbytes' `QuantState.as_dict(packed=True)` and its CPU kernels' quantize_4bit."""

    def write(weight: Tensor) -> tuple[Tensors, Tensor]:
        code = torch.tensor(NF4 if kind == "nf4" else FP4)
        blocks = weight.reshape(-1, block_size)
        factors = blocks.abs().amax(dim=1)
        state = {"quant_type": kind, "blocksize": block_size, "dtype": "float32", "shape": list(weight.shape)}
        tensors = {"weight.absmax": factors, "weight.quant_map": code}
        if is_nested:
            offset = float(factors.mean())
            nested_code = torch.linspace(-1, 1, 256)
            padded = torch.nn.functional.pad(factors - offset, (0, -len(factors) % 256)).view(-1, 256)
            nested_factors = padded.abs().amax(dim=1)
            nearest = (padded / nested_factors[:, None])[..., None].sub(nested_code).abs().argmin(dim=-1)
            factors = (nested_code[nearest] * nested_factors[:, None]).flatten()[: len(factors)] + offset
            tensors["weight.absmax"] = nearest.flatten()[: len(factors)].to(torch.uint8)
            tensors["weight.nested_absmax"] = nested_factors
            tensors["weight.nested_quant_map"] = nested_code
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        indices = (blocks / factors[:, None])[..., None].sub(code).abs().argmin(dim=-1)
        pairs = indices.flatten().view(-1, 2)
        tensors["weight"] = (pairs[:, :1] * 16 + pairs[:, 1:]).to(torch.uint8)
        name = f"weight.quant_state.bitsandbytes__{kind}"
        tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        code = (code * 127).round() / 127  # as the kernels take it
        return tensors, (code[indices] * factors[:, None]).view(weight.shape)

    return write
