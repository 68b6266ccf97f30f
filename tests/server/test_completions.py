"""/v1/completions: prompts, choices, and what the engine is asked to do."""

import re
from typing import Any

import pytest

from lightvllm.errors import EngineOverloaded, EngineUnavailable, ParameterError
from tests.server.exchange import MODEL, Api
from tests.server.fakes import FOREVER, FakeEngine, Pace

PATH = "/v1/completions"


def by_prompt(text: str | None, index: int) -> str:
    return f"[{text} {index}]"


def test_an_answer() -> None:
    api = Api(FakeEngine("Hello, wörld.", num_cached_tokens=1))
    answer = api.complete(prompt="Hi there")
    tokens = len(api.engine.tokenizer.encode("Hello, wörld."))
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    num_prompt_tokens = len(api.engine.submitted[0].prompt.token_ids)
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {"index": 0, "text": "Hello, wörld.", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        ],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": tokens + 1,
            "total_tokens": num_prompt_tokens + tokens + 1,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


@pytest.mark.parametrize("stream", [False, True])
def test_the_forms_of_a_prompt(stream: bool) -> None:
    api = Api(FakeEngine(by_prompt))
    ids = api.engine.tokenizer.encode("one two")
    for prompt, asked in [
        ("one", [("one", None)]),
        (["one", "two"], [("one", None), ("two", None)]),
        (ids, [(None, ids)]),
        ([ids, ids[:1]], [(None, ids), (None, ids[:1])]),
    ]:
        api.engine.submitted.clear()
        api.complete(prompt=prompt, stream=stream)
        got = [one.prompt for one in api.engine.submitted]
        assert [one.text for one in got] == [text for text, _ in asked]
        for one, (text, token_ids) in zip(got, asked, strict=True):
            assert one.token_ids == (token_ids if text is None else api.engine.tokenizer.encode(text))


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_numbered_by_prompt_then_choice(stream: bool) -> None:
    api = Api(FakeEngine(by_prompt))
    answer = api.complete(prompt=["a", "b", "c"], n=2, stream=stream, max_tokens=50)
    texts: dict[int, str] = {}
    choices = [choice for chunk in answer for choice in chunk["choices"]] if stream else answer["choices"]
    for choice in choices:
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {2 * p + i: f"[{name} {i}]" for p, name in enumerate("abc") for i in range(2)}
    if not stream:
        assert [choice["index"] for choice in choices] == list(range(6))
        assert answer["usage"]["prompt_tokens"] == sum(len(one.prompt.token_ids) for one in api.engine.submitted)


def test_choices_at_temperature_0_are_equal_and_the_prompt_counts_once() -> None:
    api = Api(FakeEngine("same"))
    answer = api.complete(prompt="Hi", n=3, temperature=0)
    assert [choice["text"] for choice in answer["choices"]] == ["same"] * 3
    num_tokens = len(api.engine.tokenizer.encode("same")) + 1
    num_prompt_tokens = len(api.engine.tokenizer.encode("Hi"))
    assert answer["usage"]["prompt_tokens"] == num_prompt_tokens
    assert answer["usage"]["completion_tokens"] == 3 * num_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_ended(stream: bool) -> None:
    api = Api(FakeEngine("one two three"))
    token_id = api.engine.tokenizer.encode("one two three")[2]

    def end(**options: Any) -> tuple[str, str, Any]:
        answer = api.complete(prompt="Hi", stream=stream, **options)
        choices = [choice for chunk in answer for choice in chunk["choices"]] if stream else answer["choices"]
        return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], choices[-1]["stop_reason"]

    decode = api.engine.tokenizer.decode
    ids = api.engine.tokenizer.encode("one two three")
    assert end() == ("one two three", "stop", None)
    assert end(max_tokens=3) == (decode(ids[:3]), "length", None)
    assert end(stop=" tw") == ("one", "stop", " tw")
    assert end(stop=["xx", "e t"], include_stop_str_in_output=True) == ("one t", "stop", "e t")
    assert end(stop_token_ids=[token_id]) == (decode(ids[:2]), "stop", token_id)
    assert end(stop="three!") == ("one two three", "stop", None)


def test_no_part_of_a_stop_string_is_streamed() -> None:
    api = Api(FakeEngine("abc STO abc STOP def"))
    chunks = api.complete(prompt="Hi", stop="STOP", stream=True, max_tokens=50)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(texts) == "abc STO abc "
    so_far = ""
    for text in texts:
        so_far += text
        assert "abc STO abc ".startswith(so_far)
    assert len(texts) > 5


def test_echo() -> None:
    api = Api(FakeEngine("two"))
    assert api.complete(prompt="one ", echo=True)["choices"][0]["text"] == "one two"
    ids = [*api.engine.tokenizer.encode("one "), api.engine.eos_token_id]
    assert api.complete(prompt=ids, echo=True)["choices"][0]["text"] == "one <|im_end|>two"
    chunks = api.complete(prompt=["A", "B"], n=2, echo=True, stream=True)
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: "Atwo", 1: "Atwo", 2: "Btwo", 3: "Btwo"}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone(stream: bool) -> None:
    api = Api(FakeEngine("two"))
    answer = api.complete(
        prompt="one ",
        echo=True,
        max_tokens=0,
        stream=stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    chunks = answer if stream else [answer]
    [choice] = [choice for chunk in chunks for choice in chunk["choices"]]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "length")
    assert chunks[-1]["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids(stream: bool) -> None:
    api = Api(FakeEngine(by_prompt))
    answer = api.complete(prompt=["a", "bb"], n=2, return_token_ids=True, stream=stream, max_tokens=50)
    chunks = answer if stream else [answer]
    encode = api.engine.tokenizer.encode
    for index in range(4):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        name, number = ["a", "bb"][index // 2], index % 2
        assert [one["prompt_token_ids"] for one in mine if "prompt_token_ids" in one] == [encode(name)]
        token_ids = [token_id for one in mine for token_id in one["token_ids"]]
        assert token_ids == [*encode(f"[{name} {number}]"), api.engine.eos_token_id]
    assert "token_ids" not in str(api.complete(prompt="a"))


def test_truncation_keeps_the_end_of_the_prompt() -> None:
    api = Api(
        FakeEngine("!"),
    )
    ids = api.engine.tokenizer.encode("one two three four")
    answer = api.complete(prompt="one two three four", truncate_prompt_tokens=3, echo=True)
    assert api.engine.submitted[-1].prompt.token_ids == ids[-3:]
    assert answer["choices"][0]["text"] == api.engine.tokenizer.decode(ids[-3:]) + "!"
    assert answer["usage"]["prompt_tokens"] == 3
    api.complete(prompt=[ids, ids[:2]], truncate_prompt_tokens=3)
    assert [one.prompt.token_ids for one in api.engine.submitted[-2:]] == [ids[-3:], ids[:2]]


def test_what_the_engine_is_told() -> None:
    api = Api(FakeEngine("!", scheduling_policy="priority", default_sampling_params={"temperature": 0.25, "top_k": 9}))
    api.complete(
        prompt="Hi",
        priority=-3,
        timeout=7.5,
        cache_salt="pepper",
        request_id="mine",
        top_k=4,
        seed=11,
        logit_bias={"5": 1.5},
        response_format={"type": "json_object"},
    )
    [asked] = api.engine.submitted
    assert (asked.priority, asked.timeout, asked.prompt.cache_salt) == (-3, 7.5, "pepper")
    assert (asked.params.temperature, asked.params.top_k, asked.params.seed) == (0.25, 4, 11)
    assert asked.params.logit_bias == {5: 1.5}
    assert asked.params.max_tokens == 16
    assert asked.params.structured_outputs is not None
    assert asked.params.structured_outputs.json_object


def test_ids_come_from_the_request_or_its_header() -> None:
    api = Api(FakeEngine("a b c"))
    assert api.complete(prompt="Hi", request_id="mine")["id"] == "cmpl-mine"
    result = api.post(PATH, headers={"x-request-id": "proxy-7"}, prompt="Hi")
    assert result.json["id"] == "cmpl-proxy-7"
    assert result.headers["x-request-id"] == "proxy-7"
    chunks = api.complete(prompt=["a", "b"], n=2, stream=True)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    # The engine's own ids differ, so that one id can be used by two requests at a time.
    api.complete(prompt="Hi", request_id="mine")
    assert len({one.request_id for one in api.engine.submitted}) == len(api.engine.submitted)


def test_usage_in_streams() -> None:
    api = Api(FakeEngine("one two", num_cached_tokens=2))
    without = api.complete(prompt="Hi", stream=True)
    assert all("usage" not in chunk for chunk in without)
    *chunks, last = api.complete(prompt=["Hi", "Ho"], n=2, stream=True, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    whole = api.complete(prompt=["Hi", "Ho"], n=2)
    assert last["usage"] == whole["usage"]
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = api.complete(prompt="Hi", stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(set(counts))
    assert counts[-1] == last["usage"]["completion_tokens"]
    only = api.complete(prompt="Hi", stream=True, stream_options={"continuous_usage_stats": True})
    assert all(chunk["choices"] and chunk["usage"] for chunk in only)


def test_characters_are_never_broken() -> None:
    text = "naïve 你好 👨‍👩‍👧 🙂"
    api = Api(FakeEngine(text))
    chunks = api.complete(prompt="Hi", stream=True, max_tokens=200)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert not any("\ufffd" in chunk["choices"][0]["text"] for chunk in chunks)
    cut = api.complete(prompt="Hi", stream=True, max_tokens=len(api.engine.tokenizer.encode(text)) - 1)
    assert "".join(chunk["choices"][0]["text"] for chunk in cut)[:-1] == text[:-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pace", [Pace(), Pace(tokens_per_step=3), Pace(all_at_once=True)], ids=["1", "3", "all"])
def test_long_prompts_and_outputs_are_complete(stream: bool, pace: Pace) -> None:
    reply = "word " * 300
    api = Api(FakeEngine(reply, pace=pace))
    answer = api.complete(prompt="Hi " * 800, max_tokens=1600, stream=stream)
    chunks = answer if stream else [answer]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == reply


# ---- refusals


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused(stream: bool) -> None:
    api = Api(FakeEngine(max_model_len=20))
    status, param, message = api.refused(PATH, prompt=[5] * 12, max_tokens=9, stream=stream)
    assert (status, param) == (400, "max_tokens")
    assert all(number in message for number in ("12", "9", "20"))
    api.complete(prompt=[5] * 12, max_tokens=8)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "priority": 1}, "priority"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": 21, "echo": True}, "logprobs"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3}, "prompt"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_refused_by_name(body: dict[str, Any], param: str, stream: bool) -> None:
    api = Api(FakeEngine(), max_queued_requests=8)
    status, named, _ = api.refused(PATH, **{"stream": stream, **body})
    assert (status, named) == (400, param)
    assert not api.engine.aborted


@pytest.mark.parametrize("stream", [False, True])
def test_when_the_engine_does_not_accept(stream: bool) -> None:
    api = Api(FakeEngine())
    api.engine.refusal = EngineOverloaded("the queue is full", retry_after=3.2)
    result = api.post(PATH, prompt="Hi", stream=stream)
    assert (result.status, result.headers["retry-after"]) == (503, "3")
    api.engine.refusal = EngineUnavailable("no engine")
    assert api.refused(PATH, prompt="Hi", stream=stream)[0] == 503
    api.engine.refusal = ParameterError("top_k", "top_k: no")
    assert api.refused(PATH, prompt="Hi", stream=stream) == (400, "top_k", "top_k: no")


@pytest.mark.parametrize("stream", [False, True])
def test_when_the_engine_refuses_the_second_prompt_the_first_is_aborted(stream: bool) -> None:
    api = Api(FakeEngine([40, FOREVER], max_model_len=20, pace=Pace(seconds_per_step=0.01)))
    status, param, _ = api.refused(PATH, prompt=[[5] * 2, [5] * 12], max_tokens=9, stream=stream)
    assert (status, param) == (400, "max_tokens")
    assert len(api.engine.aborted) == 1
