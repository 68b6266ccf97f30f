"""Which paged backends there are, one line each, imported when one is chosen. Imports no torch until then."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lightvllm.attention.paged import DeviceAttention, PagedAttention
    from lightvllm.model_config import ModelConfig

BACKENDS = {
    "kernel": ("lightvllm.attention.kernel", "KernelAttention"),
    "sdpa": ("lightvllm.attention.sdpa", "SDPAAttention"),
    "reference": ("lightvllm.attention.kernel", "ReferenceAttention"),
}
MOST_HEADS_A_KEY = 72  # MOST_ROWS of kernels/cpu/attention_pieces.h


def attention_backend(
    name: str, device: "torch.device", dtype: "torch.dtype", model: "ModelConfig"
) -> "type[PagedAttention] | type[DeviceAttention]":
    """The backend of that name; "auto" is our kernel where it can run.

    Raises:
        ValueError: it was asked for by name and cannot run.
    """
    reason = _why_not_kernel(device, dtype, model)
    if name == "auto":
        name = "sdpa" if reason else "kernel"
    elif name == "kernel" and reason:
        raise ValueError(f"attention_backend: 'kernel' cannot run, {reason}; 'auto' takes one that can")
    module, backend = BACKENDS[name]
    return getattr(import_module(module), backend)


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
