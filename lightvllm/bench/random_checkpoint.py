"""A checkpoint of any Qwen3 shape with random weights: speed needs no training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOS_TOKEN_ID, EOS_TOKEN_ID = 0, 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen3 model's sizes, by default those of Qwen3-0.6B.

    Attributes:
        heads, kv_heads: of the queries; of the keys and values.
        tied: the head is the embedding.
        dtype: float32, bfloat16 or float16.
    """

    vocab_size: int = 151_936
    hidden_size: int = 1024
    intermediate_size: int = 3072
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 40_960
    tied: bool = True
    dtype: str = "bfloat16"

    @property
    def layer_parameters(self) -> int:
        """Weights in the matrices of all layers: what every token is multiplied with."""
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """Weights in the head: what a token is multiplied with whose next one is wanted."""
        return self.vocab_size * self.hidden_size

    def hf_config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "tie_word_embeddings": self.tied,
            "dtype": self.dtype,
            "bos_token_id": BOS_TOKEN_ID,
            "eos_token_id": EOS_TOKEN_ID,
        }


# The Qwen3 models by their size in parameters.
QWEN3 = {
    "0.6B": Shape(),
    "1.7B": Shape(hidden_size=2048, intermediate_size=6144),
    "4B": Shape(hidden_size=2560, intermediate_size=9728, layers=36, heads=32),
    "8B": Shape(hidden_size=4096, intermediate_size=12_288, layers=36, heads=32, tied=False),
}


def write_config(folder: Path, shape: Shape) -> None:
    """Write what a checkpoint folder has beside its weights, but for a tokenizer: enough where these are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": shape.hf_config(),
        "generation_config.json": {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID},
    }
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0, device: str = "cpu") -> int:
    """Write a checkpoint folder without a tokenizer; returns the number of its parameters.

    Args:
        device: where the weights are drawn; those of a GPU are others than a CPU's, and there much sooner.
    """
    import torch
    from safetensors.torch import save_file

    from lightvllm.model_config import ModelConfig
    from lightvllm.models.checkpoint import hf_state_dict
    from lightvllm.models.registry import model_class

    config = shape.hf_config()
    # In the checkpoint's own type from the start: a float32 copy of a large model may not fit beside it.
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, shape.dtype))
    try:
        with torch.device(device):
            model = model_class(config["architectures"][0])(ModelConfig.from_hf(config))
    finally:
        torch.set_default_dtype(before)
    model.initialize(torch.Generator(device).manual_seed(seed))
    weights = hf_state_dict(model)
    write_config(folder, shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(weight.numel() for weight in weights.values())
