"""Writes a trained model as a Hugging Face folder that transformers, vLLM and this engine load unchanged."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.training.tokenizer import END, PAD

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MAX_NEW_TOKENS = 160


def export(model: LightvLLM, tokenizer_folder: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """config.json, model.safetensors, generation_config.json and the tokenizer's files, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    end, pad = vocabulary[END], vocabulary[PAD]
    _write_json(folder / "config.json", hf_config(model.config, dtype, end, pad))
    generation = {"do_sample": False, "temperature": 0.0, "eos_token_id": [end, pad], "pad_token_id": pad,
                  "max_new_tokens": _MAX_NEW_TOKENS}  # fmt: skip
    _write_json(folder / "generation_config.json", generation)
    weights = {name: tensor.to("cpu", dtype) for name, tensor in model.hf_state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def hf_config(config: ModelConfig, dtype: torch.dtype, end: int, pad: int) -> dict[str, Any]:
    """config.json of a Qwen3 model, for transformers 4 (`rope_theta`) and 5 (`rope_parameters`) alike."""
    return {
        "architectures": [config.architecture],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "hidden_act": config.hidden_act,
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_layers,
        "initializer_range": 0.02,
        "use_cache": True,
        "eos_token_id": end,
        "pad_token_id": pad,
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
