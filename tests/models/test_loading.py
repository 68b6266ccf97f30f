"""Checkpoints that do not fit are refused in one error that names what is wrong; unusual ones that fit are loaded."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightvllm import LLM, LightvLLM
from tests.models.checkpoints import make_checkpoint

INPUT_IDS = torch.arange(20).unsqueeze(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, "qwen3")
    return tmp_path


@pytest.fixture
def change_weights(folder: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], Any]], None]:
    """`change_weights(function)`: rewrite the weights after the function changed the dictionary of them."""

    def rewrite(change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


@pytest.fixture
def change_config(folder: Path) -> Callable[..., None]:
    """`change_config(name=value)`: rewrite config.json; None removes an entry."""

    def rewrite(**entries: Any) -> None:
        config = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return rewrite


def load_both(folder: Path) -> list[Callable[[], Any]]:
    """The two ways to load a folder."""
    return [lambda: LightvLLM.from_pretrained(folder), lambda: LLM(folder, skip_tokenizer_init=True, device="cpu")]


def error_of(load: Callable[[], Any]) -> str:
    """The words of the ValueError that this raises."""
    try:
        load()
    except ValueError as error:
        return str(error)
    pytest.fail("nothing was raised")


def refuse(folder: Path, *words: str) -> None:
    """Both ways raise a ValueError that has all these words."""
    for load in load_both(folder):
        message = error_of(load)
        assert all(word in message for word in words), message


class TestTensors:
    NAME = "model.layers.1.self_attn.k_proj.weight"

    def test_missing(self, folder: Path, change_weights: Callable[..., None]) -> None:
        change_weights(lambda tensors: tensors.pop(self.NAME))
        refuse(folder, "missing", self.NAME)

    def test_one_too_many(self, folder: Path, change_weights: Callable[..., None]) -> None:
        change_weights(lambda tensors: tensors.update({"model.layers.3.extra": torch.zeros(1)}))
        refuse(folder, "unexpected", "model.layers.3.extra")

    @pytest.mark.parametrize("shape", [(32, 64), (64,), (64, 65), (64, 64, 1)])
    def test_wrong_shape(self, shape: tuple[int, ...], folder: Path, change_weights: Callable[..., None]) -> None:
        change_weights(lambda tensors: tensors.update({self.NAME: torch.zeros(shape)}))
        refuse(folder, self.NAME, str(list(shape)), "[64, 64]")

    def test_all_in_one_error(self, folder: Path, change_weights: Callable[..., None]) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            del tensors[self.NAME]
            tensors["stray"] = torch.zeros(1)
            tensors["model.norm.weight"] = torch.zeros(7)

        change_weights(change)
        refuse(folder, f"missing {self.NAME}", "unexpected stray", "model.norm.weight", "[7]", "Qwen3ForCausalLM")

    def test_a_whole_layer_is_not_a_page_of_names(self, folder: Path, change_config: Callable[..., None]) -> None:
        change_config(num_hidden_layers=2, layer_types=None)
        refuse(folder, "unexpected model.layers.2", "more")
        assert all(len(error_of(load)) < 1500 for load in load_both(folder))

    def test_a_bias_that_the_config_does_not_know(self, folder: Path, change_weights: Callable[..., None]) -> None:
        change_weights(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}))
        refuse(folder, "model.layers.0.self_attn.q_proj.bias")

    def test_what_follows_from_the_rest_may_be_there(
        self, folder: Path, change_weights: Callable[..., None], change_config: Callable[..., None]
    ) -> None:
        """Old exporters write the rotary frequencies, and the head of a model whose head is its embedding."""
        change_config(tie_word_embeddings=True)
        expected = {}
        change_weights(lambda tensors: expected.update(tensors))
        change_weights(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
        model = LightvLLM.from_pretrained(folder)
        with torch.inference_mode():
            hidden_to_logits = model.model.compute_logits(torch.eye(64))
        torch.testing.assert_close(hidden_to_logits, expected["model.embed_tokens.weight"].T)


class TestFiles:
    def test_none(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        refuse(folder, "safetensors", str(folder))

    @pytest.mark.parametrize("size", [0, 4, 100, 50_000])
    def test_truncated(self, size: int, folder: Path) -> None:
        """A download that broke off."""
        os.truncate(folder / "model.safetensors", size)
        refuse(folder, "model.safetensors")

    def test_not_safetensors(self, folder: Path) -> None:
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\n")
        refuse(folder, "model.safetensors")

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        make_checkpoint(tmp_path, "qwen3", max_shard_size="100KB")
        shard = sorted(tmp_path.glob("*.safetensors"))[1]
        shard.unlink()
        refuse(tmp_path, shard.name)

    def test_the_index_says_which_files_count(self, tmp_path: Path) -> None:
        """Mistral's repositories hold the weights twice, the second time under other names."""
        oracle = make_checkpoint(tmp_path, "mistral", max_shard_size="100KB")
        save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, tmp_path / "consolidated.safetensors")
        with torch.inference_mode():
            expected = oracle(INPUT_IDS).logits
            actual = LightvLLM.from_pretrained(tmp_path)(INPUT_IDS).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

    def test_another_file_beside_the_only_one(self, folder: Path) -> None:
        """An adapter, say."""
        save_file({"base_model.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
        LightvLLM.from_pretrained(folder)

    def test_any_name(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        LightvLLM.from_pretrained(folder)


class TestConfig:
    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            ({"architectures": ["GPT2LMHeadModel"]}, ["architecture", "GPT2LMHeadModel", "Qwen3ForCausalLM"]),
            ({"architectures": None}, ["architectures"]),
            ({"architectures": []}, ["architectures"]),
            ({"hidden_size": None}, ["hidden_size"]),
            ({"hidden_size": "64"}, ["hidden_size", "64"]),
            ({"vocab_size": -1}, ["vocab_size", "-1"]),
            ({"num_key_value_heads": 3}, ["num_attention_heads", "4", "num_key_value_heads", "3"]),
            ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
            ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["longrope", "yarn"]),
            ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, ["linear", "factor"]),
            ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["low_freq_factor"]),
            ({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]}, ["layer_types"]),
        ],
    )
    def test_refused(
        self, entries: dict[str, Any], words: list[str], folder: Path, change_config: Callable[..., None]
    ) -> None:
        change_config(**entries)
        refuse(folder, *words)

    def test_overrides(self, folder: Path) -> None:
        """`hf_overrides` take the place of what config.json says."""
        with LLM(folder, skip_tokenizer_init=True, hf_overrides={"max_position_embeddings": 99}) as llm:
            assert llm.model_config.max_position_embeddings == 99
        with pytest.raises(ValueError, match="hidden_size"):
            LLM(folder, skip_tokenizer_init=True, hf_overrides={"hidden_size": 0})

    def test_older_checkpoints(self, folder: Path, change_config: Callable[..., None]) -> None:
        """What transformers 4 wrote: rope_theta beside rope_scaling, torch_dtype."""
        with torch.inference_mode():
            new = LightvLLM.from_pretrained(folder)(INPUT_IDS).logits
        change_config(rope_parameters=None, dtype=None, rope_theta=10000.0, torch_dtype="float32")
        model = LightvLLM.from_pretrained(folder)
        with torch.inference_mode():
            assert torch.equal(model(INPUT_IDS).logits, new)
        change_config(rope_theta=500.0, torch_dtype="bfloat16")
        model = LightvLLM.from_pretrained(folder)
        with torch.inference_mode():
            logits = model(INPUT_IDS).logits
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - new).abs().max() > 0.5
