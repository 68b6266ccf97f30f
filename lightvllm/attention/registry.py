"""Which paged backends there are, one line each, imported when one is chosen."""

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from lightvllm import kernels
from lightvllm.model_config import ModelConfig

if TYPE_CHECKING:
    from lightvllm.attention.paged import PagedAttention

BACKENDS = {
    "kernel": ("lightvllm.attention.kernel", "KernelAttention"),
    "sdpa": ("lightvllm.attention.sdpa", "SDPAAttention"),
    "reference": ("lightvllm.attention.kernel", "ReferenceAttention"),
}


def attention_backend(name: str, device: torch.device, model: ModelConfig) -> "type[PagedAttention]":
    """The backend of that name; "auto" is our kernel where there is a compiled one for the device and the head size."""
    if name == "auto":
        fits = model.head_dim % 16 == 0 and model.num_heads // model.num_kv_heads <= 16
        name = "kernel" if kernels.COMPILED and device.type == "cpu" and fits else "sdpa"
    module, backend = BACKENDS[name]
    return getattr(import_module(module), backend)
