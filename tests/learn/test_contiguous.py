"""One sequence in a contiguous cache, against attention without a cache, and against transformers' own `generate`."""

from collections.abc import Callable

import pytest
import torch

from lightvllm.learn.contiguous import ContiguousAttention, cached_tokens, naive_tokens
from lightvllm.models.bare import LightvLLM
from tests.e2e.checkpoint import Checkpoint, random_prompts

CASES = ["llama", "llama-multi-query", "qwen2", "qwen3-tied", "qwen3-window", "mistral-window", "llama-dynamic"]


@pytest.mark.parametrize("case", ["llama", "qwen3-window", "mistral-window"])
@pytest.mark.parametrize("parts", [[30], [1] * 30, [11, 1, 1, 9, 8], [3, 27]], ids=str)
def test_logits_equal_those_without_a_cache(
    checkpoint: Callable[[str], Checkpoint], case: str, parts: list[int]
) -> None:
    bare = LightvLLM.from_pretrained(checkpoint(case).path)
    token_ids = torch.tensor(random_prompts(30)[0])
    attention = ContiguousAttention(bare.config, 40, torch.float32)
    logits = []
    with torch.inference_mode():
        expected = bare(token_ids[None]).logits[0]
        for part in torch.arange(30).split(parts):
            assert attention.num_tokens == part[0]
            logits.append(bare.model.compute_logits(bare.model(token_ids[part], part, attention)))
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_both_loops_generate_what_transformers_does(checkpoint: Callable[[str], Checkpoint], case: str) -> None:
    model = LightvLLM.from_pretrained(checkpoint(case).path).model
    prompt = random_prompts(19)[0]
    expected = checkpoint(case).greedy(prompt, 12)
    attention = ContiguousAttention(model.config, 30, torch.float32)
    assert list(naive_tokens(model, prompt, 12)) == expected
    assert list(cached_tokens(model, prompt, 12, attention)) == expected
    assert attention.num_tokens == 19 + 12 - 1  # of the last token nobody asked for the next


def test_what_does_not_fit(checkpoint: Callable[[str], Checkpoint]) -> None:
    model = LightvLLM.from_pretrained(checkpoint("llama").path).model
    tokens = cached_tokens(model, [1, 2, 3], 9, ContiguousAttention(model.config, 5, torch.float32))
    assert [next(tokens) for _ in range(3)]
    with pytest.raises(ValueError, match="max_len: 6 tokens do not fit in the 5 reserved"):
        next(tokens)
