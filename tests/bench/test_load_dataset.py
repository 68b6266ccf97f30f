"""Prompts are as long as asked for, share what they should, and come out of ShareGPT's files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightvllm.bench.load.dataset import (
    LoadRequest,
    RandomPrompts,
    prefix_repetition_requests,
    random_requests,
    sharegpt_requests,
)
from lightvllm.config import DEFAULT_MODEL
from lightvllm.engine.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(DEFAULT_MODEL)


def _ids(request: LoadRequest) -> list[int]:
    assert isinstance(request.prompt, list)
    return request.prompt


def test_random_token_ids(tokenizer: Tokenizer) -> None:
    prompts = RandomPrompts(tokenizer, seed=1, as_text=False)
    requests = random_requests(prompts, 40, input_len=20, output_len=7, prefix_len=5)
    assert {len(_ids(r)) for r in requests} == {25}
    assert {r.output_len for r in requests} == {7}
    assert len({tuple(_ids(r)[:5]) for r in requests}) == 1
    assert len({tuple(_ids(r)[5:]) for r in requests}) == 40
    used = {i for r in requests for i in _ids(r)}
    assert not used & tokenizer.added_ids
    assert max(used) < tokenizer.vocab_size
    again = random_requests(RandomPrompts(tokenizer, 1, False), 40, input_len=20, output_len=7, prefix_len=5)
    assert again == requests
    assert random_requests(RandomPrompts(tokenizer, 2, False), 1, input_len=20, output_len=7) != requests[:1]


def test_lengths_vary(tokenizer: Tokenizer) -> None:
    prompts = RandomPrompts(tokenizer, seed=1, as_text=False)
    requests = random_requests(prompts, 500, input_len=10, output_len=4, range_ratio=0.5)
    assert {len(_ids(r)) for r in requests} == set(range(5, 16))
    assert {r.output_len for r in requests} == set(range(2, 7))


def test_random_text_has_the_length(tokenizer: Tokenizer) -> None:
    requests = random_requests(RandomPrompts(tokenizer, 0, as_text=True), 50, input_len=30, output_len=4, prefix_len=8)
    texts = [request.prompt for request in requests]
    assert all(isinstance(text, str) and "\ufffd" not in text for text in texts)
    lengths = Counter(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts if isinstance(text, str))
    assert lengths[38] >= 48  # the search for a text may, rarely, give up one or two tokens off
    assert all(36 <= length <= 40 for length in lengths)


def test_shared_prefixes(tokenizer: Tokenizer) -> None:
    prompts = RandomPrompts(tokenizer, seed=1, as_text=False)
    requests = prefix_repetition_requests(prompts, 30, num_prefixes=3, prefix_len=16, suffix_len=4, output_len=2)
    assert Counter(Counter(tuple(_ids(r)[:16]) for r in requests).values()) == {10: 3}
    assert len({tuple(_ids(r)) for r in requests}) == 30
    order = [tuple(_ids(r)[:16]) for r in requests]
    assert order != sorted(order)
    assert len(set(order[:3])) < 3 or len(set(order[3:6])) < 3  # shuffled, not in turns


def _sharegpt(path: Path, *exchanges: tuple[str, ...]) -> str:
    data: list[Any] = [
        {"id": str(i), "conversations": [{"from": "human", "value": text} for text in turns]}
        for i, turns in enumerate(exchanges)
    ]
    path.write_text(json.dumps(data))
    return str(path)


LONG = "How many customers are there in each city? "


def test_sharegpt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    exchanges = [(f"{LONG} {i}", f"There are {i} in Berlin and more in Paris.", "never read") for i in range(5)]
    unfit = [("hi", LONG), (LONG, "no"), ("word " * 3000, LONG), (LONG, "word " * 3000), (LONG,)]
    path = _sharegpt(tmp_path / "s.json", *exchanges, *unfit)
    requests = sharegpt_requests(path, tokenizer, 8, seed=0)
    expected = {prompt: len(tokenizer.encode(answer, add_special_tokens=False)) for prompt, answer, _ in exchanges}
    assert {request.prompt: request.output_len for request in requests} == expected
    assert requests[5:] == requests[:3]  # too few: from the beginning again
    assert [r.prompt for r in sharegpt_requests(path, tokenizer, 5, seed=1)] != [r.prompt for r in requests[:5]]
    short = sharegpt_requests(path, tokenizer, 9, seed=0, output_len=3)
    assert {r.output_len for r in short} == {3}
    assert LONG in {r.prompt for r in short}  # its answer's length does not matter then


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot read"),
        ("[]", "no conversation of a fitting length"),
        ('[{"text": "a"}]', "is not a list of"),
        ('{"a": 1}', "is not a list of"),
        ('[{"conversations": [{"value": "a"}, {"from": "gpt"}]}]', "is not a list of"),
    ],
)
def test_files_that_are_not_sharegpt_s(tmp_path: Path, tokenizer: Tokenizer, content: str | None, message: str) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"dataset_path: .*{message}"):
        sharegpt_requests(str(path), tokenizer, 1, seed=0)


def test_bodies() -> None:
    body = json.loads(LoadRequest([1, 2], 9).body("m", is_chat=False, options={"temperature": 0, "ignore_eos": True}))
    stream = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert body == stream | {"prompt": [1, 2], "max_tokens": 9, "temperature": 0, "ignore_eos": True}
    body = json.loads(LoadRequest("Hi", 9).body("m", is_chat=True, options={"model": "other"}))
    messages = [{"role": "user", "content": "Hi"}]
    assert body == stream | {"messages": messages, "max_completion_tokens": 9, "model": "other"}


def test_sizes_that_do_not_work(tokenizer: Tokenizer) -> None:
    prompts = RandomPrompts(tokenizer, 0, as_text=False)
    with pytest.raises(ValueError, match="random_input_len: 0"):
        random_requests(prompts, 1, input_len=0, output_len=1)
    with pytest.raises(ValueError, match="random_prefix_len: -1"):
        random_requests(prompts, 1, input_len=1, output_len=1, prefix_len=-1)
    with pytest.raises(ValueError, match="sharegpt_output_len: 0"):
        sharegpt_requests("no.json", tokenizer, 1, seed=0, output_len=0)
    with pytest.raises(ValueError, match="random_range_ratio: 1"):
        random_requests(prompts, 1, input_len=1, output_len=1, range_ratio=1.0)
    with pytest.raises(ValueError, match="prefix_repetition_num_prefixes: 0"):
        prefix_repetition_requests(prompts, 1, num_prefixes=0, prefix_len=1, suffix_len=1, output_len=1)
