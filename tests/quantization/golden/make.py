"""How the files here were made: each format's own tool packs a small random weight, and says what it means.

    python tests/quantization/golden/make.py gptqmodel autoawq compressed-tensors bitsandbytes

in an environment that has these tools; their versions are in the files' metadata. No test needs the tools.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
OUTPUTS, INPUTS = 32, 64


def save(name: str, tool: str, config: dict[str, Any], tensors: dict[str, Tensor], meaning: Tensor) -> None:
    """A file with a layer's tensors as the tool writes them, and the weight it makes of them, [outputs, inputs]."""
    metadata = {"config": json.dumps(config), "made_by": f"{tool} {importlib.metadata.version(tool)}"}
    tensors = {f"layer.{key}": value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file({**tensors, "meaning": meaning.detach().contiguous()}, FOLDER / f"{name}.safetensors", metadata)


def random_weight(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(OUTPUTS, INPUTS) * 0.5 + 0.05


def scales_and_zeros(weight: Tensor, bits: int, group_size: int, is_symmetric: bool) -> tuple[Tensor, Tensor]:
    """[outputs, groups] each, zeros among the unsigned values."""
    groups = weight.unflatten(1, (-1, group_size))
    if is_symmetric:
        return groups.abs().amax(dim=2) / (2 ** (bits - 1) - 1), torch.full(groups.shape[:2], 2.0 ** (bits - 1))
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scales = (high - low) / (2**bits - 1)
    return scales, (-low / scales).round()


def gptqmodel() -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for name, bits, group_size, is_symmetric, is_ordered, is_first in [
        ("gptq-4", 4, 32, True, False, True),
        ("gptq-4-asymmetric-order", 4, 32, False, True, True),
        ("gptq-4-v2", 4, 64, False, False, False),
        ("gptq-8", 8, 32, True, True, True),
        ("gptq-8-asymmetric-v2", 8, -1, False, False, False),
    ]:
        weight, size = random_weight(bits), INPUTS if group_size == -1 else group_size
        columns = torch.randperm(INPUTS) if is_ordered else torch.arange(INPUTS)
        scales, zeros = scales_and_zeros(weight[:, columns], bits, size, is_symmetric)
        linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
        linear.weight.data = weight
        options = {"bits": bits, "group_size": group_size, "sym": is_symmetric, "desc_act": is_ordered}
        layer = TorchLinear(**options, in_features=INPUTS, out_features=OUTPUTS).eval()
        layer.pack(linear, scales, zeros, (torch.arange(INPUTS) // size)[columns.argsort()].int())
        layer.post_init()
        meaning = layer.dequantize_weight().T.clone()
        if is_first:
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=group_size))
        config = {"quant_method": "gptq", "checkpoint_format": "gptq" if is_first else "gptq_v2", **options}
        tensors = {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
        save(name, "gptqmodel", config, tensors, meaning)


def autoawq() -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    for name, group_size in (("awq", 32), ("awq-all", 64)):
        linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
        linear.weight.data = random_weight(group_size)
        scales, zeros = scales_and_zeros(linear.weight.data, 4, group_size, False)
        layer = WQLinear_GEMM.from_linear(
            linear, 4, group_size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
        )
        meaning = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group_size).T
        config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
        save(name, "autoawq", config, {key: getattr(layer, key) for key in ("qweight", "qzeros", "scales")}, meaning)


def compressed_tensors() -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    for name, format, arguments in [
        ("packed-4", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
        ("packed-4-asymmetric", "pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": False}),
        ("packed-8", "pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        (
            "packed-8-asymmetric",
            "pack-quantized",
            {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        ("int-channel", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int-tensor-asymmetric", "int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
        ("float-tensor", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        ("float-channel", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        (
            "float-block",
            "naive-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 24]},
        ),
    ]:
        weight = random_weight(len(name))
        args = QuantizationArgs(**arguments)
        scales, zeros = calculate_qparams(*bounds(weight, arguments), args)
        state = {"weight": weight, "weight_scale": scales, "weight_zero_point": zeros}
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format)
        compressor = BaseCompressor.get_value_from_registry(format)
        stored = compressor.compress(state, scheme)
        meaning = compressor.decompress(stored, scheme)["weight"]
        config = {"quant_method": "compressed-tensors", "format": format, "ignore": []}
        config["config_groups"] = {"group_0": scheme.model_dump(mode="json")}
        save(name, "compressed-tensors", config, stored, meaning)


def compressed_tensors_order() -> None:
    """With version 0.9.4: later ones do not write `actorder` "group" any more."""
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight, columns = random_weight(3), torch.randperm(INPUTS)
    arguments = {"num_bits": 4, "strategy": "group", "group_size": 16, "actorder": "group", "symmetric": False}
    args = QuantizationArgs(**arguments)
    scales, zeros = calculate_qparams(*bounds(weight[:, columns], arguments), args)
    groups = (torch.arange(INPUTS) // 16)[columns.argsort()].int()
    state = {"scale": scales, "zero_point": zeros, "g_idx": groups}
    stored = PackedQuantizationCompressor().compress_weight(weight, quantization_args=args, **state)
    stored |= {f"weight_{key}": value for key, value in state.items() if f"weight_{key}" not in stored}
    if "weight_packed" not in stored:
        raise RuntimeError(f"the compressor wrote {sorted(stored)}")
    meaning = dequantize(quantize(weight, **state, args=args), **state, args=args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": []}
    config["config_groups"] = {"group_0": json.loads(scheme.model_dump_json())}
    save("packed-4-order", "compressed-tensors", config, stored, meaning)


def bounds(weight: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The least and the largest of what shares a scale."""
    strategy = arguments["strategy"]
    if strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    rows, columns = 1, arguments.get("group_size", INPUTS)
    if strategy == "block":
        rows, columns = arguments["block_structure"]
    high, low = (nn.functional.max_pool2d(x[None], (rows, columns), ceil_mode=True)[0] for x in (weight, -weight))
    return -low, high


def bitsandbytes() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name, kind, block_size, is_nested in [
        ("nf4", "nf4", 64, False),
        ("nf4-nested", "nf4", 64, True),
        ("fp4", "fp4", 64, False),
    ]:
        weight = random_weight(7).bfloat16()
        packed, state = quantize_4bit(weight, blocksize=block_size, compress_statistics=is_nested, quant_type=kind)
        tensors = {"weight": packed} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        state.dtype = torch.float32
        config = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": is_nested,
        }
        save(name, "bitsandbytes", config, tensors, dequantize_4bit(packed, state))


TOOLS: dict[str, Callable[[], None]] = {
    "gptqmodel": gptqmodel,
    "autoawq": autoawq,
    "compressed-tensors": compressed_tensors,
    "compressed-tensors-order": compressed_tensors_order,
    "bitsandbytes": bitsandbytes,
}

if __name__ == "__main__":
    for tool in sys.argv[1:]:
        TOOLS[tool]()
