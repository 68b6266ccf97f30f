"""A checkpoint as a GGUF file (version 3), the one format that llama.cpp's tools read and OpenVINO GenAI reads, too.

The layout is described in ggml's docs/gguf.md: a header, typed key-value pairs, one record a tensor, then their data.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lightvllm.bench.random_checkpoint import Shape

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of values
F32, BF16 = 0, 30  # types of tensors
MOSTLY_BF16 = 32  # type of a file
NORMAL, CONTROL = 1, 3  # types of tokens

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, shape: Shape, weights: Mapping[str, Tensor]) -> None:
    """Write a Qwen3 model in bfloat16, its norms in float32, with a made-up vocabulary.

    Args:
        weights: under Hugging Face's names.
    """
    metadata = _metadata(shape) | _vocabulary(shape.vocab_size)
    tensors = {_name(name): weight.float() if weight.ndim == 1 else weight for name, weight in weights.items()}
    assert all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in tensors.values())
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, (kind, value) in metadata.items():
            file.write(_string(key) + struct.pack("<I", kind) + _value(kind, value))
        offset = 0
        for name, tensor in tensors.items():
            sizes = tensor.shape[::-1]  # the innermost first
            kind = BF16 if tensor.dtype == torch.bfloat16 else F32
            file.write(_string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset))
            offset += _aligned(tensor.nbytes)
        _pad(file)
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)
            _pad(file)


def _metadata(shape: Shape) -> dict[str, tuple[int, Any]]:
    config = shape.hf_config()
    return {
        "general.architecture": (STRING, "qwen3"),
        "general.name": (STRING, "random weights"),
        "general.file_type": (UINT32, MOSTLY_BF16),
        "qwen3.block_count": (UINT32, shape.layers),
        "qwen3.context_length": (UINT32, shape.max_position_embeddings),
        "qwen3.embedding_length": (UINT32, shape.hidden_size),
        "qwen3.feed_forward_length": (UINT32, shape.intermediate_size),
        "qwen3.attention.head_count": (UINT32, shape.heads),
        "qwen3.attention.head_count_kv": (UINT32, shape.kv_heads),
        "qwen3.attention.key_length": (UINT32, shape.head_dim),
        "qwen3.attention.value_length": (UINT32, shape.head_dim),
        "qwen3.attention.layer_norm_rms_epsilon": (FLOAT32, config["rms_norm_eps"]),
        "qwen3.rope.freq_base": (FLOAT32, config["rope_theta"]),
    }


def _vocabulary(size: int) -> dict[str, tuple[int, Any]]:
    """A byte-level BPE that both readers accept: two control tokens, the bytes, one merge, and unused names.

    Splitting text is never measured; the rules for it bear the name of Qwen2's, as llama.cpp wants a name it knows.
    """
    tokens = ["<|begin|>", "<|end|>", *_byte_characters(), "Ġt"]
    tokens += [f"<unused {index}>" for index in range(len(tokens), size)]
    if len(tokens) > size:
        raise ValueError(f"vocab_size: {size} is too small for a byte-level vocabulary, expected at least 259")
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "qwen2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, [CONTROL, CONTROL] + [NORMAL] * (size - 2))),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["Ġ t"])),
        "tokenizer.ggml.bos_token_id": (UINT32, 0),
        "tokenizer.ggml.eos_token_id": (UINT32, 1),
        "tokenizer.ggml.padding_token_id": (UINT32, 1),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
    }


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE: itself where it can be printed, else one above."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def _name(name: str) -> str:
    """GGUF's name of a tensor that Hugging Face calls so."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{leaf}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{leaf}"


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + _elements(element, values)
    return struct.pack({UINT32: "<I", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _elements(kind: int, values: Sequence[Any]) -> bytes:
    if kind == STRING:
        return b"".join(map(_string, values))
    assert kind == INT32
    return struct.pack(f"<{len(values)}i", *values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
