"""Which paged backends there are, one line each, imported when one is chosen. Imports no torch until then."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lightvllm.attention.paged import DeviceAttention, PagedAttention
    from lightvllm.model_config import ModelConfig

BACKENDS = {
    "kernel": ("lightvllm.attention.kernel", "KernelAttention"),
    "triton": ("lightvllm.attention.triton", "TritonAttention"),
    "cuda": ("lightvllm.attention.cuda", "CudaAttention"),
    "flash": ("lightvllm.attention.flash", "FlashAttention"),
    "sdpa": ("lightvllm.attention.sdpa", "SDPAAttention"),
    "reference": ("lightvllm.attention.kernel", "ReferenceAttention"),
}
# These get a `DeviceBatch`, the others a `PagedBatch`.
ON_GPU = ("triton", "cuda", "flash")
# The first of them that can run is what "auto" means; the last always can.
BEST_FIRST = ("kernel", "triton", "cuda", "sdpa")
MOST_HEADS_A_KEY = 72  # MOST_ROWS of kernels/cpu/attention_pieces.h


def attention_backend(
    name: str,
    device: "torch.device",
    dtype: "torch.dtype",
    model: "ModelConfig",
    is_int8: bool = False,
    batch_invariant: bool = False,
) -> "type[PagedAttention] | type[DeviceAttention]":
    """The backend of that name; "auto" is the best that can run.

    Args:
        is_int8: whether the cache is.
        batch_invariant: on a GPU, a token's result must be the same in any batch and in a chunk of any size.

    Raises:
        ValueError: it was asked for by name and cannot run.
    """
    if name == "auto":
        name = next(each for each in BEST_FIRST if not why_not(each, device, dtype, model, is_int8))
    elif reason := why_not(name, device, dtype, model, is_int8):
        raise ValueError(f"attention_backend: {name!r} cannot run, {reason}; 'auto' takes one that can")
    module, backend = BACKENDS[name]
    if batch_invariant and device.type == "cuda":
        if name != "triton":
            raise ValueError(f"batch_invariant: needs attention_backend 'triton', but {name!r} is what runs")
        backend = "InvariantTritonAttention"
    return getattr(import_module(module), backend)


def why_not(name: str, device: "torch.device", dtype: "torch.dtype", model: "ModelConfig", is_int8: bool) -> str | None:
    """Why a backend cannot run there, as the end of a sentence; None where it can."""
    if name == "kernel":
        return _why_not_kernel(device, dtype, model)
    if name in ON_GPU:
        if device.type != "cuda":
            return f"as its kernels run on NVIDIA GPUs, not on {device.type}"
        return import_module(BACKENDS[name][0]).why_not(device, dtype, model.head_dim, is_int8)
    return None


def _why_not_kernel(device: "torch.device", dtype: "torch.dtype", model: "ModelConfig") -> str | None:
    from lightvllm import kernels

    if device.type != "cpu" or not kernels.COMPILED:
        return f"as no compiled kernels are there for {device.type}"
    if dtype not in kernels.COMPILED_TYPES:
        return f"as the compiled kernels do not know {dtype}"
    if model.head_dim % 16:
        return f"as the head size, {model.head_dim}, is not a multiple of 16"
    if model.num_heads // model.num_kv_heads > MOST_HEADS_A_KEY:
        return f"as {model.num_heads // model.num_kv_heads} query heads share a key, more than {MOST_HEADS_A_KEY}"
    return None
