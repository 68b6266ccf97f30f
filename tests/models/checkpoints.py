"""Random-weight checkpoints of every architecture and option, made by transformers: the oracle of the parity tests."""

from pathlib import Path
from typing import Any

import torch
import transformers

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,  # large enough that greedy tokens vary and errors show
}


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
YARN_MSCALE = {"rope_parameters": {**YARN["rope_parameters"], "mscale": 0.7, "mscale_all_dim": 1.0}}

# name -> (architecture's prefix, what differs from SHAPE)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama-multi-query": ("Llama", {"num_key_value_heads": 1}),
    "llama-head-dim": ("Llama", {"head_dim": 32}),
    "llama-llama3": ("Llama", LLAMA3),
    "llama-linear": ("Llama", _rope("linear", factor=2.0)),
    "llama-dynamic": ("Llama", {**_rope("dynamic", factor=2.0), "max_position_embeddings": 32}),
    "llama-yarn": ("Llama", YARN),
    "llama-yarn-mscale": ("Llama", YARN_MSCALE),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 32, "attention_bias": True}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 32, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, **YARN}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 12}),
    "mistral-head-dim": ("Mistral", {"sliding_window": 12, "head_dim": 8}),
}  # fmt: skip


def make_checkpoint(path: Path, case: str, max_shard_size: str = "5GB") -> transformers.PreTrainedModel:
    """Write the case's checkpoint to `path` and return transformers' model, float32, in evaluation mode."""
    prefix, options = CASES[case]
    config = getattr(transformers, f"{prefix}Config")(**{**SHAPE, **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at zero and norms at one, which would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model
