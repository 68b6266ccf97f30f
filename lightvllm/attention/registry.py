"""Which paged backends there are, one line each, imported when one is chosen."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightvllm.attention.paged import PagedAttention

BACKENDS = {
    "sdpa": ("lightvllm.attention.sdpa", "SDPAAttention"),
    "reference": ("lightvllm.attention.reference", "ReferenceAttention"),
}


def attention_backend(name: str) -> "type[PagedAttention]":
    """The backend of that name; "auto" is the fastest for the machine."""
    module, backend = BACKENDS["sdpa" if name == "auto" else name]
    return getattr(import_module(module), backend)
