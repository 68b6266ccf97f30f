"""Write a checkpoint of any Qwen3 shape with random weights, by default that of Qwen3-0.6B: speed needs no training.

    python benchmarks/make_checkpoint.py /tmp/qwen3-0.6b
    lightvllm bench throughput --model /tmp/qwen3-0.6b --against transformers

There is no tokenizer in it: benchmarks use token ids.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightvllm.model_config import ModelConfig
from lightvllm.models.checkpoint import hf_state_dict
from lightvllm.models.registry import model_class

DTYPES = ("bfloat16", "float16", "float32")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--intermediate-size", type=int, default=3072)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--heads", type=int, default=16, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--max-position-embeddings", type=int, default=40_960)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True, help="the head is the embedding")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def hf_config(args: argparse.Namespace) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": args.vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "max_position_embeddings": args.max_position_embeddings,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": args.tied,
        "dtype": args.dtype,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def main() -> None:
    args = parse_args()
    config = hf_config(args)
    # In the checkpoint's own type from the start: a float32 copy of a large model may not fit beside it.
    torch.set_default_dtype(getattr(torch, args.dtype))
    model = model_class(config["architectures"][0])(ModelConfig.from_hf(config))
    model.initialize(torch.Generator().manual_seed(args.seed))
    weights = hf_state_dict(model)
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.folder / "model.safetensors", metadata={"format": "pt"})
    files = {"config.json": config, "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1}}
    for name, contents in files.items():
        (args.folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    count = sum(weight.numel() for weight in weights.values())
    print(f"{args.folder}: {count / 1e6:.0f} M parameters in {args.dtype}")


if __name__ == "__main__":
    main()
