"""A variant's figures against transformers' and against definitions written out here."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightvllm.bench.quality.measure import Divergence, Job, _Comparison, bytes_of_weights, measure
from lightvllm.layers.linear import Linear, PlainProduct, SplitProduct
from lightvllm.models.bare import LightvLLM
from tests.e2e.checkpoint import Checkpoint, random_prompts

OPTIONS = {"kv_cache_memory_bytes": 2**22, "max_model_len": 200}


def job(checkpoint: Checkpoint, tmp_path: Path, **options: Any) -> Job:
    windows = [(ids, first) for ids, first in zip(random_prompts(60, 5, 33), (1, 3, 20), strict=True)]
    base = Job({"model": str(checkpoint.path), **OPTIONS}, windows, [], str(tmp_path / "logits"), True, 1)
    return dataclasses.replace(base, **options)


def test_perplexity_is_that_of_transformers(text_checkpoint: Checkpoint, tmp_path: Path) -> None:
    reference = job(text_checkpoint, tmp_path)
    result = measure(reference)
    losses = []
    for token_ids, first in reference.windows:
        logprobs = text_checkpoint.logprobs(token_ids)
        losses += [-logprobs[i - 1, token_ids[i]].item() for i in range(first, len(token_ids))]
    assert result.num_tokens == len(losses) == 59 + 2 + 13
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert result.divergence is None
    plain = sum(p.numel() * 4 for p in text_checkpoint.model.parameters())
    assert plain <= result.weight_bytes < 1.02 * plain  # packed outputs are padded
    assert result.peak_bytes > 2**26
    assert result.output_tokens_per_s > 0


@pytest.mark.parametrize("every", [1, 7])
def test_a_variant_against_the_reference(text_checkpoint: Checkpoint, tmp_path: Path, every: int) -> None:
    measure(job(text_checkpoint, tmp_path, every=every))
    same = measure(job(text_checkpoint, tmp_path, every=every, is_reference=False)).divergence
    assert same == Divergence(-(-74 // every), 0.0, 1.0, 0.0, 0.0, 0.0)
    options = {"model": str(text_checkpoint.path), "quantization": "w4", **OPTIONS}
    rounded = measure(job(text_checkpoint, tmp_path, every=every, is_reference=False, options=options))
    assert rounded.divergence is not None
    assert rounded.divergence.num_tokens == -(-74 // every)
    assert 0 < rounded.divergence.top_1 < 1
    assert rounded.divergence.kl > 0.01
    assert 0.01 < rounded.divergence.logit_error < rounded.divergence.worst_logit_error


def test_divergence_by_its_definition(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(10, 30, generator=generator)
    found = wanted + 0.3 * torch.randn(10, 30, generator=generator)
    with (tmp_path / "logits").open("wb") as file:
        for rows in wanted.split([3, 1, 6]):
            _Comparison(file, True, 1).add(rows)
        _Comparison(file, True, 1).result(torch.tensor([1.0, 2.0, 3.0, 6.0]).double())
    with (tmp_path / "logits").open("rb") as file:
        comparison = _Comparison(file, False, 1)
        for rows in found.split([5, 5]):
            comparison.add(rows)
        result = comparison.result(torch.tensor([1.0, 4.0, 3.0, 8.0]).double())
    assert result is not None
    assert result.perplexity_error == 0.5  # of 0, 2, 0, 2
    p, q = wanted.double().softmax(-1), found.double().softmax(-1)
    assert result.kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    assert result.top_1 == (wanted.argmax(-1) == found.argmax(-1)).float().mean().item()
    spread = wanted.std(-1).mean()
    assert result.logit_error == pytest.approx(((found - wanted).abs().mean() / spread).item(), rel=1e-4)
    assert result.worst_logit_error == pytest.approx(((found - wanted).abs().max() / spread).item(), rel=1e-4)


def test_answers(text_checkpoint: Checkpoint, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "the end"}]]
    result = measure(job(text_checkpoint, tmp_path, chats=chats, options={"model": str(text_checkpoint.path)}))
    assert len(result.texts) == 1


def test_a_window_that_does_not_fit(text_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length: a window has 250 tokens, but max_model_len is 200"):
        measure(job(text_checkpoint, tmp_path, windows=[(random_prompts(250)[0], 1)]))


def test_bytes_of_rounded_weights(text_checkpoint: Checkpoint) -> None:
    model = LightvLLM.from_pretrained(text_checkpoint.path).model
    full = bytes_of_weights(model)
    model.pack("int8")
    weights = sum(
        p.numel() for name, p in text_checkpoint.model.named_parameters() if "proj" in name or "lm_head" in name
    )
    # A quarter of float32; scales, and padding to whole panels, come on top.
    assert full - 3 * weights <= bytes_of_weights(model) < full - 2.3 * weights


def test_bytes_of_weights_that_multiply_in_parts() -> None:
    layer = Linear(16, [8, 4])
    parts = [PlainProduct(torch.zeros(outputs, 16)) for outputs in layer.out_features]
    layer.set_product(SplitProduct(parts, layer.out_features))
    assert bytes_of_weights(layer) == 12 * 16 * 4
