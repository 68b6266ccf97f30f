"""Which class runs which architecture: one line a model. Nothing else in the package asks for a model's type."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightvllm.models.decoder import CausalLM

ARCHITECTURES = {
    "LlamaForCausalLM": "lightvllm.models.llama",
    "MistralForCausalLM": "lightvllm.models.mistral",
    "Qwen2ForCausalLM": "lightvllm.models.qwen2",
    "Qwen3ForCausalLM": "lightvllm.models.qwen3",
}


def model_class(architecture: str) -> "type[CausalLM]":
    """The class named in a checkpoint's `architectures`.

    Raises:
        ValueError: we have none of that name.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"config.json: architecture {architecture!r} is not supported, known: {sorted(ARCHITECTURES)}")
    return getattr(import_module(ARCHITECTURES[architecture]), architecture)
