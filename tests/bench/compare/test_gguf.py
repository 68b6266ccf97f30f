"""A GGUF file read back by hand, field by field."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import load_file

from lightvllm.bench.compare.gguf import write_gguf
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint

SHAPE = Shape(vocab_size=300, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, head_dim=8)


def _number(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _text(file)
    if kind == 9:
        element, count = _number(file, "I"), _number(file, "Q")
        return [_value(file, element) for _ in range(count)]
    return _number(file, {4: "I", 5: "i", 6: "f", 7: "?"}[kind])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        assert _number(file, "I") == 3
        num_tensors, num_values = _number(file, "Q"), _number(file, "Q")
        metadata = {_text(file): _value(file, _number(file, "I")) for _ in range(num_values)}
        records = []
        for _ in range(num_tensors):
            name = _text(file)
            sizes = [_number(file, "Q") for _ in range(_number(file, "I"))]
            records.append((name, sizes, _number(file, "I"), _number(file, "Q")))
        start = -(-file.tell() // 32) * 32
        data = path.read_bytes()[start:]
    tensors = {}
    for name, sizes, kind, offset in records:
        assert offset % 32 == 0
        dtype = {0: torch.float32, 30: torch.bfloat16}[kind]
        flat = torch.frombuffer(bytearray(data[offset:]), dtype=dtype, count=torch.Size(sizes).numel())
        tensors[name] = flat.view(sizes[::-1])
    return metadata, tensors


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_there_under_its_name(tmp_path: Path, tied: bool) -> None:
    shape = Shape(**{**vars(SHAPE), "tied": tied})
    write_checkpoint(tmp_path, shape)
    weights = load_file(tmp_path / "model.safetensors")
    write_gguf(tmp_path / "model.gguf", shape, weights)
    metadata, tensors = _read(tmp_path / "model.gguf")
    assert len(tensors) == len(weights) == 2 + 2 * 11 + (not tied)
    for name, theirs in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.1.attn_k_norm.weight": "model.layers.1.self_attn.k_norm.weight",
        "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }.items():
        assert torch.equal(tensors[name].float(), weights[theirs].float())
    assert ("output.weight" in tensors) != tied
    assert all(tensor.dtype == (torch.float32 if tensor.ndim == 1 else torch.bfloat16) for tensor in tensors.values())
    assert metadata["general.architecture"] == "qwen3"
    assert metadata["qwen3.attention.head_count_kv"] == 2
    assert metadata["qwen3.rope.freq_base"] == 1e6
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(metadata["tokenizer.ggml.token_type"]) == 300
    left, right = metadata["tokenizer.ggml.merges"][0].split(" ")
    assert {left, right, left + right} <= set(tokens)


def test_a_vocabulary_without_room_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size: 258 is too small"):
        write_gguf(tmp_path / "model.gguf", Shape(vocab_size=258), {})
