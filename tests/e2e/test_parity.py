"""Greedy tokens are transformers', in float32, whatever way through the engine they take."""

from collections.abc import Callable
from typing import Any

import pytest

from lightvllm import LLM, SamplingParams
from tests.e2e.checkpoint import Checkpoint, random_prompts
from tests.models.checkpoints import CASES

NUM_TOKENS = 64
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
# Shorter than a block, a block and one, a chunk and more, longer than the original context of "llama-dynamic".
PROMPTS = random_prompts(3, 17, 40, 90)

# Every step computes at most 24 tokens, of one request at most 13; the cache holds one request of full length and some.
EVERYTHING: dict[str, Any] = {"max_num_batched_tokens": 24, "long_prefill_token_threshold": 13, "max_model_len": 160}
NUM_BLOCKS = 11

DIFFERENT_PATHS: dict[str, dict[str, Any]] = {
    "no prefix cache": {"enable_prefix_caching": False},
    "chunks of 5": {"max_num_batched_tokens": 5},
    "one token of a prompt at a time": {"long_prefill_token_threshold": 1},
    "two requests at a time": {"max_num_seqs": 2},
    "blocks of 1": {"block_size": 1},
    "blocks of 5": {"block_size": 5, "max_num_batched_tokens": 17},
    "blocks of 64": {"block_size": 64},
    "reference attention": {"attention_backend": "reference"},
    "reference attention in chunks": {"attention_backend": "reference", "max_num_batched_tokens": 11},
    "sdpa attention in chunks without prefix cache": {
        "attention_backend": "sdpa",
        "max_num_batched_tokens": 11,
        "enable_prefix_caching": False,
    },
}


@pytest.fixture(scope="module")
def expected(checkpoint: Callable[[str], Checkpoint]) -> Callable[[str], list[list[int]]]:
    """`expected("qwen3")`: what transformers' `generate` continues each of the prompts with."""
    known: dict[str, list[list[int]]] = {}

    def get(case: str) -> list[list[int]]:
        if case not in known:
            known[case] = [checkpoint(case).greedy(prompt, NUM_TOKENS) for prompt in PROMPTS]
            assert len({token for tokens in known[case] for token in tokens}) > 10, "a model that says little"
        return known[case]

    return get


def completions(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("case", CASES)
def test_every_model_alone_and_mixed(
    case: str,
    checkpoint: Callable[[str], Checkpoint],
    expected: Callable[[str], list[list[int]]],
    make_llm: Callable[..., LLM],
) -> None:
    """A short and a long prompt alone; then all at once in small chunks, one twice, in a cache too small for them."""
    path = checkpoint(case).path
    alone = make_llm(path, skip_tokenizer_init=True, max_model_len=160)
    for i in (1, 3):
        assert completions(alone, [PROMPTS[i]]) == [expected(case)[i]]

    budget = checkpoint(case).kv_cache_bytes(NUM_BLOCKS)
    mixed = make_llm(path, skip_tokenizer_init=True, kv_cache_memory_bytes=budget, **EVERYTHING)
    assert completions(mixed, [*PROMPTS, PROMPTS[3]]) == [*expected(case), expected(case)[3]]
    assert mixed.get_metrics().num_blocks == NUM_BLOCKS
    assert mixed.get_metrics().num_preemptions > 0
    if case != "llama-dynamic":  # its keys depend on the length of the whole prompt
        assert mixed.get_metrics().prefix_cache_hits > 0


@pytest.mark.parametrize("case", ["llama-dynamic", "qwen3-window"])
@pytest.mark.parametrize("path", DIFFERENT_PATHS)
def test_every_path(
    case: str,
    path: str,
    checkpoint: Callable[[str], Checkpoint],
    expected: Callable[[str], list[list[int]]],
    make_llm: Callable[..., LLM],
) -> None:
    """All prompts in one batch, twice, with ample room."""
    llm = make_llm(checkpoint(case).path, skip_tokenizer_init=True, max_model_len=160, **DIFFERENT_PATHS[path])
    assert completions(llm, PROMPTS) == expected(case)
    assert completions(llm, PROMPTS) == expected(case)
    assert llm.get_metrics().num_preemptions == 0


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("max_num_batched_tokens", [9, 4096])
@pytest.mark.parametrize("attention_backend", ["sdpa", "reference"])
def test_preemption(
    caching: bool,
    max_num_batched_tokens: int,
    attention_backend: str,
    checkpoint: Callable[[str], Checkpoint],
    expected: Callable[[str], list[list[int]]],
    make_llm: Callable[..., LLM],
) -> None:
    """Requests that lose their blocks in the middle of their output go on where they were."""
    llm = make_llm(
        checkpoint("mistral-window").path,
        skip_tokenizer_init=True,
        enable_prefix_caching=caching,
        max_num_batched_tokens=max_num_batched_tokens,
        attention_backend=attention_backend,
        kv_cache_memory_bytes=checkpoint("mistral-window").kv_cache_bytes(NUM_BLOCKS * 4, block_size=4),
        block_size=4,
    )
    assert completions(llm, PROMPTS) == expected("mistral-window")
    assert llm.get_metrics().num_preemptions > 0


def test_prompt_and_output_up_to_the_last_position(
    checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]
) -> None:
    """A context of 160 tokens holds exactly 160, and `max_tokens=None` fills it."""
    (prompt,) = random_prompts(130, seed=2)
    llm = make_llm(checkpoint("qwen2").path, skip_tokenizer_init=True, max_model_len=160)
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=None), use_tqdm=False)
    assert output.outputs[0].token_ids == checkpoint("qwen2").greedy(prompt, 30)
    assert output.outputs[0].finish_reason == "length"
