"""vLLM's extra fields, sent as its users do: through extra_body of OpenAI's client."""

import uuid
from typing import Any

import openai
import pytest

from tests.sdk.wire import Server, question

PROMPT = "SELECT title FROM books WHERE year > 1990"


def chat(client: openai.OpenAI, **extra: Any) -> Any:
    """A greedy answer of the default model."""
    options = {key: extra.pop(key) for key in ("max_tokens", "temperature", "seed", "logprobs", "stop") if key in extra}
    options = {"temperature": 0, **options}
    return client.chat.completions.create(model="default_model", messages=question(), extra_body=extra, **options)


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **extra: Any) -> Any:
    """A greedy completion."""
    options = {"temperature": 0, "max_tokens": extra.pop("max_tokens", 4)}
    return client.completions.create(model="default_model", prompt=prompt, extra_body=extra, **options)


@pytest.mark.parametrize("extra", [{"top_k": 1}, {"min_p": 1.0}])
def test_narrow_sampling_is_greedy(client: openai.OpenAI, extra: dict[str, Any]) -> None:
    greedy = chat(client).choices[0].message.content
    assert chat(client, temperature=2, seed=3, **extra).choices[0].message.content == greedy
    assert chat(client, temperature=2, seed=3).choices[0].message.content != greedy


def test_ends_that_are_not_taken(client: openai.OpenAI) -> None:
    plain = chat(client)
    length = plain.usage.completion_tokens
    on = chat(client, ignore_eos=True, max_tokens=length + 5)
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", length + 5)
    later = chat(client, min_tokens=length + 3, max_tokens=length + 40)
    assert later.usage.completion_tokens >= length + 3
    assert later.choices[0].message.content.startswith(plain.choices[0].message.content)


def test_tokens_that_end_the_output(client: openai.OpenAI, server: Server) -> None:
    whole = chat(client, return_token_ids=True).choices[0]
    second = whole.token_ids[1]
    stopped = chat(client, stop_token_ids=[second], return_token_ids=True).choices[0]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", second)
    assert stopped.token_ids == whole.token_ids[:2]


def test_allowed_tokens(client: openai.OpenAI, server: Server) -> None:
    allowed = [*server.tokenize("title"), *server.tokenize("year")]
    choice = chat(client, allowed_token_ids=allowed, max_tokens=8, return_token_ids=True, temperature=1).choices[0]
    assert set(choice.token_ids) <= set(allowed)


def test_bad_words(client: openai.OpenAI) -> None:
    plain = chat(client).choices[0].message.content
    assert "COUNT" in plain
    without = chat(client, bad_words=["COUNT(*)"]).choices[0].message.content
    assert without
    assert "COUNT(*)" not in without


def test_special_tokens_in_the_text(client: openai.OpenAI) -> None:
    plain = chat(client).choices[0].message.content
    shown = {"skip_special_tokens": False}
    assert chat(client, **shown).choices[0].message.content == plain  # what ends the output is no part of it
    ended = chat(client, include_stop_str_in_output=True, **shown).choices[0].message.content
    assert ended == plain + "<|im_end|>"
    on = {"ignore_eos": True, "max_tokens": chat(client).usage.completion_tokens}
    assert chat(client, **on, **shown).choices[0].message.content == ended
    assert chat(client, **on).choices[0].message.content == plain


def test_prompt_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    answer = chat(client, prompt_logprobs=2, return_token_ids=True)
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    for token, candidates in zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True):
        assert 2 <= len(candidates) <= 3
        assert candidates[str(token)].keys() == {"logprob", "rank", "decoded_token"}
        assert {1, 2} <= {candidate["rank"] for candidate in candidates.values()}


def test_prompt_logprobs_of_a_completion_are_those_of_echo(client: openai.OpenAI) -> None:
    choice = complete(client, prompt_logprobs=0, return_token_ids=True).choices[0]
    echoed = client.completions.create(model="default_model", prompt=PROMPT, echo=True, logprobs=0, max_tokens=0)
    rows = list(zip(choice.prompt_token_ids, choice.prompt_logprobs, strict=True))[1:]
    assert [row[str(token)]["logprob"] for token, row in rows] == echoed.choices[0].logprobs.token_logprobs[1:]


def test_tokens_by_their_ids(client: openai.OpenAI, server: Server) -> None:
    options = {"logprobs": True, "return_token_ids": True}
    choice = chat(client, return_tokens_as_token_ids=True, **options).choices[0]
    shown = [token.token for token in choice.logprobs.content]
    assert shown == [f"token_id:{token}" for token in choice.token_ids[: len(shown)]]
    completion = client.completions.create(
        model="default_model", prompt=PROMPT, logprobs=2, max_tokens=3,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    ).choices[0]  # fmt: skip
    assert completion.logprobs.tokens == [f"token_id:{token}" for token in completion.token_ids]
    assert all(key.startswith("token_id:") for top in completion.logprobs.top_logprobs for key in top)


def test_truncated_prompts(client: openai.OpenAI, server: Server) -> None:
    tokens = server.tokenize(PROMPT)
    for side, kept in (("left", tokens[-5:]), ("right", tokens[:5])):
        choice = complete(client, tokens, truncate_prompt_tokens=5, truncation_side=side, return_token_ids=True)
        assert choice.choices[0].prompt_token_ids == kept
        assert choice.usage.prompt_tokens == 5
    assert chat(client, truncate_prompt_tokens=7, max_tokens=1).usage.prompt_tokens == 7


def test_cached_prefixes_are_shared_only_under_one_salt(client: openai.OpenAI) -> None:
    def cached(salt: str) -> int:
        return chat(client, cache_salt=salt, max_tokens=1).usage.prompt_tokens_details.cached_tokens

    mine, yours = uuid.uuid4().hex, uuid.uuid4().hex
    assert cached(mine) == 0
    assert cached(mine) > 0
    assert cached(yours) == 0


def test_request_ids(client: openai.OpenAI) -> None:
    assert "my-own-id" in chat(client, request_id="my-own-id", max_tokens=1).id
    assert "my-own-id" in complete(client, request_id="my-own-id").id
    raw = client.chat.completions.with_raw_response.create(
        model="default_model", messages=question(), max_tokens=1, extra_headers={"x-request-id": "from-a-header"}
    )
    assert "from-a-header" in raw.parse().id


def test_the_final_message_is_continued_and_echoed(client: openai.OpenAI) -> None:
    begun = "SELECT title FROM"
    messages = [*question("Which books appeared after 1990?"), {"role": "assistant", "content": begun}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
    create = client.chat.completions.create
    plain = create(model="default_model", messages=messages, temperature=0, extra_body=extra)
    echoed = create(model="default_model", messages=messages, temperature=0, extra_body={**extra, "echo": True})
    assert echoed.choices[0].message.content == begun + plain.choices[0].message.content
    streamed = create(
        model="default_model", messages=messages, temperature=0, extra_body={**extra, "echo": True}, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == echoed.choices[0].message.content


def test_the_prompt_ends_in_the_final_message(client: openai.OpenAI, server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "SELECT"}]
    endings = {
        (True, False): "<|im_start|>assistant\nSELECT<|im_end|>\n<|im_start|>assistant\n",
        (False, False): "<|im_start|>assistant\nSELECT<|im_end|>\n",
        (False, True): "<|im_start|>assistant\nSELECT",
    }
    for (generation, continued), ending in endings.items():
        extra = {"add_generation_prompt": generation, "continue_final_message": continued, "return_token_ids": True}
        answer = client.chat.completions.create(
            model="default_model", messages=messages, max_tokens=1, extra_body=extra
        )
        expected = server.tokenize(f"<|im_start|>user\nHi<|im_end|>\n{ending}")
        assert answer.prompt_token_ids == expected


def prompt_of(client: openai.OpenAI, server: Server, **extra: Any) -> str:
    """What the assistant's chat template makes of a request."""
    messages = [{"role": "user", "content": "Hi"}]
    extra = {"return_token_ids": True, "skip_special_tokens": False, **extra}
    answer = client.chat.completions.create(model="assistant", messages=messages, max_tokens=1, extra_body=extra)
    return server.detokenize(answer.prompt_token_ids)


def test_what_the_chat_template_reads(tiny: openai.OpenAI, assistant: Server) -> None:
    assert prompt_of(tiny, assistant).endswith("<|im_start|>assistant\n")
    closed = "<think>\n\n</think>\n\n"
    assert prompt_of(tiny, assistant, chat_template_kwargs={"enable_thinking": False}).endswith(closed)
    assert prompt_of(tiny, assistant, reasoning_effort="none").endswith(closed)
    assert "<|im_start|>document\nOn cheese<|im_end|>" in prompt_of(tiny, assistant, documents=[{"text": "On cheese"}])
    assert prompt_of(tiny, assistant, chat_template="{{ messages[0].content }}!") == "Hi!"


def test_priorities_are_taken_where_the_server_has_them(tiny: openai.OpenAI, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    create = tiny.chat.completions.create
    assert create(model="assistant", messages=messages, max_tokens=1, extra_body={"priority": -3}).choices
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, priority=1)
    assert caught.value.param == "priority"


def test_a_template_of_the_requests_own_needs_trust(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, chat_template="{{ messages }}")
    assert caught.value.param == "chat_template"


def test_the_user_is_taken(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="default_model", messages=question(), max_tokens=1, user="ann").choices
