"""Reported log-probabilities are those of transformers' logits, whatever the sampling made of them."""

from collections.abc import Callable

import pytest
import torch

from lightvllm import LLM, SamplingParams
from lightvllm.outputs import Logprob
from tests.e2e.checkpoint import VOCAB_SIZE, Checkpoint, random_prompts

TOLERANCE = 1e-4
PROMPTS = random_prompts(20, 1, 45)
GREEDY = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}


@pytest.fixture
def llm(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(text_checkpoint.path, max_model_len=160)


def check_entry(entry: dict[int, Logprob], token: int, expected: torch.Tensor, count: int) -> None:
    """One position's report: the token itself first, then the `count` likeliest in order; values, ranks."""
    likeliest = expected.topk(count).indices.tolist()
    assert list(entry) == list(dict.fromkeys([token, *likeliest]))
    for token_id, logprob in entry.items():
        assert logprob.logprob == pytest.approx(expected[token_id].item(), abs=TOLERANCE)
        assert logprob.rank == int((expected > expected[token_id]).sum()) + 1


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_of_the_output(count: int, llm: LLM, text_checkpoint: Checkpoint) -> None:
    """Under temperature, penalties and bias too: these change the choice, not the report."""
    settings = [
        {"temperature": 0},
        {"temperature": 2.0, "seed": 1, "presence_penalty": 2.0, "logit_bias": {3: 50}},
        {"temperature": 0, "allowed_token_ids": [7, 8]},
    ]
    params = [SamplingParams(**{**GREEDY, **fields, "logprobs": count}) for fields in settings]
    for output in llm.generate(PROMPTS, params, use_tqdm=False):
        completion = output.outputs[0]
        known = output.prompt_token_ids + completion.token_ids
        expected = text_checkpoint.logprobs(known)[len(output.prompt_token_ids) - 1 : -1]
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.token_ids) == 10
        for entry, token, row in zip(completion.logprobs, completion.token_ids, expected, strict=True):
            check_entry(entry, token, row, count)
        total = sum(
            entry[token].logprob for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
        )
        assert completion.cumulative_logprob == pytest.approx(total, abs=TOLERANCE)


def test_none_unless_asked_for(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], SamplingParams(**GREEDY), use_tqdm=False)
    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


@pytest.mark.parametrize("chunk", [6, 4096])
@pytest.mark.parametrize("num_completions", [1, 2])
def test_of_the_prompt(
    chunk: int,
    num_completions: int,
    text_checkpoint: Checkpoint,
    make_llm: Callable[..., LLM],
) -> None:
    """All of them, in chunks too, and when the prompt is in the prefix cache already."""
    llm = make_llm(text_checkpoint.path, max_model_len=160, max_num_batched_tokens=chunk)
    params = SamplingParams(max_tokens=3, prompt_logprobs=4, n=num_completions, seed=1)
    for _ in range(2):
        for output in llm.generate(PROMPTS, params, use_tqdm=False):
            prompt = output.prompt_token_ids
            assert output.prompt_logprobs is not None
            assert len(output.prompt_logprobs) == len(prompt)
            assert output.prompt_logprobs[0] is None
            expected = text_checkpoint.logprobs(prompt)
            for i in range(1, len(prompt)):
                check_entry(output.prompt_logprobs[i] or {}, prompt[i], expected[i - 1], 4)


def test_of_the_prompt_while_others_run_and_blocks_are_short(
    text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
) -> None:
    """A request that loses its blocks and computes its prompt again does not report it twice."""
    llm = make_llm(
        text_checkpoint.path,
        max_num_batched_tokens=8,
        kv_cache_memory_bytes=text_checkpoint.kv_cache_bytes(8),
    )
    params = SamplingParams(temperature=0, max_tokens=50, prompt_logprobs=0, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert llm.get_metrics().num_preemptions > 0
    for output in outputs:
        assert output.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
        expected = text_checkpoint.logprobs(output.prompt_token_ids)
        for i in range(1, len(output.prompt_token_ids)):
            check_entry(output.prompt_logprobs[i] or {}, output.prompt_token_ids[i], expected[i - 1], 0)


def test_of_the_whole_vocabulary(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(text_checkpoint.path, max_model_len=160, max_logprobs=-1)
    (output,) = llm.generate(PROMPTS[0], SamplingParams(**GREEDY, logprobs=-1, prompt_logprobs=-1), use_tqdm=False)
    assert {len(entry) for entry in output.outputs[0].logprobs or []} == {VOCAB_SIZE}
    assert {len(entry or {}) for entry in (output.prompt_logprobs or [])[1:]} == {VOCAB_SIZE}
    check_entry(
        (output.outputs[0].logprobs or [])[0],
        output.outputs[0].token_ids[0],
        text_checkpoint.logprobs(PROMPTS[0])[-1],
        VOCAB_SIZE,
    )


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_more_than_allowed(field: str, llm: LLM) -> None:
    for count in (21, -1):
        with pytest.raises(ValueError, match=rf"{field}.*{count}.*20"):
            llm.generate(PROMPTS, SamplingParams(**{field: count}), use_tqdm=False)


def test_tokens_are_named(llm: LLM) -> None:
    """Each candidate's text is what it reads as; part of a character is U+FFFD."""
    (output,) = llm.generate(PROMPTS[0], SamplingParams(**GREEDY, logprobs=20), use_tqdm=False)
    for entry in output.outputs[0].logprobs or []:
        for token, logprob in entry.items():
            if token < 256:
                assert logprob.decoded_token == bytes([token]).decode("utf-8", "replace")
