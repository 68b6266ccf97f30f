"""Streamed chat completions with OpenAI's client."""

import asyncio
from typing import Any

import openai
import pytest

from tests.sdk.wire import Server, question

GREEDY: dict[str, Any] = {"messages": question(), "model": "default_model", "temperature": 0}


def text_of(chunks: list[Any], index: int = 0) -> str:
    """What a choice's chunks say together."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_chunks_add_up_to_the_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    assert text_of(chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_in_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices for chunk in chunks if chunk.usage] == [[]]
    assert chunks[-1].usage.model_copy(update={"prompt_tokens_details": None}) == whole.usage.model_copy(
        update={"prompt_tokens_details": None}  # how much was cached is for each request to say
    )


def test_usage_may_come_with_every_chunk(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == client.chat.completions.create(**GREEDY).usage.completion_tokens
    for usage in (chunk.usage for chunk in chunks):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_several_choices_in_one_stream(client: openai.OpenAI) -> None:
    options = {**GREEDY, "temperature": 2, "seed": 9, "n": 3, "max_tokens": 16}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert [text_of(chunks, index) for index in range(3)] == [choice.message.content for choice in whole.choices]
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1, 2]
    roles = [choice.index for chunk in chunks for choice in chunk.choices if choice.delta.role]
    assert sorted(roles) == [0, 1, 2]


def test_logprobs_of_the_chunks_add_up(client: openai.OpenAI) -> None:
    options = {**GREEDY, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0].logprobs.content
    chunks = list(client.chat.completions.create(**options, stream=True))
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token for part in parts for token in part] == whole


@pytest.mark.parametrize("stop", [None, " FROM"])
def test_the_stream_helper(client: openai.OpenAI, stop: str | None) -> None:
    options = {**GREEDY, "logprobs": True, **({"stop": stop} if stop else {})}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= set(kinds)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_streams_with_asyncio(server: Server, client: openai.OpenAI) -> None:
    async def one(many: openai.AsyncOpenAI) -> str:
        return text_of([chunk async for chunk in await many.chat.completions.create(**GREEDY, stream=True)])

    async def with_helper(many: openai.AsyncOpenAI) -> str:
        async with many.chat.completions.stream(**GREEDY) as stream:
            return (await stream.get_final_completion()).choices[0].message.content or ""

    async def all_of_them() -> list[str]:
        async with server.async_client() as many:
            return await asyncio.gather(one(many), one(many), with_helper(many), with_helper(many))

    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert asyncio.run(all_of_them()) == [whole] * 4


def test_ids_of_the_tokens(client: openai.OpenAI, server: Server) -> None:
    options = {**GREEDY, "extra_body": {"return_token_ids": True}}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert server.detokenize(whole.choices[0].token_ids[:-1]) == whole.choices[0].message.content
    assert [chunk.prompt_token_ids for chunk in chunks if getattr(chunk, "prompt_token_ids", None)] == [
        whole.prompt_token_ids
    ]
    ids = [getattr(choice, "token_ids", None) or [] for chunk in chunks for choice in chunk.choices]
    assert [token for part in ids for token in part] == whole.choices[0].token_ids
    assert len(whole.prompt_token_ids) == whole.usage.prompt_tokens
