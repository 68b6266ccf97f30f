"""The company of a request does not show in the matrix products of a wide model either.

Narrow ones, as the other tests use, take one route through the matrix library for any number of rows. From about 2,048
inputs on it has another one for few rows, which rounds differently.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightvllm import LLM, SamplingParams
from tests.e2e.checkpoint import random_prompts
from tests.models.checkpoints import CASES, make_checkpoint

PROMPTS = random_prompts(*range(2, 34), seed=3)
PARAMS = SamplingParams(temperature=0, max_tokens=16, logprobs=-1)
WIDE = {"head_dim": 32, "hidden_size": 256, "intermediate_size": 4096, "initializer_range": 0.05}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alone_and_in_a_batch_of_32(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_llm: Callable[..., LLM], device: str
) -> None:
    """Bitwise."""
    if device != "cpu":
        pytest.skip("the packed products are the CPU's")
    monkeypatch.setitem(CASES, "wide", ("Qwen3", WIDE))
    make_checkpoint(tmp_path, "wide")
    llm = make_llm(
        tmp_path,
        skip_tokenizer_init=True,
        max_model_len=64,
        dtype=dtype,
        max_logprobs=-1,
        enable_prefix_caching=False,
    )
    together = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    for prompt, output in zip(PROMPTS[:6], together, strict=False):
        (alone,) = llm.generate(prompt, PARAMS, use_tqdm=False)
        assert alone.outputs == output.outputs
