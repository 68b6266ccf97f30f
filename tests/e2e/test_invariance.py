"""The same request gives the same tokens alone and in company, after preemption, with a cache hit, cut into chunks.

How far this holds bit for bit is measured here too, on the log-probabilities of the whole vocabulary at every token.
With the attention kernel of this package it holds everywhere, with a cache of int8, too. With PyTorch's it holds
whatever the company, but not where a prompt is cut differently (in chunks, behind a cache hit, or coming back from
preemption): that kernel rounds differently with the shape of what it is given. In float32 the difference is about 1e-5
and changes no token here; in bfloat16 it is some last bits, and a token may change where two are nearly equally likely.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams, kernels
from lightvllm.outputs import CompletionOutput
from tests.e2e.checkpoint import Checkpoint, random_prompts

CASE = "qwen3"
NUM_TOKENS = 32
ITEMSIZE = {"float32": 4, "bfloat16": 2}
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=-1),
    "seeded": SamplingParams(temperature=1, top_p=0.95, top_k=100, seed=7, max_tokens=NUM_TOKENS, logprobs=-1),
}
(PROMPT,) = random_prompts(50)
COMPANY = random_prompts(*range(2, 95, 3), seed=2)
COMPANY_PARAMS = SamplingParams(max_tokens=NUM_TOKENS)

pytestmark = [
    pytest.mark.parametrize("dtype", ITEMSIZE),
    pytest.mark.parametrize("kind", PARAMS),
    pytest.mark.parametrize(("backend", "kv_cache_dtype"), [("kernel", "auto"), ("kernel", "int8"), ("sdpa", "auto")]),
]

Complete = Callable[..., CompletionOutput]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def complete(
    dtype: str,
    kind: str,
    backend: str,
    kv_cache_dtype: str,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    pytestconfig: pytest.Config,
) -> Complete:
    """`complete(company, **options)`: PROMPT's completion in a batch with others, half of them before it."""
    if backend == "kernel" and not (kernels.COMPILED and pytestconfig.getoption("device") == "cpu"):
        pytest.skip("the compiled attention kernel is not here")

    def run(company: list[list[int]] | None = None, first: list[int] | None = None, **options: Any) -> CompletionOutput:
        options = {"enable_prefix_caching": first is not None, "max_model_len": 160, **options}
        llm = make_llm(
            checkpoint(CASE).path,
            skip_tokenizer_init=True,
            dtype=dtype,
            attention_backend=backend,
            kv_cache_dtype=kv_cache_dtype,
            max_logprobs=-1,
            **options,
        )
        if first is not None:
            llm.generate([first], COMPANY_PARAMS, use_tqdm=False)
        company = company or []
        middle = (len(company) + 1) // 2
        outputs = llm.generate(
            [*company[:middle], PROMPT, *company[middle:]],
            [*[COMPANY_PARAMS] * middle, PARAMS[kind], *[COMPANY_PARAMS] * (len(company) - middle)],
            use_tqdm=False,
        )
        assert (outputs[middle].num_cached_tokens != 0) == (first is not None)
        assert (llm.get_metrics().num_preemptions != 0) == ("kv_cache_memory_bytes" in options)
        return outputs[middle].outputs[0]

    return run


def assert_same(actual: CompletionOutput, expected: CompletionOutput) -> None:
    """The same tokens, and every log-probability the same, bit for bit."""
    assert actual.token_ids == expected.token_ids
    assert actual.logprobs == expected.logprobs


def assert_same_with_kernel(actual: CompletionOutput, expected: CompletionOutput, backend: str, dtype: str) -> None:
    """Bitwise with our kernel; with PyTorch's, see the module's docstring."""
    if backend == "kernel":
        assert_same(actual, expected)
    else:
        assert_close(actual, expected, dtype)


def assert_same_on_cpu(actual: CompletionOutput, expected: CompletionOutput, device: str, dtype: str) -> None:
    """Bitwise on a CPU; a GPU's matrix products round by the number of rows."""
    if device == "cpu":
        assert_same(actual, expected)
    else:
        assert_close(actual, expected, dtype)


def assert_close(actual: CompletionOutput, expected: CompletionOutput, dtype: str) -> None:
    """Log-probabilities within a tolerance as long as the tokens are the same, in float32 all of them."""
    if dtype == "float32":
        assert actual.token_ids == expected.token_ids
    tolerance = {"float32": 1e-4, "bfloat16": 0.25}[dtype]
    assert actual.logprobs is not None
    assert expected.logprobs is not None
    for mine, theirs in zip(actual.logprobs, expected.logprobs, strict=True):
        assert max(abs(mine[token].logprob - theirs[token].logprob) for token in mine) < tolerance
        if next(iter(mine)) != next(iter(theirs)):  # another token was chosen: what follows is another text
            break


@pytest.mark.usefixtures("_num_threads")
def test_in_a_batch_of_32(complete: Complete, device: str, dtype: str) -> None:
    """Bitwise on a CPU, with either kernel, in both number types, with one thread and two."""
    assert_same_on_cpu(complete(COMPANY), complete(), device, dtype)


def test_in_small_batches(complete: Complete, device: str, dtype: str) -> None:
    """Bitwise too. Few rows take other routes through matrix libraries than many."""
    alone = complete()
    for size in (1, 3, 7):
        assert_same_on_cpu(complete(COMPANY[-size:]), alone, device, dtype)


def test_after_preemption(
    complete: Complete, backend: str, kv_cache_dtype: str, dtype: str, checkpoint: Callable[[str], Checkpoint]
) -> None:
    """What was decoded token by token comes back as one chunk."""
    itemsize = 1 if kv_cache_dtype == "int8" else ITEMSIZE[dtype]
    budget = checkpoint(CASE).kv_cache_bytes(10, itemsize=itemsize)
    # The other prompt comes first and fits beside this one; as both grow, the one that came later loses its blocks.
    preempted = complete([COMPANY[22]], kv_cache_memory_bytes=budget)
    assert_same_with_kernel(preempted, complete(), backend, dtype)


@pytest.mark.parametrize("num_shared", [16, 50])
def test_with_a_prefix_cache_hit(complete: Complete, backend: str, dtype: str, num_shared: int) -> None:
    """The rest of the prompt is a chunk of its own."""
    assert_same_with_kernel(complete(first=PROMPT[:num_shared]), complete(), backend, dtype)


def test_in_chunks(complete: Complete, backend: str, dtype: str) -> None:
    alone = complete()
    assert_same_with_kernel(complete(max_num_batched_tokens=7), alone, backend, dtype)
    assert_same_with_kernel(complete(long_prefill_token_threshold=16), alone, backend, dtype)
    assert_same_with_kernel(complete(COMPANY[:8], max_num_batched_tokens=40), alone, backend, dtype)
