"""/v1/chat/completions: prompts, answers, log-probabilities, and what the engine is asked to do."""

import re
from typing import Any

import pytest

from lightvllm.errors import ParameterError
from tests.server.exchange import MODEL, Api
from tests.server.fakes import FakeEngine, logprob_of

PATH = "/v1/chat/completions"
# Of a model that neither thinks nor calls tools.
PLAIN = (
    "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}"
    "{% if documents %}{{ documents | tojson }}{% endif %}{% if tone is defined %}({{ tone }}){% endif %}"
    "{% if reasoning_effort is defined %}({{ reasoning_effort }}, {{ enable_thinking }}){% endif %}"
    "{% if add_generation_prompt %}[assistant: {% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def prompt_of(api: Api) -> str | None:
    return api.engine.submitted[-1].prompt.text


def test_an_answer() -> None:
    api = Api(FakeEngine("Hello, wörld.", num_cached_tokens=3))
    answer = api.chat("Hi there")
    [asked] = api.engine.submitted
    assert asked.prompt.text == "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    assert asked.prompt.token_ids == api.engine.tokenizer.encode(asked.prompt.text, add_special_tokens=False)
    assert asked.params.max_tokens is None  # as many as the context holds
    num_tokens = len(api.engine.tokenizer.encode("Hello, wörld.")) + 1
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    message = {"role": "assistant", "content": "Hello, wörld.", "reasoning": None, "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
        "usage": {
            "prompt_tokens": len(asked.prompt.token_ids),
            "completion_tokens": num_tokens,
            "total_tokens": len(asked.prompt.token_ids) + num_tokens,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def test_a_stream() -> None:
    api = Api(FakeEngine("Hello"))
    chunks = api.chat(stream=True, n=2, stream_options={"include_usage": True})
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    *chunks, last = chunks
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], len(api.engine.submitted[0].prompt.token_ids))
    for index in range(2):
        first, *others, end = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all(one["delta"].keys() == {"content"} and one["finish_reason"] is None for one in others)
        assert "".join(one["delta"]["content"] for one in others) == "Hello"
        assert (end["delta"], end["finish_reason"], end["stop_reason"]) == ({}, "stop", None)


def test_the_template_gets_all_that_is_for_it() -> None:
    api = Api(FakeEngine("!", chat_template=PLAIN))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    api.chat(messages=[{"role": "developer", "content": "Be"}, {"role": "user", "content": parts}])
    assert prompt_of(api) == "[system: Be][user: a\nb][assistant: "
    api.chat(add_generation_prompt=False)
    assert prompt_of(api) == "[user: Hi]"
    api.chat(documents=[{"title": "D"}], chat_template_kwargs={"tone": "dry"})
    assert prompt_of(api) == '[user: Hi][{"title": "D"}](dry)[assistant: '
    api.chat(reasoning_effort="none")
    assert prompt_of(api) == "[user: Hi](none, False)[assistant: "
    api.chat(truncate_prompt_tokens=4)
    whole = api.engine.tokenizer.encode("[user: Hi][assistant: ", add_special_tokens=False)
    assert api.engine.submitted[-1].prompt.token_ids == whole[-4:]


def test_long_chats_are_rendered_as_short_ones_are() -> None:
    api = Api(FakeEngine("!", chat_template=PLAIN))
    content = "many words " * 400
    api.chat(content)
    assert prompt_of(api) == f"[user: {content}][assistant: "
    status, param, _ = api.refused(PATH, messages=[{"role": "user", "content": content * 3}], max_tokens=1)
    assert (status, param) == (400, "max_tokens")


def test_a_template_of_the_request() -> None:
    mine = "{{ messages[0].content }}!"
    assert api_refuses_template(Api(FakeEngine("!")), mine)
    api = Api(FakeEngine("!"), trust_request_chat_template=True)
    api.chat(chat_template=mine)
    assert prompt_of(api) == "Hi!"
    assert api_refuses_template(api, "{% if %}")


def api_refuses_template(api: Api, template: str) -> bool:
    return api.refused(PATH, messages=HI, chat_template=template)[:2] == (400, "chat_template")


def test_what_a_template_refuses_is_a_mistake_in_the_messages() -> None:
    api = Api(FakeEngine("!", chat_template="{{ raise_exception('roles must alternate') }}"))
    status, param, message = api.refused(PATH, messages=HI, stream=True)
    assert (status, param) == (400, "messages")
    assert "roles must alternate" in message
    assert api.refused(PATH, messages=HI, chat_template_kwargs={"tools": 1})[1] == "chat_template_kwargs"
    empty = Api(FakeEngine("!", chat_template="{{ '' }}"))
    assert empty.refused(PATH, messages=HI)[:2] == (400, "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_the_last_message_can_be_continued_and_echoed(stream: bool) -> None:
    api = Api(FakeEngine("three", chat_template=PLAIN))
    messages = [*HI, {"role": "assistant", "content": "One, two, "}]
    for echo in (False, True):
        answer = api.chat(messages=messages, continue_final_message=True, echo=echo, stream=stream)
        assert prompt_of(api) == "[user: Hi][assistant: One, two, "
        if stream:
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer)
            assert answer[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        else:
            text = answer["choices"][0]["message"]["content"]
        assert text == ("One, two, three" if echo else "three")


def test_logprobs_leave_out_the_hidden_end() -> None:
    api = Api(FakeEngine("Ö🙂."))
    tokenizer = api.engine.tokenizer
    choice = api.chat(logprobs=True, top_logprobs=2)["choices"][0]
    ids = tokenizer.encode("Ö🙂.")
    content = choice["logprobs"]["content"]
    assert [one["token"] for one in content] == [tokenizer.token_text(token_id) for token_id in ids]
    assert [one["logprob"] for one in content] == [logprob_of(token_id) for token_id in ids]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "Ö🙂."
    for one in content:
        assert [top["token"] for top in one["top_logprobs"]] == ["<|im_start|>", "<|im_end|>"]
        assert [top["logprob"] for top in one["top_logprobs"]] == [logprob_of(1), logprob_of(2)]
        assert [bytes(top["bytes"]) for top in one["top_logprobs"]] == [b"<|im_start|>", b"<|im_end|>"]


def test_logprobs_of_other_ends() -> None:
    api = Api(FakeEngine("one two"))
    ids = api.engine.tokenizer.encode("one two")
    shown = lambda **options: [  # noqa: E731
        one["token"] for one in api.chat(logprobs=True, **options)["choices"][0]["logprobs"]["content"]
    ]
    names = [api.engine.tokenizer.token_text(token_id) for token_id in ids]
    assert shown() == names
    assert shown(max_tokens=3) == names[:3]
    assert shown(include_stop_str_in_output=True) == [*names, "<|im_end|>"]
    assert shown(stop_token_ids=[ids[2]]) == names[:2]
    stopped = api.chat(logprobs=True, stop=" tw", return_token_ids=True)["choices"][0]
    assert shown(stop=" tw") == [api.engine.tokenizer.token_text(token_id) for token_id in stopped["token_ids"]]
    assert shown(return_tokens_as_token_ids=True) == [f"token_id:{token_id}" for token_id in ids]
    assert api.chat(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert api.chat()["choices"][0]["logprobs"] is None


def test_token_ids_and_prompt_logprobs() -> None:
    api = Api(FakeEngine("ab"))
    answer = api.chat(return_token_ids=True, prompt_logprobs=0)
    ids = api.engine.submitted[0].prompt.token_ids
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == [*api.engine.tokenizer.encode("ab"), api.engine.eos_token_id]
    assert answer["prompt_logprobs"][0] is None
    assert [list(entry) for entry in answer["prompt_logprobs"][1:]] == [[str(token_id)] for token_id in ids[1:]]
    first, *chunks = api.chat(return_token_ids=True, stream=True)
    assert first["prompt_token_ids"] == ids
    assert not any("prompt_token_ids" in chunk for chunk in chunks)


def test_what_the_engine_is_told() -> None:
    api = Api(FakeEngine("!", scheduling_policy="priority", default_sampling_params={"temperature": 0.25}))
    api.chat(priority=2, timeout=3, cache_salt="s", max_completion_tokens=9, seed=3, stop="x", user="u")
    [asked] = api.engine.submitted
    assert (asked.priority, asked.timeout, asked.prompt.cache_salt) == (2, 3, "s")
    assert (asked.params.max_tokens, asked.params.temperature, asked.params.seed) == (9, 0.25, 3)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    api.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    structured = api.engine.submitted[-1].params.structured_outputs
    assert structured is not None
    assert structured.kind == "json"


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_by_the_name_the_client_used(stream: bool) -> None:
    api = Api(FakeEngine(max_model_len=40))
    for name in ("max_tokens", "max_completion_tokens"):
        status, param, message = api.refused(PATH, messages=HI, stream=stream, **{name: 39})
        assert (status, param) == (400, name)
        assert name in message
        assert "40" in message
    api.chat()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 129}, "n"),
        ({"priority": 1}, "priority"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ],
)
def test_mistakes_are_refused_by_name(options: dict[str, Any], param: str) -> None:
    assert Api(FakeEngine()).refused(PATH, messages=HI, **options)[:2] == (400, param)


def test_what_the_engine_refuses_gets_the_name_of_the_clients_field() -> None:
    api = Api(FakeEngine())
    api.engine.refusal = ParameterError("structured_outputs", "structured_outputs: cannot be enforced")
    answer = api.refused(PATH, messages=HI, response_format={"type": "json_object"})
    assert answer == (400, "response_format", "response_format: cannot be enforced")
    api.engine.refusal = ParameterError("logprobs", "logprobs: too many")
    assert api.refused(PATH, messages=HI, logprobs=True, top_logprobs=3)[1] == "top_logprobs"


def test_ids_come_from_the_request_or_its_header() -> None:
    api = Api(FakeEngine())
    assert api.chat(request_id="mine")["id"] == "chatcmpl-mine"
    assert api.post(PATH, headers={"x-request-id": "proxy"}, messages=HI).json["id"] == "chatcmpl-proxy"


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    engine = FakeEngine("x")
    engine.reply = [*engine.tokenizer.encode("a"), 1, *engine.tokenizer.encode("b")]
    api = Api(engine)
    assert api.chat()["choices"][0]["message"]["content"] == "ab"
    assert api.chat(skip_special_tokens=False)["choices"][0]["message"]["content"] == "a<|im_start|>b"
