"""Quantized checkpoints run; each layer multiplies by what its definition says, and tokens come of that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightvllm import LLM, LightvLLM, SamplingParams, kernels
from lightvllm.layers.linear import Linear
from tests.quantization.cases import CASES
from tests.quantization.writers import write_checkpoint

PROMPT = torch.randint(0, 304, (40,), generator=torch.Generator().manual_seed(1)).tolist()
PARAMS = SamplingParams(temperature=0, max_tokens=10, prompt_logprobs=-1, logprobs=-1)
LAYER = "model.layers.0."
# One of each way to store a weight, and the layers that are put together of several.
RUN = ["gptq-4-32", "gptq-orders-differ", "gptq-a-plain-part", "gptq-head", "awq-128", "packed-asymmetric"]
RUN += ["packed-tied", "w8a8", "fp8-block", "nf4-nested"]


@pytest.mark.parametrize("name", CASES)
def test_every_layer_multiplies_by_its_weight(name: str, tmp_path: Path) -> None:
    """Of inputs that are zero but for one, rounding to 8 bits takes nothing away: products show the weight itself."""
    quantized = write_checkpoint(tmp_path, CASES[name])
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    model = LightvLLM.from_pretrained(tmp_path / "quantized").model
    seen = set()
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, Linear):
            continue
        parent, _, last = layer_name.rpartition(".")
        parts = [f"{parent}.{part}" for part in model.fused_parameters.get(last, ())] or [layer_name]
        expected = torch.cat([plain.get(f"{part}.weight", plain["model.embed_tokens.weight"]) for part in parts])
        with torch.inference_mode():
            bias = 0 if layer.bias is None else layer.bias
            actual = layer(torch.eye(expected.shape[1])) - bias
        torch.testing.assert_close(actual.T, expected, rtol=1e-5, atol=1e-5)
        seen |= set(parts) & quantized
    assert seen == quantized  # none was taken for another
    assert len(seen) >= 9


def run(folder: Path, make_llm: Callable[..., LLM], **options: object) -> tuple[list[int], Tensor]:
    """All tokens but the last; the distributions after each. # [num_tokens, vocab_size]"""
    llm = make_llm(folder, skip_tokenizer_init=True, max_model_len=64, max_logprobs=-1, **options)
    (output,) = llm.generate(PROMPT, PARAMS, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"
    entries = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
    table = [[entry[token].logprob for token in range(len(entry))] for entry in entries if entry is not None]
    return PROMPT + output.outputs[0].token_ids[:-1], torch.tensor(table)


class RoundedInputs:
    """x W^T + b in float32, with each row of x rounded to 8 bits: the coarsest that the kernels may do."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        return torch.nn.functional.linear((x / scale).round() * scale, self.weight, bias)


def logprobs(folder: Path, token_ids: list[int]) -> tuple[Tensor, float]:
    """Of a plain checkpoint in float32, and how far inputs of 8 bits move them in the mean."""
    model, results = LightvLLM.from_pretrained(folder), []
    with torch.inference_mode():
        results.append(model(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1))
        for layer in model.modules():
            if isinstance(layer, Linear):
                layer.set_product(RoundedInputs(layer.weight.detach()))
        results.append(model(torch.tensor([token_ids])).logits[0].log_softmax(dim=-1))
    return results[0], float((results[0] - results[1]).abs().mean())


@pytest.mark.parametrize("name", RUN)
def test_tokens(name: str, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
    """From a folder to tokens, with no flag, as a float32 model of the same weights but for inputs of 8 bits."""
    write_checkpoint(tmp_path, CASES[name])
    token_ids, actual = run(tmp_path / "quantized", make_llm)
    expected, tolerance = logprobs(tmp_path / "plain", token_ids)
    error = float((actual - expected).abs().mean())
    assert expected.std() > 10 * tolerance
    assert error < (1e-4 if name.startswith("fp8") else 1.5 * tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gptq-orders-differ", "gptq-a-plain-part", "fp8-channel"])
def test_other_types(name: str, dtype: str, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
    """Most checkpoints say that they are of a type with 16 bits."""
    write_checkpoint(tmp_path, CASES[name])
    config = json.loads((tmp_path / "quantized" / "config.json").read_text())
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    token_ids, actual = run(tmp_path / "quantized", make_llm)
    expected, tolerance = logprobs(tmp_path / "plain", token_ids)
    error = float((actual - expected).abs().mean())
    assert error < 1.5 * tolerance


@pytest.mark.parametrize("name", ["gptq-order", "gptq-orders-differ", "gptq-a-plain-part"])
def test_a_row_is_bitwise_the_same_in_any_company(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CASES[name])
    layer = LightvLLM.from_pretrained(tmp_path / "quantized").model.get_submodule(f"{LAYER}self_attn.qkv_proj")
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = layer(x)
        for count in (1, 2, 5, 13):
            assert torch.equal(layer(x[:count]), whole[:count])
            assert torch.equal(layer(x[20 - count :]), whole[20 - count :])


def test_parts_of_one_kind_are_one_product(tmp_path: Path) -> None:
    """A product a part is slower, and only where it cannot be helped."""
    products = {}
    for name in ("gptq-4-32", "gptq-order", "gptq-orders-differ", "gptq-bits-differ", "packed-targets"):
        write_checkpoint(tmp_path / name, CASES[name])
        model = LightvLLM.from_pretrained(tmp_path / name / "quantized").model
        products[name] = {
            layer: type(model.get_submodule(f"{LAYER}{layer}").product).__name__
            for layer in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")
        }
    one, permuted, split = "QuantizedProduct", "PermutedProduct", "SplitProduct"
    assert [list(by_layer.values()) for by_layer in products.values()] == [
        [one, one, one],
        [permuted, permuted, permuted],
        [split, permuted, split],
        [split, one, split],
        [split, one, one],
    ]


def test_a_head_of_its_own_counts_where_the_head_is_said_to_be_tied(tmp_path: Path) -> None:
    logits = []
    for name, is_tied in (("a", False), ("b", True)):
        write_checkpoint(tmp_path / name, CASES["packed-head"])
        file = tmp_path / name / "quantized" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": is_tied}))
        with torch.inference_mode():
            logits.append(LightvLLM.from_pretrained(file.parent)(torch.tensor([PROMPT])).logits)
    assert torch.equal(*logits)


def test_nothing_is_kept_in_full(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CASES["gptq-head"])
    model = LightvLLM.from_pretrained(tmp_path / "quantized").model
    assert {name for name, parameter in model.named_parameters() if parameter.dim() > 1} == {
        "model.embed_tokens.weight"
    }
    product = model.get_submodule(f"{LAYER}mlp.gate_up_proj").product
    assert product.packed.numel() == 512 * 128 // (2 if kernels.COMPILED else 1)  # bytes


def test_a_quantized_model_has_no_plain_weights_to_give(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CASES["awq-128"])
    with pytest.raises(ValueError, match="awq"):
        LightvLLM.from_pretrained(tmp_path / "quantized").hf_state_dict()
