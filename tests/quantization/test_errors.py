"""Quantized checkpoints that cannot be honoured are refused in words: the layer, the field or tensor, and the value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightvllm import LLM, LightvLLM
from tests.quantization.cases import (
    CASES,
    CHANNEL,
    FP8_INPUTS,
    INT,
    INT8_INPUTS,
    PACK,
    awq_config,
    bitsandbytes_config,
    compressed_config,
    compressed_group,
    gptq_config,
    group,
)
from tests.quantization.writers import write_checkpoint

LAYER = "model.layers.1.self_attn.k_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("gptq-4-32", config, change)`: that case's folder, with another configuration and other tensors."""

    def make(
        name: str, config: dict[str, Any] | None = None, change: Callable[[Tensors], Any] | None = None, **entries: Any
    ) -> Path:
        write_checkpoint(tmp_path, CASES[name])
        folder = tmp_path / "quantized"
        if config is not None:
            entries["quantization_config"] = config
        if entries:
            file = folder / "config.json"
            found = json.loads(file.read_text()) | entries
            file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def refuse(folder: Path, *words: str) -> None:
    """Loading raises a ValueError that has all these words."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        LightvLLM.from_pretrained(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def changed(group: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """A configuration with other entries in its weights."""
    return {**group, "weights": {**group["weights"], **entries}}


PACKED, W8A8 = compressed_group(4, **group(32)), compressed_group(8, **CHANNEL, input_activations=INT8_INPUTS)
FP8 = compressed_group(8, type="float", **CHANNEL, input_activations=FP8_INPUTS)
GROUP = "config_groups.group_0."


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("gptq-4-32", {"quant_method": "aqlm"}, ["quant_method", "aqlm", "gptq", "compressed-tensors"]),
        ("gptq-4-32", {"bits": 4}, ["quant_method", "None"]),
        ("gptq-4-32", ["gptq"], ["quantization_config", "['gptq']"]),
        ("gptq-4-32", gptq_config(3, 32), ["quantization_config.bits", "3", "[4, 8]", "layers.0.self_attn.q_proj"]),
        ("gptq-4-32", gptq_config(4, 12), ["group_size", "12", "multiple of 8", "layers.0.self_attn.q_proj"]),
        ("gptq-4-32", gptq_config(4, "32"), ["group_size", "'32'"]),
        ("gptq-4-32", gptq_config(4, 0), ["group_size", "0"]),
        ("gptq-4-32", gptq_config(4, 32, checkpoint_format="marlin"), ["checkpoint_format", "marlin", "gptq_v2"]),
        ("gptq-4-32", gptq_config(4, 32, is_marlin_format=True), ["is_marlin_format", "True"]),
        ("gptq-4-32", gptq_config(4, 32, pack_dtype="int64"), ["pack_dtype", "int64"]),
        (
            "gptq-4-32",
            gptq_config(4, 32, dynamic={r".*v_proj": {"bits": 2}}),
            ["dynamic..*v_proj.bits", "2", "layers.0.self_attn.v_proj"],
        ),
        ("gptq-4-32", gptq_config(4, 32, dynamic={"(": {"bits": 8}}), ["dynamic", "'('", "regular expression"]),
        ("gptq-4-32", gptq_config(4, 32, dynamic=["-:.*"]), ["dynamic", "['-:.*']"]),
        ("awq-128", awq_config(128, bits=8), ["quantization_config.bits", "8", "expected 4"]),
        ("awq-128", awq_config(128, version="gemv"), ["version", "gemv", "gemm"]),
        ("awq-128", awq_config(128, zero_point=False), ["zero_point", "False"]),
        ("awq-128", awq_config(100), ["group_size", "100"]),
        ("packed-4-128", compressed_config("marlin-24", PACKED), [f"{GROUP}format", "marlin-24", PACK]),
        ("packed-4-128", compressed_config("nvfp4-pack-quantized", PACKED), ["nvfp4-pack-quantized"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, num_bits=3)), [f"{GROUP}weights.num_bits", "3", "4"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, strategy="token")), ["weights.strategy", "token"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, dynamic=True)), ["weights.dynamic", "True"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, group_size=20)), ["weights.group_size", "20"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, actorder="odd")), ["weights.actorder", "odd"]),
        ("packed-4-128", compressed_config(PACK, changed(PACKED, type="float")), ["weights.type", "float", PACK]),
        ("packed-4-128", compressed_config(PACK, PACKED, kv_cache_scheme={"num_bits": 8}), ["kv_cache_scheme", "8"]),
        ("packed-4-128", compressed_config(PACK, PACKED, transform_config={"R1": {}}), ["transform_config", "R1"]),
        (
            "packed-4-128",
            compressed_config(PACK, PACKED, sparsity_config={"format": "sparse-24-bitmask"}),
            ["sparsity_config.format", "sparse-24-bitmask", "dense"],
        ),
        ("packed-4-128", compressed_config(PACK) | {"config_groups": ["W4A16"]}, ["config_groups", "W4A16"]),
        ("packed-4-128", compressed_config(PACK, PACKED | {"weights": "W4"}), [f"{GROUP}weights", "W4"]),
        ("packed-4-128", compressed_config(PACK, PACKED, ignore=["re:*"]), ["ignore", "'*'", "regular expression"]),
        (
            "w8a8",
            compressed_config(INT, W8A8 | {"input_activations": {**INT8_INPUTS, "num_bits": 4}}),
            [f"{GROUP}input_activations.num_bits", "4", "8"],
        ),
        ("w8a8", compressed_config(INT, W8A8 | {"output_activations": INT8_INPUTS}), [f"{GROUP}output_activations"]),
        ("w8a8", compressed_config(INT, W8A8 | {"weights": None}), [f"{GROUP}weights", "None"]),
        ("w8a8", compressed_config(INT, changed(W8A8, strategy="block")), ["weights.strategy", "block"]),
        ("fp8-block", compressed_config("float-quantized", changed(FP8, num_bits=4)), ["num_bits", "4", "expected 8"]),
        ("fp8-block", compressed_config("float-quantized", changed(FP8, symmetric=False)), ["symmetric", "False"]),
        (
            "fp8-block",
            compressed_config("float-quantized", changed(FP8, strategy="block", block_structure=None)),
            ["block_structure", "None", "[128, 128]"],
        ),
        ("nf4", bitsandbytes_config("nf4", load_in_4bit=False, load_in_8bit=True), ["load_in_8bit", "True"]),
        ("nf4", bitsandbytes_config("int3"), ["bnb_4bit_quant_type", "int3", "nf4"]),
        ("nf4", bitsandbytes_config("nf4", bnb_4bit_quant_storage="bfloat16"), ["bnb_4bit_quant_storage", "bfloat16"]),
    ],
)
def test_unsupported(name: str, config: Any, words: list[str], write: Callable[..., Path]) -> None:
    refuse(write(name, config), *words)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gptq-4-32", "qweight"),
        ("gptq-4-32", "qzeros"),
        ("gptq-4-32", "scales"),
        ("gptq-order", "g_idx"),
        ("awq-128", "qzeros"),
        ("packed-4-128", "weight_packed"),
        ("packed-4-128", "weight_scale"),
        ("packed-asymmetric", "weight_zero_point"),
        ("packed-order", "weight_g_idx"),
        ("w8a8", "weight_scale"),
        ("fp8-tensor", "weight"),
        ("nf4", "weight"),
        ("nf4", "weight.absmax"),
        ("nf4", "weight.quant_map"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4"),
        ("nf4-nested", "weight.nested_absmax"),
        ("nf4-nested", "weight.nested_quant_map"),
    ],
)
def test_missing(name: str, tensor: str, write: Callable[..., Path]) -> None:
    refuse(write(name, change=lambda tensors: tensors.pop(f"{LAYER}.{tensor}")), f"missing {LAYER}.{tensor}")


@pytest.mark.parametrize(
    ("name", "tensor", "value", "words"),
    [
        ("gptq-4-32", "qweight", torch.zeros(16, 32, dtype=torch.int32), ["shape [16, 32]", "[16, 64]"]),
        ("gptq-4-32", "qweight", torch.zeros(16, 64), ["type F32", "I32"]),
        ("gptq-4-32", "scales", torch.zeros(2, 64), ["shape [2, 64]", "[4, 64]"]),  # as of groups of 64
        ("gptq-4-32", "scales", torch.zeros(4, 64, dtype=torch.int32), ["type I32", "F16"]),
        ("gptq-4-32", "qzeros", torch.zeros(4, 64, dtype=torch.int32), ["shape [4, 64]", "[4, 8]"]),
        ("gptq-order", "g_idx", torch.zeros(128, dtype=torch.int32), ["128 inputs", "groups of 32"]),
        ("gptq-order", "g_idx", torch.full((128,), 9, dtype=torch.int32), ["128 inputs", "groups of 32"]),
        ("awq-128", "qweight", torch.zeros(16, 64, dtype=torch.int32), ["shape [16, 64]", "[128, 8]"]),  # as of GPTQ
        ("packed-4-128", "weight_packed", torch.zeros(64, 32, dtype=torch.int32), ["shape [64, 32]", "[64, 16]"]),
        ("packed-4-128", "weight_shape", torch.tensor([64, 120]), ["[64, 120]", "[64, 128]"]),
        ("packed-4-128", "weight_scale", torch.zeros(64, 4), ["shape [64, 4]", "[64, 1]"]),
        ("packed-asymmetric", "weight_zero_point", torch.zeros(9, 4, dtype=torch.int32), ["[9, 4]", "[8, 4]"]),
        ("packed-order", "weight_g_idx", torch.arange(128).int(), ["128 inputs", "groups of 32"]),
        ("w8a8", "weight", torch.zeros(64, 128), ["type F32", "I8"]),
        ("w4-in-bytes", "weight", torch.full((64, 128), 8, dtype=torch.int8), ["4 bits"]),
        ("fp8-tensor", "weight", torch.zeros(64, 128, dtype=torch.float8_e5m2), ["F8_E5M2", "F8_E4M3"]),
        ("nf4", "weight", torch.zeros(100, 1, dtype=torch.uint8), ["shape [100, 1]", "[4096, 1]"]),
        ("nf4", "weight.absmax", torch.zeros(128, dtype=torch.uint8), ["type U8", "F32"]),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", torch.zeros(5, dtype=torch.uint8), ["JSON"]),
    ],
)
def test_wrong(name: str, tensor: str, value: torch.Tensor, words: list[str], write: Callable[..., Path]) -> None:
    refuse(
        write(name, change=lambda tensors: tensors.update({f"{LAYER}.{tensor}": value})), f"{LAYER}.{tensor}", *words
    )


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"shape": [128, 64]}, "[128, 64]"),
        ({"blocksize": 20}, "20"),
        ({"blocksize": "64"}, "'64'"),
        ({"blocksize": 256}, "expected a multiple of the blocksize 256"),  # rows of 128 inputs begin inside a block
    ],
)
def test_wrong_quant_state(entries: dict[str, Any], word: str, write: Callable[..., Path]) -> None:
    name = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"

    def change(tensors: Tensors) -> None:
        state = json.loads(bytes(tensors[name].tolist())) | entries
        tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    refuse(write("nf4", change=change), LAYER, word)


def test_truncated(write: Callable[..., Path]) -> None:
    folder = write("gptq-4-32")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refuse(folder, "model.safetensors")


def test_what_the_configuration_does_not_know(write: Callable[..., Path]) -> None:
    folder = write("gptq-4-32", change=lambda tensors: tensors.update({f"{LAYER}.codebook": torch.zeros(16)}))
    refuse(folder, f"unexpected {LAYER}.codebook")


def test_integers_without_a_configuration(write: Callable[..., Path]) -> None:
    """Not taken for the weights themselves."""
    folder = write("w8a8", change=lambda tensors: [tensors.pop(n) for n in list(tensors) if "scale" in n])
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    del entries["quantization_config"]
    file.write_text(json.dumps(entries))
    refuse(folder, "q_proj.weight has type I8")


def test_a_bias_of_zeros_is_nothing_but_another_is_refused(write: Callable[..., Path]) -> None:
    """Early AutoGPTQ gave every layer one."""
    name = "model.layers.0.mlp.up_proj.bias"
    folder = write("gptq-4-32", change=lambda tensors: tensors.update({name: torch.zeros(256)}))
    LightvLLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3] = 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refuse(folder, f"unexpected {name}")


def test_full_precision_where_the_configuration_says_otherwise(write: Callable[..., Path]) -> None:
    """transformers would round such a checkpoint while loading."""
    folder = write("nf4")
    (folder / "model.safetensors").write_bytes((folder.parent / "plain" / "model.safetensors").read_bytes())
    refuse(folder, "quantization_config", "bitsandbytes", "none of its layers is quantized")


class TestOption:
    """`quantization`, which quantized checkpoints do without."""

    def test_the_format_s_name(self, write: Callable[..., Path], make_llm: Callable[..., LLM]) -> None:
        make_llm(write("awq-128"), skip_tokenizer_init=True, quantization="awq")

    @pytest.mark.parametrize("asked", ["gptq", "compressed-tensors", "bitsandbytes"])
    def test_another_format(self, asked: str, write: Callable[..., Path]) -> None:
        with pytest.raises(ValueError, match=f"quantization: '{asked}'.*'awq'"):
            LLM(write("awq-128"), skip_tokenizer_init=True, quantization=asked)

    @pytest.mark.parametrize("asked", ["int8", "w4"])
    def test_rounding_what_is_rounded(self, asked: str, write: Callable[..., Path]) -> None:
        with pytest.raises(ValueError, match=f"quantization: '{asked}'.*gptq"):
            LLM(write("gptq-4-32"), skip_tokenizer_init=True, quantization=asked)

    def test_a_format_for_a_plain_checkpoint(self, write: Callable[..., Path]) -> None:
        folder = write("gptq-4-32").parent / "plain"
        with pytest.raises(ValueError, match=r"quantization: 'gptq'.*no quantization_config"):
            LLM(folder, skip_tokenizer_init=True, quantization="gptq")

    def test_an_unknown_name(self, write: Callable[..., Path]) -> None:
        with pytest.raises(ValueError, match="quantization: 'squeezellm' is not supported"):
            LLM(write("gptq-4-32"), skip_tokenizer_init=True, quantization="squeezellm")


def test_the_older_name_of_the_configuration(write: Callable[..., Path]) -> None:
    """compressed-tensors wrote `compression_config` at first, without a method."""
    config = dict(CASES["packed-4-128"].config)
    del config["quant_method"]
    folder = write("packed-4-128", compression_config=config | {"sparsity_config": {"format": "dense"}})
    file = folder / "config.json"
    entries = json.loads(file.read_text())
    del entries["quantization_config"]
    file.write_text(json.dumps(entries))
    LightvLLM.from_pretrained(folder)
