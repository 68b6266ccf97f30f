"""Log-probabilities: of the model's own distribution, ranked, in an order that ties do not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightvllm.engine.step import TokenLogprobs
from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.logprobs import prompt_logprobs
from lightvllm.worker.ranking import largest
from tests.worker.sampling_reference import Request, sample


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def check(entry: TokenLogprobs, logits: np.ndarray, chosen: int, num_logprobs: int) -> None:
    expected = log_softmax(logits)
    order = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    assert entry.token_ids == [chosen, *order[:num_logprobs]]
    assert np.abs(np.array(entry.logprobs) - expected[entry.token_ids]).max() < 1e-5
    assert entry.chosen_rank == 1 + (logits > logits[chosen]).sum()


def test_of_sampled_tokens_before_any_processing():
    logits = np.random.default_rng(0).normal(0, 2, (5, 60)).astype(np.float32)
    wanted = [0, 1, 7, None, -1]
    batch = [
        Request(row, SamplingParams(logprobs=n, temperature=1.7, top_k=5, logit_bias={3: 50.0}), seed=i)
        for i, (row, n) in enumerate(zip(logits, wanted, strict=True))
    ]
    output = sample(batch)
    assert sorted(output.logprobs) == [0, 1, 2, 4]
    assert output.token_ids.tolist() == [3] * 5
    for i, entry in output.logprobs.items():
        check(entry, logits[i], 3, 60 if wanted[i] == -1 else wanted[i])


@pytest.mark.parametrize("num_logprobs", [0, 3, -1])
def test_of_a_prompt_longer_than_is_handled_at_once(num_logprobs):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (150, 40)).astype(np.float32)
    following = rng.integers(0, 40, 150)
    entries = prompt_logprobs(torch.from_numpy(logits), torch.from_numpy(following), num_logprobs)
    assert len(entries) == 150
    for entry, row, token_id in zip(entries, logits, following.tolist(), strict=True):
        check(entry, row, token_id, 40 if num_logprobs == -1 else num_logprobs)


def test_of_no_position():
    assert prompt_logprobs(torch.empty(0, 40), torch.empty(0, dtype=torch.int64), 5) == []


def test_bfloat16_logits_are_read_as_they_are():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    following = torch.tensor([0, 1, 2])
    assert prompt_logprobs(logits, following, 4) == prompt_logprobs(logits.float(), following, 4)


def test_prompt_positions_do_not_depend_on_how_the_prompt_was_cut():
    logits = torch.randn(100, 1003, generator=torch.Generator().manual_seed(0))
    following = torch.arange(100)
    whole = prompt_logprobs(logits, following, 5)
    parts = [prompt_logprobs(logits[i : i + n], following[i : i + n], 5) for i, n in ((0, 1), (1, 70), (71, 29))]
    assert [entry for part in parts for entry in part] == whole


@settings(max_examples=200, deadline=None)
@given(
    x=hnp.arrays(np.float32, (3, 20), elements=st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-30, 0.5, 3.0])),
    k=st.integers(0, 20),
)
def test_largest_breaks_ties_by_index(x, k):
    values, indices = largest(torch.from_numpy(x), k)
    expected = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    assert indices.tolist() == expected.tolist()
    assert values.tolist() == np.take_along_axis(x, expected, -1).tolist()


def test_largest_of_many():
    x = np.round(np.random.default_rng(0).normal(0, 100, (4, 5000))).astype(np.float32)
    _, indices = largest(torch.from_numpy(x), 3000)
    assert indices.tolist() == np.argsort(-x, axis=-1, kind="stable")[:, :3000].tolist()
