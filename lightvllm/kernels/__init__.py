"""The engine's ops: `torch.ops.lightvllm.*`, one schema each, with a reference in plain PyTorch and fast twins.

The schemas are declared here, and the reference serves every device; the compiled library, where it was built, brings
its twins for the CPU, and PyTorch's dispatcher picks. Layers call the functions below, which take the differentiable
reference while gradients are wanted.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightvllm.kernels import gpu, reference

logger = logging.getLogger(__name__)

SCHEMAS = {
    "pack_linear": "(Tensor weight) -> Tensor",
    "round_weight": "(Tensor weight, int bits, int group_size) -> (Tensor, Tensor)",
    "packed_linear": "(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor",
    "pack_quantized": "(Tensor values, int bits) -> Tensor",
    "pack_groups": "(Tensor groups) -> Tensor",
    "quantized_linear": "(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? codebook, Tensor? bias, "
    "int bits, int group_size, int outputs) -> Tensor",
    "embedding": "(Tensor weight, Tensor token_ids) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor update, Tensor weight, float eps) -> (Tensor, Tensor)",
    "rotary": "(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    "rotary_qkv": "(Tensor qkv, Tensor? query_weight, Tensor? key_weight, float eps, Tensor cos, Tensor sin, "
    "int num_heads, int num_kv_heads) -> Tensor",
    "silu_and_mul": "(Tensor x) -> Tensor",
    "write_kv": "(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots) -> ()",
    "paged_attention": "(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor query_lens, "
    "Tensor seq_lens, float scale, int sliding_window) -> Tensor",
    "few_rows_linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, float eps, Tensor? residual, "
    "bool is_gated) -> Tensor",
    "few_rows_attention": "(Tensor qkv, Tensor? query_weight, Tensor? key_weight, float eps, Tensor cos, Tensor sin, "
    "Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots, Tensor block_table, Tensor seq_lens, int num_heads, "
    "int num_kv_heads, float scale, int sliding_window) -> Tensor",
    "most_likely": "(Tensor logits) -> Tensor",
}


# Other types run the reference on a CPU.
COMPILED_TYPES = (torch.float32, torch.bfloat16)


def _register() -> torch.library.Library:
    library = torch.library.Library("lightvllm", "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    return library


def _load_compiled() -> bool:
    """Load the CPU twins; without them the reference runs, and says so."""
    built = sorted(Path(__file__).parent.glob("_cpu*.so"))
    try:
        for path in built:
            torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        logger.warning("the compiled CPU kernels do not load, the reference ops run instead: %s", error)
        return False
    if not built:
        logger.warning("the compiled CPU kernels were not built, the slower reference ops run instead")
    return bool(built)


_LIBRARY = _register()  # the registration lasts as long as this object
COMPILED = _load_compiled()


def _op(name: str) -> Callable:
    differentiable, op = getattr(reference, name), getattr(torch.ops.lightvllm, name).default

    def call(first: Tensor, *others: object) -> Any:
        is_compiled = not torch.is_grad_enabled() and (first.is_cuda or first.dtype in COMPILED_TYPES)
        return (op if is_compiled else differentiable)(first, *others)

    call.__doc__ = differentiable.__doc__
    return call


embedding = _op("embedding")
rms_norm = _op("rms_norm")
add_rms_norm = _op("add_rms_norm")
rotary = _op("rotary")
rotary_qkv = _op("rotary_qkv")
silu_and_mul = _op("silu_and_mul")
write_kv = _op("write_kv")
paged_attention = _op("paged_attention")
few_rows_linear = _op("few_rows_linear")
few_rows_attention = _op("few_rows_attention")
most_likely = _op("most_likely")
round_weight = _op("round_weight")

# Weights are packed for serving only; nobody wants gradients any more.
pack_linear = torch.ops.lightvllm.pack_linear.default
packed_linear = torch.ops.lightvllm.packed_linear.default
pack_quantized = torch.ops.lightvllm.pack_quantized.default
pack_groups = torch.ops.lightvllm.pack_groups.default
quantized_linear = torch.ops.lightvllm.quantized_linear.default


FEW_ROWS = 8  # at most, of what `few_rows_linear` and `few_rows_attention` take


# Weights of more outputs, such as a head's, cuBLAS reads faster.
FEW_ROWS_MOST_OUTPUTS = 65536


def has_few_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the ops for few rows have fast twins there."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return (
        device.type == "cuda" and is_half and gpu.load_compiled() and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def has_few_rows_attention(key_cache: Tensor, num_heads: int, num_kv_heads: int) -> bool:
    """Whether `few_rows_attention` takes such a cache, [num_blocks, block_size, num_kv_heads, head_dim]."""
    return (
        has_few_rows(key_cache.device, key_cache.dtype)
        and key_cache.shape[3] in (64, 128, 256)
        and num_heads // num_kv_heads <= 8
    )


def has_fast_linear(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products with packed weights have a fast twin there."""
    return COMPILED and device.type == "cpu" and dtype in COMPILED_TYPES
