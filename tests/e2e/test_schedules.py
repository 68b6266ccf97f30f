"""Requests that come and go at random, in engines of random settings: each gets bit for bit what it gets alone.

Preemption, chunks of any size, shared prefixes, prefix hits, aborts and company all happen as the schedule has it. Like
`test_invariance.py`, but for the many ways in which these come together. On a GPU it is what `batch_invariant` is for.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams, kernels
from lightvllm.outputs import RequestOutput
from tests.e2e.checkpoint import VOCAB_SIZE, Checkpoint

NUM_SCHEDULES = 20  # of each setting
WEIGHTS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8 weights and cache": {"dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
    "4-bit weights": {"dtype": "bfloat16", "quantization": "w4"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "small steps": {"max_num_batched_tokens": 24, "max_num_seqs": 6},
    "small cache": {"enable_prefix_caching": False},
}


@dataclass(frozen=True)
class Asked:
    """A request of a schedule: at which step it comes, and after how many it is aborted, if it is."""

    prompt: tuple[int, ...]
    params: SamplingParams
    arrival: int
    patience: int | None


def draw(rng: random.Random, prefixes: list[list[int]], number: int) -> Asked:
    prompt = rng.choice([[], *prefixes]) + rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 60))
    options = {"temperature": 0.0} if rng.random() < 0.5 else {"temperature": 1.0, "top_p": 0.9, "seed": number}
    params = SamplingParams(max_tokens=rng.randint(1, 20), ignore_eos=True, logprobs=2, **options)
    return Asked(tuple(prompt), params, rng.randint(0, 10), rng.randint(1, 8) if rng.random() < 0.1 else None)


def run(llm: LLM, requests: list[Asked]) -> dict[int, RequestOutput]:
    """The outputs of those that were not aborted, by their number."""
    finished: dict[int, RequestOutput] = {}
    waiting, step = sorted(enumerate(requests), key=lambda item: item[1].arrival), 0
    while waiting or llm.engine.has_unfinished_requests():
        while waiting and waiting[0][1].arrival <= step:
            number, request = waiting.pop(0)
            llm.engine.add_request(str(number), list(request.prompt), request.params)
        for output in llm.engine.step():
            finished[int(output.request_id)] = output
        step += 1
        for number, request in enumerate(requests):
            if request.patience is not None and step == request.arrival + request.patience and number not in finished:
                llm.engine.abort_request([str(number)])
    return {number: output for number, output in finished.items() if requests[number].patience is None}


@pytest.fixture
def _both_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.usefixtures("_both_cores")
def test_alone_and_in_any_schedule(
    weights: str,
    setting: str,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    pytestconfig: pytest.Config,
) -> None:
    on_gpu = pytestconfig.getoption("device") != "cpu"
    if on_gpu and "quantization" in WEIGHTS[weights]:
        pytest.skip("on a GPU quantized weights are not batch-invariant")
    if not on_gpu and not kernels.COMPILED:
        pytest.skip("the compiled kernels are not here")
    rng = random.Random(f"{weights} {setting}")
    options = {"max_model_len": 128, "skip_tokenizer_init": True, "batch_invariant": True, **WEIGHTS[weights]}
    path = checkpoint("qwen3").path
    alone = make_llm(path, enable_prefix_caching=False, **options)
    if setting == "small cache":
        options["kv_cache_memory_bytes"] = 9 * alone.engine.core.executor.plan.block_bytes
    engine = make_llm(path, **options, **SETTINGS[setting])
    prefixes = [rng.choices(range(VOCAB_SIZE), k=length) for length in (16, 33)]
    num_compared = 0
    for _ in range(NUM_SCHEDULES):
        requests = [draw(rng, prefixes, number) for number in range(rng.randint(2, 6))]
        outputs = run(engine, requests)
        for number, output in outputs.items():
            request = requests[number]
            [expected] = alone.generate([list(request.prompt)], request.params, use_tqdm=False)
            assert output.outputs[0].token_ids == expected.outputs[0].token_ids
            assert output.outputs[0].logprobs == expected.outputs[0].logprobs
            num_compared += 1
    assert num_compared > 2 * NUM_SCHEDULES
    if setting == "small cache":
        assert engine.get_metrics().num_preemptions > 0
