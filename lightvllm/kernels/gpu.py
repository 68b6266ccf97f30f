"""The ops' twins on an NVIDIA GPU, in Triton and in CUDA C++; what neither has runs the reference.

The compiled library registers its ops as `torch.ops.lightvllm_cuda.*`, so that both twins can be called side by side;
`enable` makes one of them what `torch.ops.lightvllm.*` runs for CUDA tensors: Triton's where there is Triton. Its norms
and rotations are faster (docs/performance.md), and before torch 2.12 an exception in a compiled op, such as one for
memory that is not there, ends the process.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# Op -> module of `lightvllm.kernels.triton` and the function there, which has the op's own signature.
TRITON_TWINS: dict[str, tuple[str, str]] = {
    "rms_norm": ("norms", "rms_norm"),
    "add_rms_norm": ("norms", "add_rms_norm"),
    "rotary": ("rotary", "rotary"),
    "rotary_qkv": ("rotary", "rotary_qkv"),
    "silu_and_mul": ("activation", "silu_and_mul"),
    "write_kv": ("cache", "write_kv"),
    "most_likely": ("most_likely", "most_likely"),
    "pack_quantized": ("quantized_weights", "pack_quantized"),
    "pack_groups": ("quantized_weights", "pack_groups"),
    "quantized_linear": ("quantized_linear", "quantized_linear"),
}
# Ops of the compiled library that have the signature of the op of the same name in `lightvllm.kernels.SCHEMAS`.
CUDA_TWINS: tuple[str, ...] = (
    "embedding", "rms_norm", "add_rms_norm", "rotary", "rotary_qkv", "silu_and_mul", "write_kv", "few_rows_linear",
    "few_rows_attention",
)  # fmt: skip
# Those of them that Triton has no twin of.
ONLY_CUDA = ("few_rows_linear", "few_rows_attention")


@cache
def has_triton() -> bool:
    """Whether Triton is installed; looked for once, as steps ask."""
    return find_spec("triton") is not None


@cache
def load_compiled() -> bool:
    """Whether the compiled CUDA kernels are there; loads them."""
    built = sorted((Path(__file__).parent).glob("_cuda*.so"))
    try:
        for path in built:
            torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        logger.warning("the compiled CUDA kernels do not load, Triton's run instead: %s", error)
        return False
    return bool(built)


def triton_twin(name: str) -> Callable:
    """The Triton twin of an op."""
    module, function = TRITON_TWINS[name]
    return getattr(import_module(f"lightvllm.kernels.triton.{module}"), function)


@cache
def enable() -> torch.library.Library:
    """Make the fast twins what the ops run for CUDA tensors, from now on in this process."""
    library = torch.library.Library("lightvllm", "IMPL")
    if not has_triton() and not load_compiled():
        logger.warning("neither Triton nor the compiled CUDA kernels are there, PyTorch's own operations run instead")
    for name in TRITON_TWINS if has_triton() else ():
        library.impl(name, triton_twin(name), "CUDA")
    if load_compiled():
        for name in ONLY_CUDA if has_triton() else CUDA_TWINS:
            library.impl(name, getattr(torch.ops.lightvllm_cuda, name).default, "CUDA")
    return library
