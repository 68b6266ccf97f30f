"""What is drawn has the distribution of the numpy reference: chi-square over many draws of each feature."""

import numpy as np
import pytest
import torch
from scipy import stats

from lightvllm.sampling_params import SamplingParams
from lightvllm.seeds import mix64
from lightvllm.worker.draw import draw, uniforms
from tests.worker.sampling_reference import Request, distribution, sample

NUM_DRAWS = 20_000
LOGITS = np.random.default_rng(0).normal(0, 2, 40).astype(np.float32)
PROMPT, OUTPUT = [int(LOGITS.argmax()), 1, 2], [int(np.sort(LOGITS.argsort()[-3:])[0]), 5, 5, 5, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 40},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -0.5},
        {"presence_penalty": 1.5},
        {"logit_bias": {3: 4.0, 8: -100.0, 5: 0.5}},
        {"allowed_token_ids": [3, 5, 8, 13, 21]},
        {"top_k": 12, "top_p": 0.8, "temperature": 1.3},
        {"top_p": 0.9, "min_p": 0.1},
        {"top_k": 9, "min_p": 0.05, "top_p": 0.7, "temperature": 1.7},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.4, "top_p": 0.9},
        {"logit_bias": {1: 3.0}, "allowed_token_ids": [1, 2, 5, 6], "presence_penalty": 1.0, "temperature": 0.8},
    ],
    ids=str,
)
def test_draws_follow_the_reference(arguments):
    request = Request(LOGITS, SamplingParams(**arguments), prompt=PROMPT, output=OUTPUT)
    expected = distribution(request)
    batch = [
        Request(LOGITS, request.params, seed=seed, prompt=PROMPT, output=OUTPUT) for seed in range(NUM_DRAWS // 40)
    ]
    # The seeds of 500 requests at 40 positions each: a longer prompt moves the position and changes nothing else.
    drawn = []
    for extra in range(40):
        for member in batch:
            member.prompt = PROMPT[:1] * extra + PROMPT
        drawn.append(sample(batch).token_ids)
    counts = np.bincount(np.concatenate(drawn), minlength=len(expected))

    assert counts[expected == 0].sum() == 0
    possible = expected * counts.sum() >= 5  # too rare ones go together, as chi-square wants
    observed, wanted = list(counts[possible]), list(expected[possible] * counts.sum())
    if not possible[expected > 0].all():
        observed.append(counts[~possible].sum())
        wanted.append(expected[~possible].sum() * counts.sum())
    if len(observed) > 1:
        assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_every_token_of_a_set_is_drawn_and_no_other():
    """Where u goes through [0, 1) evenly, what is drawn is exactly the set that the reference keeps."""
    u = (np.arange(20_000) + 0.5) / 20_000
    rng = np.random.default_rng(1)
    for top_k, top_p, min_p in [(5, 1.0, 0.0), (40, 0.6, 0.0), (40, 1.0, 0.3), (10, 0.9, 0.02), (3, 0.99, 0.5)]:
        logits = rng.normal(0, 1.5, 40).astype(np.float32)
        params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
        expected = distribution(Request(logits, params))
        drawn = _draw_many(logits, u, top_k, top_p, min_p)
        counts = np.bincount(drawn, minlength=40) / len(u)
        assert np.abs(counts - expected).max() < 1.5 / len(u)
        assert ((counts > 0) == (expected > 1 / len(u))).all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_of_thousands_of_equal_tokens(top_p):
    """Wider than the first candidates looked at; among equals the lowest ids are in."""
    vocab_size = 9000
    drawn = _draw_many(np.zeros(vocab_size, np.float32), (np.arange(200) + 0.5) / 200, vocab_size, top_p, 0.0)
    # The draws go evenly through the set: the first and the last one miss its ends by half a step.
    size = vocab_size * top_p
    assert np.abs(drawn - (np.arange(200) + 0.5) / 200 * size).max() <= 1


def test_wide_top_k_and_wide_nucleus_against_the_reference():
    logits = np.random.default_rng(2).normal(0, 0.7, 9000).astype(np.float32)
    u = (np.arange(200) + 0.5) / 200
    for top_k, top_p in [(5000, 1.0), (5000, 0.8), (9000, 0.7)]:
        expected = distribution(Request(logits, SamplingParams(top_k=top_k, top_p=top_p)))
        drawn = _draw_many(logits, u, top_k, top_p, 0.0)
        assert (expected[drawn] > 0).all()
        # The tokens in order of rank: the u-th part of the mass is where the draw lands.
        order = np.argsort(-logits, kind="stable")
        rank_of = np.empty(len(order), int)
        rank_of[order] = np.arange(len(order))
        wanted = np.searchsorted(expected[order].cumsum(), u, side="right")
        assert np.abs(rank_of[drawn] - wanted).max() <= 1  # float32 probabilities move a border by one at most


def test_unlikely_tokens_keep_their_share():
    """A tail of 150,000 tokens with 5 % of the mass together gets 5 % of the draws."""
    vocab_size, tail = 150_000, 0.05
    logits = np.full(vocab_size, np.log(tail / (vocab_size - 1)), np.float32)
    logits[70_000] = np.log(1 - tail)
    drawn = _draw_many(logits, (np.arange(200) + 0.5) / 200, vocab_size, 1.0, 0.0)
    assert (drawn != 70_000).sum() == 10
    assert (np.diff(drawn) >= 0).all()


def test_uniforms_are_splitmix64_and_uniform():
    seeds, positions = [0, 1, -1, 2**63 - 1, 12345], [0, 1, 2, 1000, 2**31]
    keys = np.array([mix64(seed) for seed in seeds], np.uint64)
    got = uniforms(keys, np.array(positions))
    gamma = 0x9E3779B97F4A7C15
    expected = [(mix64(mix64(s) + p * gamma) >> 11) / 2**53 for s, p in zip(seeds, positions, strict=True)]
    assert got.tolist() == expected

    many_seeds = uniforms(np.array([mix64(s) for s in range(20_000)], np.uint64), np.full(20_000, 7))
    many_positions = uniforms(np.full(20_000, keys[0]), np.arange(20_000))
    for u in (many_seeds, many_positions):
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert abs(stats.pearsonr(u[:-1], u[1:]).statistic) < 0.03
    assert abs(stats.pearsonr(many_seeds, many_positions).statistic) < 0.03


def _draw_many(logits: np.ndarray, u: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    n = len(u)
    return draw(
        torch.from_numpy(logits).expand(n, -1),
        u,
        temperature=np.ones(n, np.float32),
        top_k=np.full(n, top_k),
        top_p=np.full(n, top_p),
        min_p=np.full(n, min_p, np.float32),
    ).numpy()
