"""What the schemes cost the default model, in small form; the whole measurement is `lightvllm eval --schemes all`.

Each folder is read by code of these tests and run in float32, inputs rounded where the scheme says so.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightvllm.cli.quantize import calibration
from lightvllm.config import DEFAULT_MODEL
from lightvllm.layers.linear import Linear
from lightvllm.models.bare import LightvLLM
from lightvllm.quantization.calibrate.grid import round_inputs
from lightvllm.quantization.calibrate.schemes import SCHEMES
from lightvllm.quantization.calibrate.walk import quantize_checkpoint
from lightvllm.training.answers import answered_questions
from tests.quantization.calibrate.folders import write_plain

QUESTIONS = answered_questions(DEFAULT_MODEL, "unseen_domains", seed=5, num_samples=16, num_pairs=4)


@torch.inference_mode()
def perplexity(folder: Path, rounds_inputs: bool = False) -> float:
    """Of the answers' tokens."""
    model = LightvLLM.from_pretrained(folder, dtype="float32")
    if rounds_inputs:
        for name, module in model.model.named_modules():
            if isinstance(module, Linear) and name != "lm_head":
                module.register_forward_pre_hook(lambda _, args: round_inputs(args[0]))
    losses = []
    for token_ids, start in QUESTIONS:
        logprobs = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
        losses += (-logprobs[torch.arange(start - 1, len(token_ids) - 1), token_ids[start:]]).tolist()
    return math.exp(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def perplexity_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    work = tmp_path_factory.mktemp("schemes")
    found: dict[str, float] = {"full": perplexity(DEFAULT_MODEL)}

    def get(scheme: str) -> float:
        if scheme not in found:
            sequences = (
                calibration(DEFAULT_MODEL, scheme, None, samples=32, length=400) if SCHEMES[scheme].needs_data else []
            )
            quantize_checkpoint(DEFAULT_MODEL, work / scheme, scheme, sequences=sequences)
            write_plain(work / scheme, work / f"{scheme}-plain")
            found[scheme] = perplexity(work / f"{scheme}-plain", SCHEMES[scheme].rounds_inputs)
        return found[scheme]

    return get


def test_the_questions_are_hard_enough_to_tell() -> None:
    assert len(QUESTIONS) >= 60
    assert sum(len(token_ids) - start for token_ids, start in QUESTIONS) > 1000


@pytest.mark.parametrize("scheme", ["int8-absmax", "w8a8"])
def test_eight_bits_cost_less_than_a_percent(perplexity_of: Callable[[str], float], scheme: str) -> None:
    assert perplexity_of(scheme) < 1.01 * perplexity_of("full")


@pytest.mark.parametrize("scheme", ["w4-gptq", "w4-awq"])
def test_looking_at_the_data_beats_plain_rounding(perplexity_of: Callable[[str], float], scheme: str) -> None:
    lost_by_rounding = perplexity_of("w4-rtn") - perplexity_of("full")
    assert lost_by_rounding > 0
    assert perplexity_of(scheme) - perplexity_of("full") < 0.9 * lost_by_rounding
