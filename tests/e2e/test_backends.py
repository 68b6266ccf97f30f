"""Every attention backend that can run on the device gives what the reference gives, through a whole engine."""

from collections.abc import Callable

import pytest
import torch

from lightvllm import LLM, SamplingParams
from lightvllm.attention.registry import BACKENDS, why_not
from lightvllm.model_config import ModelConfig
from tests.e2e.checkpoint import VOCAB_SIZE, Checkpoint

PROMPTS = [[7 * i % VOCAB_SIZE for i in range(1, length)] for length in (3, 20, 70, 33)]
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=0)
OPTIONS = {"skip_tokenizer_init": True, "max_model_len": 128, "max_num_batched_tokens": 48}  # prompts come in pieces


def logprobs(llm: LLM) -> list[list[float]]:
    """Of each prompt's tokens, and of the first one generated."""
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    found = []
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        entries = output.prompt_logprobs[1:] + output.outputs[0].logprobs[:1]
        tokens = [*prompt[1:], output.outputs[0].token_ids[0]]
        found.append([entry[token].logprob for entry, token in zip(entries, tokens, strict=True)])
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["qwen3", "mistral-window"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_all_agree(
    backend: str,
    case: str,
    dtype: str,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    device: str,
) -> None:
    path = checkpoint(case).path
    model = ModelConfig.from_pretrained(path)
    reason = why_not(backend, torch.device(device), getattr(torch, dtype), model, is_int8=False)
    if reason:
        pytest.skip(reason)
    options = {**OPTIONS, "dtype": dtype}
    found = logprobs(make_llm(path, attention_backend=backend, **options))
    expected = logprobs(make_llm(path, attention_backend="reference", **options))
    tolerance = 1e-3 if dtype == "float32" else 0.3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=tolerance)
