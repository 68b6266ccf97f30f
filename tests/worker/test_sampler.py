"""The sampler: a row's result is its own whatever the batch; bans, ties, errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.draw import draw
from lightvllm.worker.sampler import Sampler
from lightvllm.worker.sampling_state import SamplingState
from tests.worker.sampling_reference import Request, processed_logits, sample

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
GREEDY = SamplingParams(temperature=0)


def random_logits(seed: int, vocab_size: int = 50, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, vocab_size).astype(np.float32)


@st.composite
def requests(draw_one, vocab_size: int) -> Request:
    """Any mix of features; about half of the features off in each request."""

    def maybe(name: str, values: st.SearchStrategy) -> dict:
        return {name: draw_one(values)} if draw_one(st.booleans()) else {}

    token = st.integers(0, vocab_size - 1)
    arguments = {
        **maybe("temperature", st.sampled_from([0.0, 0.3, 0.7, 1.5])),
        **maybe("top_k", st.integers(1, vocab_size)),
        **maybe("top_p", st.floats(0.01, 1.0)),
        **maybe("min_p", st.floats(0.0, 0.5)),
        **maybe("repetition_penalty", st.floats(0.5, 2.0)),
        **maybe("frequency_penalty", st.floats(-2.0, 2.0)),
        **maybe("presence_penalty", st.floats(-2.0, 2.0)),
        **maybe("logit_bias", st.dictionaries(token, st.floats(-5.0, 5.0), max_size=5)),
        **maybe("allowed_token_ids", st.lists(token, min_size=3, max_size=30)),
        **maybe("min_tokens", st.integers(1, 10)),
        **maybe("logprobs", st.sampled_from([0, 1, 5, -1])),
    }
    params = SamplingParams(**arguments)
    if draw_one(st.booleans()):
        params.bad_words = ["some"]
        params.bad_words_token_ids = draw_one(st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=4))
    logits = random_logits(draw_one(st.integers(0, 10**6)), vocab_size)
    if draw_one(st.booleans()):
        logits = np.round(logits)  # many ties
    return Request(
        logits,
        params,
        seed=draw_one(st.integers(-(2**63), 2**63 - 1)),
        prompt=draw_one(st.lists(token, min_size=1, max_size=12)),
        output=draw_one(st.lists(token, max_size=12)),
        stop_token_ids=draw_one(st.lists(token, max_size=2)),
    )


def check_batch_equals_each_alone(batch: list[Request], device: str) -> None:
    together = sample(batch, device)
    for i, request in enumerate(batch):
        alone = sample([request], device)
        assert together.token_ids[i] == alone.token_ids[0]
        assert together.logprobs.get(i) == alone.logprobs.get(0)
        assert together.errors.get(i) == alone.errors.get(0)
    backwards = sample(batch[::-1], device)
    assert backwards.token_ids[::-1].tolist() == together.token_ids.tolist()


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mixed_batch_equals_each_row_alone(device, data):
    vocab_size = data.draw(st.sampled_from([31, 50, 64, 1003]))
    check_batch_equals_each_alone(data.draw(st.lists(requests(vocab_size), min_size=1, max_size=8)), device)


@pytest.mark.parametrize("device", DEVICES)
def test_large_vocabulary_batch_equals_each_row_alone(device):
    """More elements than are handled at once, so that the batch is cut in parts."""
    kinds = [{}, {"top_p": 0.9}, {"temperature": 0}, {"min_p": 0.01}, {"top_k": 300, "logprobs": 3}, {"top_p": 0.3}]
    batch = [
        Request(random_logits(i, 151_936, scale=1 + i % 5), SamplingParams(**kinds[i % len(kinds)]), seed=i)
        for i in range(14)
    ]
    check_batch_equals_each_alone(batch, device)


@settings(max_examples=100, deadline=None)
@given(request=requests(vocab_size=31))
def test_greedy_takes_the_reference_maximum(request):
    request.params.temperature = 0.0
    output = sample([request])
    wanted = processed_logits(request)
    if output.errors:
        assert wanted.max() == -np.inf
    else:
        # float32 here, float64 there: where the best two are closer than that, either is right.
        assert wanted[output.token_ids[0]] >= wanted.max() - 1e-5


def test_greedy_is_the_same_with_random_neighbours():
    batch = [Request(random_logits(i), GREEDY) for i in range(6)]
    alone = sample(batch).token_ids
    assert alone.tolist() == [request.logits.argmax() for request in batch]
    neighbours = [Request(random_logits(i), SamplingParams(top_p=0.5, presence_penalty=1.0)) for i in range(6)]
    mixed = [request for pair in zip(batch, neighbours, strict=True) for request in pair]
    assert sample(mixed).token_ids[::2].tolist() == alone.tolist()


def test_seed_and_position_decide():
    logits = np.zeros(1000, np.float32)

    def drawn(seed: int, num_tokens: int) -> int:
        return int(sample([Request(logits, SamplingParams(), seed=seed, prompt=[0] * num_tokens)]).token_ids[0])

    assert drawn(1, 5) == drawn(1, 5)
    assert len({drawn(seed, 5) for seed in range(30)}) > 25
    assert len({drawn(1, n) for n in range(1, 30)}) > 25


def test_prompt_and_output_count_alike_for_the_position():
    """A request that comes back with its output as known tokens goes on with the draw it would have made."""
    logits = random_logits(3, 500)
    before = Request(logits, SamplingParams(), seed=9, prompt=[1, 2], output=[3, 4])
    after = Request(logits, SamplingParams(), seed=9, prompt=[1, 2, 3], output=[4])
    assert sample([before]).token_ids == sample([after]).token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_tokens_the_lowest_id(device, dtype):
    logits = np.array([0, 3, 1, 3, 3, 2, 2], np.float32)
    kinds = [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"top_k": 1, "temperature": 0.2}]
    batch = [Request(logits, SamplingParams(**kind), seed=s) for kind in kinds for s in range(50)]
    assert set(sample(batch, device, dtype).token_ids) == {1}
    two = [Request(logits, SamplingParams(top_k=2), seed=s) for s in range(200)]
    assert set(sample(two, device, dtype).token_ids) == {1, 3}
    five = [Request(logits, SamplingParams(top_k=4), seed=s) for s in range(400)]
    assert set(sample(five, device, dtype).token_ids) == {1, 3, 4, 5}


def test_lowest_temperature_that_is_not_greedy_is_nearly():
    logits = random_logits(1)
    batch = [Request(logits, SamplingParams(temperature=1e-5), seed=s) for s in range(100)]
    assert set(sample(batch).token_ids) == {logits.argmax()}


def test_min_tokens_forbids_stopping_until_reached():
    logits = np.zeros(10, np.float32)
    logits[[4, 7]] = 5, 4
    params = SamplingParams(temperature=0, min_tokens=2)
    outputs = [[], [1], [1, 1], [1, 1, 1]]
    batch = [Request(logits, params, output=output, stop_token_ids=[4, 7]) for output in outputs]
    assert sample(batch).token_ids.tolist() == [0, 0, 4, 4]


def test_bad_words_forbid_only_their_last_token_after_the_others():
    logits = np.arange(10, dtype=np.float32)
    params = SamplingParams(temperature=0, bad_words=["x"])
    params.bad_words_token_ids = [[9], [1, 2, 8], [7, 8]]
    cases = {(): 8, (1, 2): 7, (2,): 8, (1, 2, 3): 8, (5, 1, 2): 7, (7,): 7}
    for output, expected in cases.items():
        assert sample([Request(logits, params, output=list(output))]).token_ids[0] == expected, output
    # A word that began in the prompt is the user's.
    assert sample([Request(logits, params, prompt=[0, 1, 2])]).token_ids[0] == 8


def test_allowed_token_ids_bias_and_penalties_meet():
    logits = np.array([5, 4, 3, 2, 1], np.float32)

    def chosen(output: list[int], **arguments: object) -> int:
        request = Request(logits, SamplingParams(temperature=0, **arguments), prompt=[4], output=output)  # type: ignore[arg-type]
        return int(sample([request]).token_ids[0])

    assert chosen([], allowed_token_ids=[2, 3]) == 2
    assert chosen([], allowed_token_ids=[2, 3], logit_bias={0: 100.0, 3: 1.5}) == 3
    assert chosen([0], presence_penalty=1.5) == 1
    assert chosen([0, 0, 0], presence_penalty=0.5, frequency_penalty=0.1) == 0
    assert chosen([0, 0, 0], presence_penalty=0.5, frequency_penalty=0.2) == 1
    assert chosen([0, 1], repetition_penalty=1.7) == 2
    assert chosen([0], repetition_penalty=1.2, logit_bias={0: -5.5, 1: -4.55, 2: -9.0, 3: -9.0, 4: -9.0}) == 1
    assert chosen([], repetition_penalty=0.1) == 4  # the prompt counts for repetition,
    assert chosen([], presence_penalty=-2.0, frequency_penalty=-2.0) == 0  # and for no other


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {}, {"top_p": 0.5}, {"temperature": 0, "logprobs": 2}])
def test_a_bad_row_is_its_own_error(arguments):
    params = SamplingParams(**arguments)
    batch = [Request(random_logits(i), params, seed=i) for i in range(6)]
    healthy = sample(batch)
    batch[1].logits = np.full(50, -np.inf, np.float32)
    batch[3].logits[7] = np.nan
    batch[4].logits[8] = np.inf
    output = sample(batch)
    assert output.errors == {
        1: "the model's logits are all -inf",
        3: "the model's logits contain NaN",
        4: "the model's logits contain +inf",
    }
    assert output.token_ids[[1, 3, 4]].tolist() == [-1, -1, -1]
    assert output.token_ids[[0, 2, 5]].tolist() == healthy.token_ids[[0, 2, 5]].tolist()
    assert set(output.logprobs) == ({0, 2, 5} if params.logprobs is not None else set())
    assert not healthy.errors


def test_nothing_left_to_choose_is_an_error_of_the_row():
    params = SamplingParams(temperature=0, allowed_token_ids=[3], min_tokens=1)
    batch = [Request(random_logits(0), params, stop_token_ids=[3]), Request(random_logits(1), GREEDY)]
    output = sample(batch)
    assert list(output.errors) == [0]
    assert "allowed_token_ids, structured_outputs, bad_words and min_tokens forbid all" in output.errors[0]
    assert output.token_ids[1] == batch[1].logits.argmax()


def test_logits_the_model_itself_forbids_are_never_drawn():
    logits = np.full(100, -np.inf, np.float32)
    logits[[10, 20]] = 1.0
    batch = [Request(logits, SamplingParams(top_p=p), seed=s) for s in range(100) for p in (1.0, 0.99)]
    assert set(sample(batch).token_ids) == {10, 20}
    first = draw(torch.from_numpy(logits)[None], np.zeros(1), *map(np.array, ([1.0], [100], [1.0], [0.0])))
    assert first.tolist() == [10]


def test_logits_are_not_changed():
    state = SamplingState(1, 50)
    state.add(0, SamplingParams(presence_penalty=1.0, logit_bias={3: 1.0}, top_p=0.5), 0, [], 1)
    logits = torch.from_numpy(random_logits(0))[None]
    before = logits.clone()
    Sampler(state).sample(logits, np.array([0]), np.array([[1, 2, 3]], np.int32), np.array([3]))
    assert torch.equal(logits, before)


def test_a_row_forgets_its_last_request():
    state = SamplingState(1, 10)
    first = SamplingParams(
        top_k=3, allowed_token_ids=[1], logit_bias={2: 1.0}, min_tokens=4, logprobs=2, repetition_penalty=2.0
    )
    state.add(0, first, 0, [5], 1)
    state.remove(0)
    state.add(0, GREEDY, 0, [5], 1)
    logits = torch.zeros(1, 10)
    logits[0, 5] = 1.0
    output = Sampler(state).sample(logits, np.array([0]), np.array([[5]], np.int32), np.array([1]))
    assert output.token_ids.tolist() == [5]
    assert not output.logprobs
