"""Where the prompts of a load come from: drawn at random, or read from a file of conversations."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lightvllm.engine.tokenizer import Tokenizer

# Bounds of a conversation that is used, in tokens, as in vLLM's benchmark.
MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOTAL_TOKENS = 4, 1024, 2048
MAX_TEXT_ROUNDS = 10


@dataclass(frozen=True)
class LoadRequest:
    """A prompt, as token ids or text, and the most tokens to generate for it."""

    prompt: str | list[int]
    output_len: int

    def body(self, model: str, is_chat: bool, options: Mapping[str, Any]) -> bytes:
        """The HTTP request's: a stream that ends with the server's count of tokens.

        Args:
            is_chat: the prompt is a user's only message, not a text to continue.
            options: further fields; they count more than those that are set here.
        """
        body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if is_chat:
            body["messages"] = [{"role": "user", "content": self.prompt}]
            body["max_completion_tokens"] = self.output_len
        else:
            body |= {"prompt": self.prompt, "max_tokens": self.output_len}
        return msgspec.json.encode(body | dict(options))


class RandomPrompts:
    """Draws prompts of a given length.

    As token ids a prompt has exactly this length and costs the server no tokenization; as text, which a chat needs, it
    is tokenized again there, and may then have another length: what counts is the server's own count.

    Args:
        seed: the same one gives the same prompts.
        as_text: give texts instead of token ids.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, as_text: bool) -> None:
        self.tokenizer = tokenizer
        self.as_text = as_text
        self.random = random.Random(seed)
        ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.added_ids]
        if as_text:  # half a character is none in a text
            ids = [i for i in ids if "\ufffd" not in tokenizer.token_text(i)]
        self.ids = ids

    def draw_length(self, length: int, range_ratio: float) -> int:
        """A length between `length` * (1 - `range_ratio`) and `length` * (1 + `range_ratio`), at least 1."""
        low, high = math.floor(length * (1 - range_ratio)), math.ceil(length * (1 + range_ratio))
        return max(1, self.random.randint(low, high))

    def draw(self, length: int) -> list[int]:
        """Token ids."""
        return self.random.choices(self.ids, k=length)

    def prompt(self, ids: list[int]) -> str | list[int]:
        """The prompt of these ids, or of as many, as text."""
        return self._text(ids) if self.as_text else ids

    def _text(self, ids: list[int]) -> str:
        """A text of as many tokens. Neighbours may merge, so it is cut or added to until the number is right."""
        length = len(ids)
        for _ in range(MAX_TEXT_ROUNDS):
            text = self.tokenizer.decode(ids)
            found = self.tokenizer.encode(text, add_special_tokens=False)
            if len(found) == length:
                break
            ids = found[:length] + self.draw(length - len(found)) if len(found) < length else found[:length]
        return text


def random_requests(
    prompts: RandomPrompts,
    num_requests: int,
    *,
    input_len: int,
    output_len: int,
    range_ratio: float = 0.0,
    prefix_len: int = 0,
) -> list[LoadRequest]:
    """Prompts of random tokens.

    Args:
        input_len, output_len: tokens of a prompt and of its output: on average, see `range_ratio`.
        range_ratio: by which part of themselves the lengths vary to either side.
        prefix_len: tokens before these that all prompts begin with.
    """
    if not 0 <= range_ratio < 1:
        raise ValueError(f"random_range_ratio: {range_ratio} is out of range, expected [0, 1)")
    _check_lengths(random_input_len=input_len, random_output_len=output_len)
    if prefix_len < 0:
        raise ValueError(f"random_prefix_len: {prefix_len} is out of range, expected at least 0")
    prefix = prompts.draw(prefix_len)
    requests = []
    for _ in range(num_requests):
        ids = prefix + prompts.draw(prompts.draw_length(input_len, range_ratio))
        requests.append(LoadRequest(prompts.prompt(ids), prompts.draw_length(output_len, range_ratio)))
    return requests


def prefix_repetition_requests(
    prompts: RandomPrompts, num_requests: int, *, num_prefixes: int, prefix_len: int, suffix_len: int, output_len: int
) -> list[LoadRequest]:
    """Prompts that share prefixes: each of `num_prefixes` begins as many of them, in a random order."""
    _check_lengths(
        prefix_repetition_num_prefixes=num_prefixes,
        prefix_repetition_prefix_len=prefix_len,
        prefix_repetition_suffix_len=suffix_len,
        prefix_repetition_output_len=output_len,
    )
    prefixes = [prompts.draw(prefix_len) for _ in range(num_prefixes)]
    requests = [
        LoadRequest(prompts.prompt(prefixes[i % num_prefixes] + prompts.draw(suffix_len)), output_len)
        for i in range(num_requests)
    ]
    prompts.random.shuffle(requests)
    return requests


def sharegpt_requests(
    path: str, tokenizer: Tokenizer, num_requests: int, *, seed: int, output_len: int | None = None
) -> list[LoadRequest]:
    """The first message of each conversation in a file such as ShareGPT_V3_unfiltered_cleaned_split.json, shuffled.

    Args:
        output_len: tokens to generate; None takes the length of the answer in the file.

    Raises:
        ValueError: the file cannot be read, is in another format, or has no conversation of a fitting length.
    """
    if output_len is not None:
        _check_lengths(sharegpt_output_len=output_len)
    pairs = list(_first_exchanges(path))
    random.Random(seed).shuffle(pairs)
    requests: list[LoadRequest] = []
    for prompt, answer in pairs:
        if len(requests) == num_requests:
            break
        prompt_len = len(tokenizer.encode(prompt))
        length = len(tokenizer.encode(answer, add_special_tokens=False)) if output_len is None else output_len
        is_answer_long_enough = output_len is not None or length >= MIN_TOKENS
        if (
            MIN_TOKENS <= prompt_len <= MAX_PROMPT_TOKENS
            and is_answer_long_enough
            and prompt_len + length <= MAX_TOTAL_TOKENS
        ):
            requests.append(LoadRequest(prompt, length))
    if not requests:
        raise ValueError(f"dataset_path: {path!r} has no conversation of a fitting length")
    return repeated(requests, num_requests)


def repeated(requests: Sequence[LoadRequest], num_requests: int) -> list[LoadRequest]:
    """As many requests, from the beginning again where there are fewer."""
    return [requests[i % len(requests)] for i in range(num_requests)]


def _first_exchanges(path: str) -> Iterator[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            conversations = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset_path: cannot read {path!r}: {error}") from None
    try:
        for conversation in conversations:
            turns = conversation["conversations"]
            if len(turns) >= 2:
                yield turns[0]["value"], turns[1]["value"]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"dataset_path: {path!r} is not a list of {{'conversations': [{{'from', 'value'}}, ...]}}: {error!r}"
        ) from None


def _check_lengths(**lengths: int) -> None:
    for name, length in lengths.items():
        if length < 1:
            raise ValueError(f"{name}: {length} is out of range, expected at least 1")
