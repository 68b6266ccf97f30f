"""A refused value is answered with a 400 whose `param` is the field's name, as the user wrote it, and nothing else."""

import json
from typing import Any

import pytest

from tests.sdk.wire import Server, error_of, question

# What both endpoints refuse. Ids beyond the vocabulary, and what does not go together, only the engine can tell.
BOTH: list[tuple[str, Any, dict[str, Any]]] = [
    *(("n", value, {}) for value in (0, -1, 1.5, "2", True, 129, [], 10**30)),
    *(("temperature", value, {}) for value in (-0.1, 2.1, "1", True, [1])),
    *(("top_p", value, {}) for value in (0, -1, 1.01, "1")),
    *(("top_k", value, {}) for value in (-2, 1.5, "1")),
    *(("min_p", value, {}) for value in (-0.1, 1.1, "0")),
    *(("presence_penalty", value, {}) for value in (-2.1, 2.1, "0")),
    *(("frequency_penalty", value, {}) for value in (-2.1, 2.1)),
    *(("repetition_penalty", value, {}) for value in (0, -1, "1")),
    *(("seed", value, {}) for value in (1.5, "1", 2**64)),
    *(("max_tokens", value, {}) for value in (-1, 1.5, "5", 10**30)),
    *(("min_tokens", value, {"max_tokens": 5}) for value in (-1, 1.5, "1", 6)),
    *(("stop", value, {}) for value in ("", [""], 5, [5], ["a", ""], {"a": 1})),
    *(("stop_token_ids", value, {}) for value in ("5", [-1], ["5"], 5, [10**6])),
    *(("logit_bias", value, {}) for value in ({"5": 100.5}, {"5": -101}, {"a": 1}, {"5": "1"}, [5], {"1000000": 1})),
    *(("allowed_token_ids", value, {}) for value in ([], [-1], ["5"], 5, [10**6])),
    *(("bad_words", value, {}) for value in ("a", [""], [5])),
    *(("prompt_logprobs", value, {}) for value in (-2, 1.5, "1", 21, -1)),
    ("prompt_logprobs", 1, {"stream": True}),
    *(("truncate_prompt_tokens", value, {}) for value in (-2, 1.5, "1")),
    *(("stream", value, {}) for value in ("yes", 1)),
    *(("stream_options", value, {"stream": True}) for value in (5, {"include_usage": "x"}, {"unknown": True})),
    ("stream_options", {"include_usage": True}, {}),
    *(("priority", value, {}) for value in (1.5, "1", 3)),
    *(("cache_salt", value, {}) for value in ("", 5)),
    *(("request_id", value, {}) for value in ("", 5, "a\nb", "a" * 10_000)),
    *(("user", value, {}) for value in (5, "a\r\nb")),
    *(("ignore_eos", value, {}) for value in ("yes", 1)),
    *(("skip_special_tokens", value, {}) for value in ("yes", 1)),
    *(("include_stop_str_in_output", value, {}) for value in ("yes", 1)),
    *(("return_token_ids", value, {}) for value in ("yes", 1)),
    *(("return_tokens_as_token_ids", value, {}) for value in ("yes", 1)),
    *(("structured_outputs", value, {}) for value in ("a", 5, {"unknown": 1}, {"choice": []}, {"regex": 5})),
    *(("guided_choice", value, {}) for value in ([], "a", [5])),
    *(("guided_regex", value, {}) for value in (5, "(")),
    *(("response_format", value, {}) for value in ("json_object", 5, {}, {"type": "yaml"}, {"type": "json_schema"})),
    ("best_of", 3, {}),
    ("use_beam_search", True, {}),
    ("unknown_field", 1, {}),
    ("timeout", 0, {}),
]  # fmt: skip

CHAT: list[tuple[str, Any, dict[str, Any]]] = [
    *(("messages", value, {}) for value in (
        [], "hello", 5, {}, [5], [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "system"}],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": None}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "", "content": "x"}],
        [{"role": "USER", "content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": "x", "colour": "red"}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}],
    )),
    *(("max_completion_tokens", value, {}) for value in (-1, 1.5, "5")),
    *(("logprobs", value, {}) for value in (5, "true")),
    *(("top_logprobs", value, {"logprobs": True}) for value in (-2, 1.5, "1", 21)),
    ("top_logprobs", 5, {}),
    *(("tools", value, {}) for value in ([], 5, [5], {})),
    *(("tool_choice", value, {}) for value in ("any", 5)),
    *(("chat_template_kwargs", value, {}) for value in (5, [])),
    *(("documents", value, {}) for value in (5, {}, ["x"])),
    *(("add_generation_prompt", value, {}) for value in (5, "x")),
    ("continue_final_message", 5, {}),
    *(("reasoning_effort", value, {}) for value in (5, "hard")),
    *((field, value, {}) for field, value in (
        ("modalities", ["audio"]), ("audio", {"voice": "x"}), ("store", True), ("metadata", {"a": "b"}),
        ("functions", [{"name": "f"}]), ("function_call", "auto"), ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}), ("service_tier", "flex"), ("verbosity", "low"),
    )),
]  # fmt: skip

COMPLETION: list[tuple[str, Any, dict[str, Any]]] = [
    *(("prompt", value, {}) for value in ([], 5, None, [[]], ["a", 5], [1.5], [-1], [10**6], {}, [[1], "a"], [None])),
    *(("logprobs", value, {}) for value in (-2, 1.5, "1", True, 21)),
    *(("max_tokens", value, {}) for value in (0,)),
    *(("echo", value, {}) for value in (5, "x")),
    ("suffix", "x", {}),
    ("messages", question(), {}),
]


def name(case: Any) -> str:
    return case if isinstance(case, str) else json.dumps(case)[:70]


@pytest.mark.parametrize(("field", "value", "beside"), BOTH + COMPLETION, ids=name)
def test_completions(server: Server, field: str, value: Any, beside: dict[str, Any]) -> None:
    error = error_of(server.complete(**{"prompt": "SELECT", **beside, field: value}), 400)
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("field", "value", "beside"), BOTH + CHAT, ids=name)
def test_chat(server: Server, field: str, value: Any, beside: dict[str, Any]) -> None:
    error = error_of(server.chat(**{**beside, field: value}), 400)
    assert error["param"] == field
    assert field in error["message"]


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_what_must_be_there(server: Server, field: str) -> None:
    path = "/v1/completions" if field == "prompt" else "/v1/chat/completions"
    error = error_of(server.http.post(path, json={"max_tokens": 1}), 400)
    assert error["param"] == field


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"guided_regex": "a", "guided_choice": ["a"]},
        {"guided_regex": "a", "structured_outputs": {"choice": ["a"]}},
        {"add_generation_prompt": True, "continue_final_message": True},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"echo": True},
    ],
    ids=name,
)
def test_what_does_not_go_together(server: Server, fields: dict[str, Any]) -> None:
    response = server.chat(**{"max_tokens": 5, **fields})
    error = error_of(response, 400)
    assert error["param"] in fields


@pytest.mark.parametrize("value", [100, -100])
def test_the_bounds_of_logit_bias_are_in(server: Server, value: int) -> None:
    assert server.chat(logit_bias={"5": value}, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (5e-324, 1e-6, 1e-4, 2)),
        *(("repetition_penalty", value) for value in (5e-324, 1e-40, 1e-10, 1e10, 1e300)),
        *(("top_p", value) for value in (5e-324, 1e-40, 1)),
        *(("min_p", value) for value in (5e-324, 1)),
        *(("top_k", value) for value in (1, 10**6, 2**31, 2**63 - 1)),
        *(("seed", value) for value in (0, -1, 2**63 - 1, -(2**63))),
        *(("presence_penalty", value) for value in (-2, 2)),
        *(("max_tokens", value) for value in (2**31, 2**63 - 1)),
        *(("priority", value) for value in (0, 2**63 - 1)),
        *(("timeout", value) for value in (0.001, 86400)),
    ],
    ids=name,
)
def test_the_ends_of_what_is_allowed(server: Server, field: str, value: float) -> None:
    fields = {"max_tokens": 3, "temperature": 1, field: value}
    response = server.complete(prompt="SELECT", **fields)
    if response.status_code not in (200, 504):  # 504: the deadline that was asked for
        assert error_of(response, 400)["param"] == field


def test_nulls_are_as_if_nothing_was_said(server: Server) -> None:
    fields = {field: None for field, _, _ in BOTH if field != "unknown_field"}
    plain = server.complete(prompt="SELECT", max_tokens=4, temperature=0).json()
    nulls = server.complete(**{**fields, "prompt": "SELECT", "max_tokens": 4, "temperature": 0})
    assert nulls.status_code == 200, nulls.text
    assert nulls.json()["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": 5}, "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
    ids=name,
)
def test_the_tokenizers_endpoints(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    assert error_of(server.http.post(path, json=body), 400)["param"] == param


def test_models_that_are_not_served(server: Server) -> None:
    for response in (server.chat(model="gpt-4"), server.complete(prompt="x", model="gpt-4")):
        assert error_of(response, 404)["param"] == "model"
    assert error_of(server.chat(model=5), 400)["param"] == "model"
