"""A KV cache of int8: close to the full cache in what the model says, and not a copy of it."""

from collections.abc import Callable

import pytest
import torch

from lightvllm import LLM, kernels
from tests.e2e.checkpoint import Checkpoint
from tests.e2e.test_dtypes import engine_logprobs

# Keys and values are off by at most 0.4 % of a head's largest number. What that makes of log-probabilities on average,
# over 80 tokens with 300 each, here: 
MEAN_TOLERANCE = 0.06


@pytest.mark.parametrize("backend", ["kernel", "sdpa", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["qwen3", "llama-multi-query", "mistral-head-dim"])
def test_logprobs_are_close_to_those_of_the_full_cache(
    case: str,
    dtype: str,
    backend: str,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    pytestconfig: pytest.Config,
) -> None:
    """Of a prompt's tokens, prefilled in chunks, and of those that follow it, decoded."""
    if backend == "kernel" and (not kernels.COMPILED or pytestconfig.getoption("device") != "cpu" or "head-dim" in case):
        pytest.skip("the compiled attention kernel is not here, or not for this head size")
    options = {"skip_tokenizer_init": True, "max_model_len": 160, "max_logprobs": -1, "max_num_batched_tokens": 16}
    options |= {"dtype": dtype, "attention_backend": backend}
    llm = make_llm(checkpoint(case).path, kv_cache_dtype="int8", **options)
    token_ids, actual = engine_logprobs(llm)
    expected = checkpoint(case).logprobs(token_ids)
    error = (actual - expected).abs().mean()
    print(error, (actual - expected).abs().max())
    assert error < MEAN_TOLERANCE
