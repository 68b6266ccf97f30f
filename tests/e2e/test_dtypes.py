"""Number types: what runs in which, and how far bfloat16 is from transformers' bfloat16."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from lightvllm import LLM, LightvLLM, SamplingParams
from tests.e2e.checkpoint import Checkpoint, random_prompts

(PROMPT,) = random_prompts(60)
PARAMS = SamplingParams(temperature=0, max_tokens=20, prompt_logprobs=-1, logprobs=-1)
# bfloat16 keeps 8 bits: a logit of 8 is rounded by up to 1/64, and so is everything on the way to it. Two programs that
# round at other moments differ by 0.02 to 0.04 on average here, and by 0.2 to 0.45 where they differ most, over 80
# tokens with 300 logits each.
MEAN_TOLERANCE, TOLERANCE = 0.06, 0.7


def save_as(checkpoint: Checkpoint, dtype: torch.dtype, path: Path) -> Checkpoint:
    """The same model with its weights in another type."""
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=dtype).save_pretrained(path)
    return read_as(path, dtype)


def read_as(path: Path, dtype: torch.dtype) -> Checkpoint:
    """A folder as transformers reads it: rotary frequencies stay float32, whatever the type of the weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
    return Checkpoint(path, model)


def engine_logprobs(llm: LLM) -> tuple[list[int], torch.Tensor]:
    """All tokens but the last; the distributions after each. # [num_tokens, vocab_size]"""
    (output,) = llm.generate(PROMPT, PARAMS, use_tqdm=False)
    entries = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
    table = [[entry[token].logprob for token in range(len(entry))] for entry in entries if entry is not None]
    return PROMPT + output.outputs[0].token_ids[:-1], torch.tensor(table)


@pytest.mark.parametrize("case", ["qwen3", "llama-biases", "mistral-window", "llama-yarn"])
def test_bfloat16_is_transformers(
    case: str, checkpoint: Callable[[str], Checkpoint], tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    """Prefill and decode alike; and no further from float32 than transformers is."""
    half = save_as(checkpoint(case), torch.bfloat16, tmp_path)
    llm = make_llm(half.path, skip_tokenizer_init=True, max_model_len=160, max_logprobs=-1)
    token_ids, actual = engine_logprobs(llm)
    expected = half.logprobs(token_ids)
    assert (actual - expected).abs().max() < TOLERANCE
    assert (actual - expected).abs().mean() < MEAN_TOLERANCE
    exact = read_as(half.path, torch.float32).logprobs(token_ids)
    own_error, their_error = ((x - exact).abs().mean() for x in (actual, expected))
    assert 0 < own_error < 1.3 * their_error


def test_auto_is_the_checkpoint_s_own(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    """Seen from outside by what fits a cache of one size, and by the last bits of the log-probabilities."""
    half = save_as(checkpoint("qwen3"), torch.bfloat16, tmp_path)
    budget = half.kv_cache_bytes(10)
    options = {"skip_tokenizer_init": True, "kv_cache_memory_bytes": budget, "max_logprobs": -1}
    num_blocks, results = {}, {}
    for dtype in ("auto", "bfloat16", "float32"):
        llm = make_llm(half.path, dtype=dtype, **options)
        num_blocks[dtype] = llm.get_metrics().num_blocks
        results[dtype] = engine_logprobs(llm)[1]
    assert num_blocks == {"auto": 20, "bfloat16": 20, "float32": 10}
    assert torch.equal(results["auto"], results["bfloat16"])
    assert not torch.equal(results["bfloat16"], results["float32"])


def test_float16(checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> None:
    """Three bits more than bfloat16."""
    llm = make_llm(
        checkpoint("qwen3").path, skip_tokenizer_init=True, max_model_len=160, dtype="float16", max_logprobs=-1
    )
    (output,) = llm.generate(PROMPT, PARAMS, use_tqdm=False)
    if output.outputs[0].finish_reason == "error":
        raise RuntimeError(output.outputs[0].stop_reason)
    token_ids, actual = engine_logprobs(llm)
    torch.testing.assert_close(actual, checkpoint("qwen3").logprobs(token_ids), rtol=0, atol=0.1)


def test_float32_of_a_bfloat16_checkpoint_is_exact(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    half = save_as(checkpoint("qwen2"), torch.bfloat16, tmp_path)
    llm = make_llm(half.path, skip_tokenizer_init=True, max_model_len=160, dtype="float32", max_logprobs=-1)
    token_ids, actual = engine_logprobs(llm)
    expected = read_as(half.path, torch.float32).logprobs(token_ids)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_other_names(checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> None:
    path, budget = checkpoint("qwen2").path, checkpoint("qwen2").kv_cache_bytes(10)
    for name, num_blocks in (("half", 20), ("float", 10)):
        llm = make_llm(path, skip_tokenizer_init=True, dtype=name, kv_cache_memory_bytes=budget)
        assert llm.get_metrics().num_blocks == num_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bare_model(dtype: torch.dtype, checkpoint: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    saved = save_as(checkpoint("llama"), dtype, tmp_path)
    model = LightvLLM.from_pretrained(saved.path)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT])).logits[0]
    assert logits.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: TOLERANCE}[dtype]
    torch.testing.assert_close(logits.float(), saved.logits(PROMPT), rtol=0, atol=tolerance)
    float32 = LightvLLM.from_pretrained(saved.path, dtype="float32")
    assert {parameter.dtype for parameter in float32.parameters()} == {torch.float32}
