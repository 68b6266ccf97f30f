"""What the schemes cost the default model, in small form; the whole measurement is `lightvllm eval --schemes all`.

Each folder is read by code of these tests and run in float32, inputs rounded where the scheme says so. The perplexity
is over text that the model drew itself: nothing can be expected to predict that better, so what is lost shows. (Of the
answers it was trained to give it finds nearly every token certain; elsewhere it is overconfident, and noise may help.)
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightvllm import LLM, SamplingParams
from lightvllm.cli.quantize import calibration
from lightvllm.config import DEFAULT_MODEL
from lightvllm.layers.linear import Linear
from lightvllm.models.bare import LightvLLM
from lightvllm.quantization.calibrate.grid import round_inputs
from lightvllm.quantization.calibrate.schemes import SCHEMES
from lightvllm.quantization.calibrate.walk import quantize_checkpoint
from lightvllm.training.answers import answered_questions
from tests.quantization.calibrate.folders import write_plain

NUM_TEXTS, LENGTH = 12, 128


@cache
def texts() -> list[list[int]]:
    """Schemas of databases that training never saw, and what the model goes on with."""
    starts = answered_questions(DEFAULT_MODEL, "unseen_domains", seed=5, num_samples=NUM_TEXTS, num_pairs=1)
    prompts = [token_ids[:40] for token_ids, _ in starts]
    params = [SamplingParams(temperature=1, max_tokens=LENGTH, ignore_eos=True, seed=i) for i in range(len(prompts))]
    with LLM(DEFAULT_MODEL, dtype="float32", skip_tokenizer_init=True, kv_cache_memory_bytes=2**27) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [prompt + list(output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)]


@torch.inference_mode()
def logprobs(folder: Path, rounds_inputs: bool = False) -> Tensor:
    """The model's distribution of each token that was drawn: [num_texts, LENGTH, vocab_size]"""
    model = LightvLLM.from_pretrained(folder, dtype="float32")
    if rounds_inputs:
        for name, module in model.model.named_modules():
            if isinstance(module, Linear) and name != "lm_head":
                module.register_forward_pre_hook(lambda _, args: round_inputs(args[0]))
    logits = [model(torch.tensor([token_ids])).logits[0, -LENGTH - 1 : -1] for token_ids in texts()]
    return torch.stack(logits).log_softmax(-1)


@cache
def full() -> Tensor:
    return logprobs(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def logprobs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tensor]:
    work = tmp_path_factory.mktemp("schemes")

    @cache
    def get(scheme: str) -> Tensor:
        sequences = calibration(DEFAULT_MODEL, scheme, None, samples=8, length=300)
        sequences = sequences if SCHEMES[scheme].needs_data else []
        quantize_checkpoint(DEFAULT_MODEL, work / scheme, scheme, sequences=sequences)
        write_plain(work / scheme, work / f"{scheme}-plain")
        return logprobs(work / f"{scheme}-plain", SCHEMES[scheme].rounds_inputs)

    return get


def perplexity(found: Tensor) -> float:
    drawn = torch.tensor([token_ids[-LENGTH:] for token_ids in texts()])
    return (-found.gather(2, drawn.unsqueeze(2))).mean().exp().item()


def divergence(found: Tensor) -> float:
    return (full().exp() * (full() - found)).sum(-1).mean().item()


@pytest.mark.parametrize("scheme", ["int8-absmax", "w8a8"])
def test_eight_bits_cost_less_than_a_percent(logprobs_of: Callable[[str], Tensor], scheme: str) -> None:
    assert perplexity(logprobs_of(scheme)) < 1.01 * perplexity(full())


def test_large_inputs_made_smaller_lose_less(logprobs_of: Callable[[str], Tensor]) -> None:
    assert divergence(logprobs_of("w8a8")) < 0.9 * divergence(logprobs_of("int8-absmax"))


def test_making_up_for_errors_beats_plain_rounding(logprobs_of: Callable[[str], Tensor]) -> None:
    rounded, compensated = perplexity(logprobs_of("w4-rtn")), perplexity(logprobs_of("w4-gptq"))
    assert rounded > 1.01 * perplexity(full())
    assert compensated - perplexity(full()) < 0.7 * (rounded - perplexity(full()))
    assert divergence(logprobs_of("w4-gptq")) < 0.6 * divergence(logprobs_of("w4-rtn"))


def test_finer_weights_for_large_inputs_beat_plain_rounding(logprobs_of: Callable[[str], Tensor]) -> None:
    assert divergence(logprobs_of("w4-awq")) < 0.97 * divergence(logprobs_of("w4-rtn"))
    assert perplexity(logprobs_of("w4-awq")) < perplexity(logprobs_of("w4-rtn"))
