"""What config.json and generation_config.json mean, and what may replace their values."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightvllm.model_config import ModelConfig, RopeConfig, read_generation_config

HF: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
}
NEW_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
OLD_ROPE = {"rope_theta": 5e5}
YARN = {"rope_type": "yarn", "factor": 4.0}


def read(tmp_path: Path, config: dict[str, Any], overrides: dict[str, Any] | None = None) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(HF | config))
    return ModelConfig.from_pretrained(tmp_path, overrides)


@pytest.mark.parametrize("config", [NEW_ROPE, OLD_ROPE])
def test_rope_overrides(config: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, config).rope == RopeConfig("default", 5e5, 1.0, 128)
    assert read(tmp_path, config, {"rope_theta": 1e6}).rope.theta == 1e6
    for name in ("rope_scaling", "rope_parameters"):
        given = {**YARN, "rope_theta": 5e5} if name == "rope_parameters" else YARN
        assert read(tmp_path, config, {name: given}).rope == RopeConfig("yarn", 5e5, 4.0, 128)


def test_other_overrides(tmp_path: Path) -> None:
    assert read(tmp_path, {"dtype": "float32"}, {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
    assert read(tmp_path, {}, {"num_key_value_heads": 2}).num_kv_heads == 2
    with pytest.raises(ValueError, match="hf_overrides: 'num_hiden_layers'"):
        read(tmp_path, {}, {"num_hiden_layers": 1})


def test_positions_reach_as_far_as_the_rope_is_stretched(tmp_path: Path) -> None:
    assert read(tmp_path, {}).longest == 128
    assert read(tmp_path, {}, {"rope_scaling": YARN}).longest == 512


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"max_window_layers": 1}, (None, None)),
        ({"max_window_layers": 1, "use_sliding_window": False}, (None, None)),
        ({"max_window_layers": 1, "use_sliding_window": True}, (None, 8)),
        ({}, (8, 8)),  # as Mistral's
        ({"layer_types": ["sliding_attention", "full_attention"]}, (8, None)),
    ],
)
def test_sliding_windows(fields: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path) -> None:
    assert read(tmp_path, {"sliding_window": 8, **fields}).layer_windows == windows


@pytest.mark.parametrize(
    ("generation", "eos"),
    [
        (None, (7,)),
        ({}, (7,)),
        ({"eos_token_id": None}, (7,)),
        ({"eos_token_id": 3}, (3,)),
        ({"eos_token_id": [3, 4]}, (3, 4)),
    ],
)
def test_end_of_sequence(generation: dict[str, Any] | None, eos: tuple[int, ...], tmp_path: Path) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read(tmp_path, {}).eos_token_ids == eos


def test_generation_config_of_another_folder(tmp_path: Path) -> None:
    model = read(tmp_path, {})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "top_k": 5, "do_sample": False}))
    assert read_generation_config(str(tmp_path), model) == ({"top_k": 5, "temperature": 0.0}, (9,))
    assert read_generation_config("auto", model) == ({}, (7,))
    assert read_generation_config("vllm", model) == ({}, (7,))


def test_the_quantization_is_kept_and_an_unknown_one_named(tmp_path: Path) -> None:
    assert read(tmp_path, {}).quantization is None
    assert read(tmp_path, {"quantization_config": {"quant_method": "gptq"}}).quantization == {"quant_method": "gptq"}
    with pytest.raises(ValueError, match=r"quantization_config\.quant_method: 'aqlm'"):
        read(tmp_path, {"quantization_config": {"quant_method": "aqlm"}})
