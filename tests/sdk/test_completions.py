"""Completions with OpenAI's client."""

import asyncio
from typing import Any

import openai
import pytest

from tests.sdk.wire import Server

PROMPT = "<|im_start|>user\nHow many books are there?<|im_end|>\n<|im_start|>assistant\n"
GREEDY: dict[str, Any] = {"model": "default_model", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}


def create(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{**GREEDY, **options})


def test_an_answer(client: openai.OpenAI) -> None:
    completion = create(client)
    [choice] = completion.choices
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert choice.text
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_sixteen_tokens_where_nothing_is_said(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="default_model", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert completion.usage.completion_tokens == 16
    assert completion.choices[0].finish_reason == "length"


def test_prompts_as_text_as_tokens_and_several(client: openai.OpenAI, server: Server) -> None:
    tokens = server.tokenize(PROMPT)
    text = create(client).choices[0].text
    assert create(client, prompt=tokens, extra_body={"add_special_tokens": False}).choices[0].text == text
    both = create(client, prompt=[PROMPT, "SELECT title"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert [choice.text for choice in both.choices] == [text, create(client, prompt="SELECT title").choices[0].text]
    assert create(client, prompt=[tokens, tokens], n=2).choices[3].text == text
    assert both.usage.prompt_tokens == sum(
        create(client, prompt=prompt).usage.prompt_tokens for prompt in (PROMPT, "SELECT title")
    )


def test_choices_are_in_the_order_of_the_prompts(client: openai.OpenAI) -> None:
    options = {"temperature": 1.5, "seed": 3, "n": 2}
    together = create(client, prompt=[PROMPT, "SELECT title"], **options)
    apart = [create(client, prompt=prompt, **options).choices for prompt in (PROMPT, "SELECT title")]
    assert [choice.text for choice in together.choices] == [choice.text for choices in apart for choice in choices]


def test_streams(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "SELECT title"]
    whole = create(client, prompt=prompts)
    chunks = list(create(client, prompt=prompts, stream=True, stream_options={"include_usage": True}))
    for index in range(2):
        parts = [choice.text for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(parts) == whole.choices[index].text
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_streams_with_asyncio(server: Server, client: openai.OpenAI) -> None:
    async def ask() -> str:
        async with server.async_client() as many:
            stream = await many.completions.create(**GREEDY, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(ask()) == create(client).choices[0].text


def test_logprobs(client: openai.OpenAI) -> None:
    choice = create(client, logprobs=3).choices[0]
    logprobs = choice.logprobs
    assert choice.finish_reason == "stop"
    assert "".join(logprobs.tokens) == choice.text + "<|im_end|>"  # where chat has none: lm-eval counts on a last token
    starts = [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    assert logprobs.text_offset == starts
    assert all(len(top) == 3 for top in logprobs.top_logprobs)
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
    streamed = [chunk.choices[0].logprobs for chunk in create(client, logprobs=3, stream=True)]
    assert [token for part in streamed if part for token in part.tokens] == logprobs.tokens
    assert [offset for part in streamed if part for offset in part.text_offset] == logprobs.text_offset


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_nothing_new_as_lm_eval_scores(client: openai.OpenAI, server: Server, stream: bool) -> None:
    prompt = "SELECT title FROM books"
    answer = create(client, prompt=prompt, echo=True, max_tokens=0, logprobs=1, stream=stream)
    choices = [chunk.choices[0] for chunk in answer if chunk.choices] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == prompt
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in parts for token in part.tokens]
    logprobs = [logprob for part in parts for logprob in part.token_logprobs]
    assert "".join(tokens) == prompt
    assert len(tokens) == len(server.tokenize(prompt))
    assert logprobs[0] is None  # nothing comes before the first token
    assert all(logprob <= 0 for logprob in logprobs[1:])
    assert choices[-1].finish_reason == "length"


def test_echo_and_more(client: openai.OpenAI) -> None:
    plain = create(client, logprobs=1).choices[0]
    echoed = create(client, logprobs=1, echo=True).choices[0]
    assert echoed.text == PROMPT + plain.text
    assert echoed.logprobs.token_logprobs[-len(plain.logprobs.tokens) :] == plain.logprobs.token_logprobs
    assert echoed.logprobs.text_offset[-1] == len(PROMPT) + plain.logprobs.text_offset[-1]


def test_stop_strings_and_logit_bias(client: openai.OpenAI, server: Server) -> None:
    [token] = server.tokenize("title")
    whole = create(client, logit_bias={str(token): 100}).choices[0]
    assert whole.text == "title" * 12
    stopped = create(client, logit_bias={str(token): 100}, stop=["etit", "x"]).choices[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("titl", "stop", "etit")


def test_seeds(client: openai.OpenAI) -> None:
    texts = [create(client, temperature=2, seed=seed, max_tokens=20).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_suffix_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, suffix="x")
    assert caught.value.param == "suffix"
