"""Chat completions with OpenAI's client."""

import asyncio
import math

import openai
import pytest

from tests.sdk.wire import Server, question

GREEDY = {"messages": question(), "model": "default_model", "temperature": 0}


def test_models(client: openai.OpenAI, tiny: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("default_model", "model")
    assert client.models.retrieve(model.id) == model
    assert [card.id for card in tiny.models.list()] == ["assistant", "alias"]
    assert tiny.models.retrieve("alias").id == "alias"


def test_an_answer(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(**GREEDY)
    [choice] = completion.choices
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "default_model"
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert choice.message.role == "assistant"
    assert choice.message.content.startswith("SELECT ")
    assert choice.message.tool_calls is None
    usage = completion.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert client.chat.completions.create(**GREEDY).choices[0].message.content == choice.message.content


def test_both_names_of_the_length_limit(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        completion = client.chat.completions.create(**GREEDY, **{name: 3})
        assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 3)


def test_content_in_parts_is_as_content_in_one(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "How many books"}, {"type": "text", "text": "are there?"}]
    in_parts = [question()[0], {"role": "user", "content": parts}]
    joined = "\n".join(part["text"] for part in parts)
    whole = [question()[0], {"role": "user", "content": joined}]
    extra = {"return_token_ids": True}
    options = {"model": "default_model", "temperature": 0, "extra_body": extra}
    one, other = (client.chat.completions.create(messages=messages, **options) for messages in (in_parts, whole))
    assert one.prompt_token_ids == other.prompt_token_ids
    assert one.choices[0].message.content == other.choices[0].message.content


def test_several_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    options = {**GREEDY, "temperature": 2, "seed": 5, "n": 4, "max_tokens": 24}
    first, second = (client.chat.completions.create(**options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]
    other = client.chat.completions.create(**{**options, "seed": 6})
    assert texts != [choice.message.content for choice in other.choices]


def test_greedy_choices_are_equal(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(**GREEDY, n=3)
    alone = client.chat.completions.create(**GREEDY)
    assert [choice.message.content for choice in completion.choices] == [alone.choices[0].message.content] * 3
    assert completion.usage.prompt_tokens == alone.usage.prompt_tokens
    assert completion.usage.completion_tokens == 3 * alone.usage.completion_tokens


@pytest.mark.parametrize("stop", [" FROM", [" FROM", "never"], ["OM bo"]])
def test_stop_strings(client: openai.OpenAI, stop: str | list[str]) -> None:
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    string = stop if isinstance(stop, str) else stop[0]
    [choice] = client.chat.completions.create(**GREEDY, stop=stop).choices
    assert choice.message.content == whole[: whole.index(string)] != ""
    assert (choice.finish_reason, choice.stop_reason) == ("stop", string)
    [kept] = client.chat.completions.create(
        **GREEDY, stop=stop, extra_body={"include_stop_str_in_output": True}
    ).choices
    assert kept.message.content == choice.message.content + string


def test_logprobs(client: openai.OpenAI) -> None:
    [choice] = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=4).choices
    assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 4
        top = [candidate.logprob for candidate in token.top_logprobs]
        assert top == sorted(top, reverse=True)
        assert (token.top_logprobs[0].token, top[0]) == (token.token, token.logprob)  # greedy takes the likeliest
        assert sum(map(math.exp, top)) <= 1 + 1e-4
    [plain] = client.chat.completions.create(**GREEDY, logprobs=True).choices
    assert [token.top_logprobs for token in plain.logprobs.content] == [[]] * len(plain.logprobs.content)


def test_logprobs_leave_out_the_end_token_that_the_text_leaves_out(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(**GREEDY, logprobs=True, n=2)
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    shown = sum(len(choice.logprobs.content) for choice in completion.choices)
    assert completion.usage.completion_tokens == shown + 2  # the end tokens count, but are not shown


def test_logit_bias(client: openai.OpenAI, server: Server) -> None:
    [token] = server.tokenize("title")
    forced = client.chat.completions.create(**GREEDY, logit_bias={str(token): 100}, max_tokens=5)
    assert forced.choices[0].message.content == "title" * 5
    whole = client.chat.completions.create(**GREEDY, logprobs=True).choices[0]
    [first] = server.tokenize(whole.logprobs.content[0].token)
    banned = client.chat.completions.create(**GREEDY, logit_bias={str(first): -100}, max_tokens=5, logprobs=True)
    assert banned.choices[0].logprobs.content[0].token != whole.logprobs.content[0].token


def test_penalties_change_what_repeats(client: openai.OpenAI, server: Server) -> None:
    [token] = server.tokenize("title")
    biased = {**GREEDY, "logit_bias": {str(token): 30}, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    plain = client.chat.completions.create(**biased).choices[0].message.content
    for penalty in ({"frequency_penalty": 2.0}, {"extra_body": {"ignore_eos": True, "repetition_penalty": 4.0}}):
        text = client.chat.completions.create(**{**biased, **penalty}).choices[0].message.content
        assert text.count("title") < plain.count("title")


def test_top_p_of_almost_nothing_is_greedy(client: openai.OpenAI) -> None:
    greedy = client.chat.completions.create(**GREEDY).choices[0].message.content
    narrow = client.chat.completions.create(**{**GREEDY, "temperature": 2, "seed": 1}, top_p=1e-6)
    assert narrow.choices[0].message.content == greedy


def test_messages_of_every_role(tiny: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"where": "here"}'}}
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "Look!", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "nothing"},
        {"role": "assistant", "content": "There is nothing."},
        {"role": "user", "content": "Sure?"},
    ]
    completion = tiny.chat.completions.create(model="assistant", messages=messages, max_tokens=4)
    assert completion.usage.completion_tokens <= 4


def test_asyncio_answers_many_at_once(server: Server, client: openai.OpenAI) -> None:
    tables = ["books", "pupils", "rivers", "cheeses", "trains", "songs"]
    asked = [question(f"How many {table} are there?", f"{table}(id integer, name text)") for table in tables]

    async def ask() -> list[str]:
        async with server.async_client() as many:
            ask_one = many.chat.completions.create
            answers = [ask_one(model="default_model", messages=messages, temperature=0) for messages in asked]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)]

    alone = [
        client.chat.completions.create(model="default_model", messages=messages, temperature=0) for messages in asked
    ]
    assert asyncio.run(ask()) == [answer.choices[0].message.content for answer in alone]


def test_raw_responses_carry_the_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**GREEDY, max_tokens=1)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].finish_reason == "length"
