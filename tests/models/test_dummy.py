"""`load_format="dummy"`: a model from config.json alone, ready to be measured."""

import json
from pathlib import Path

import pytest
import torch

from lightvllm import LLM, SamplingParams
from lightvllm.bench.internals import worker_of
from lightvllm.bench.random_checkpoint import Shape

SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 4, "kv_heads": 2}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)


def write_config(folder: Path, **changed: object) -> Path:
    shape = Shape(**SMALL, head_dim=16, tied=False, dtype="float32")
    (folder / "config.json").write_text(json.dumps(shape.hf_config() | changed))
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", [None, "int8", "w4"])
def test_it_runs_without_a_file_of_weights(tmp_path: Path, tied: bool, quantization: str | None) -> None:
    folder = write_config(tmp_path, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None)
    tokens = []
    for _ in range(2):
        options = {"skip_tokenizer_init": True, "max_model_len": 64, "device": "cpu", "quantization": quantization}
        with LLM(folder, load_format="dummy", **options) as llm:
            model = worker_of(llm).runner.model
            assert not any(parameter.is_meta for parameter in model.parameters())
            embedding = model.model.embed_tokens.weight
            assert embedding.std().item() == pytest.approx(0.02, rel=0.05)
            assert torch.equal(model.model.norm.weight, torch.ones(64))
            (output,) = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)
            tokens.append(output.outputs[0].token_ids)
    assert len(tokens[0]) == 8
    assert tokens[0] == tokens[1]  # the same weights each time


def test_weights_that_would_be_quantized(tmp_path: Path) -> None:
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True}
    folder = write_config(tmp_path, quantization_config=quantized)
    with pytest.raises(ValueError, match=r"load_format: 'dummy'.*gptq"):
        LLM(folder, load_format="dummy", skip_tokenizer_init=True, device="cpu")


def test_without_it_the_file_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        LLM(write_config(tmp_path), skip_tokenizer_init=True, device="cpu")
