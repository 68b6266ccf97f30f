"""What requests mean: sampling parameters, structures, template input, truncated prompts; and errors by their names."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams
from lightvllm.server import limits
from lightvllm.server.protocol.base import parse_object
from lightvllm.server.protocol.chat import ChatCompletionRequest
from lightvllm.server.protocol.completion import CompletionRequest
from lightvllm.server.protocol.tokenization import DetokenizeRequest
from tests.server.parity_table import MESSAGES, TOOL


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse_object(ChatCompletionRequest, {"messages": MESSAGES, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return parse_object(CompletionRequest, {"prompt": "Hello", **fields})


def refused_name(make: Any, **fields: Any) -> str:
    """The field that is named by the error; whether it comes early or late makes no difference to a client."""
    with pytest.raises(ParameterError) as caught:
        make(**fields).to_sampling_params({})
    assert caught.value.parameter in str(caught.value)
    return caught.value.parameter


# ---- sampling parameters


def test_a_request_that_says_nothing_has_the_defaults_of_openai() -> None:
    assert completion().to_sampling_params({}) == SamplingParams(max_tokens=16)
    assert chat().to_sampling_params({}) == SamplingParams(max_tokens=None)


def test_the_models_defaults_hold_where_the_request_says_nothing() -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    params = chat(top_p=0.5).to_sampling_params(defaults)
    assert (params.temperature, params.top_p, params.repetition_penalty) == (0.6, 0.5, 1.1)
    assert chat(temperature=None).to_sampling_params(defaults).temperature == 0.6
    assert chat(temperature=0).to_sampling_params(defaults).temperature == 0


def test_max_tokens_of_a_chat_has_two_names() -> None:
    assert chat(max_tokens=3).to_sampling_params({}).max_tokens == 3
    assert chat(max_completion_tokens=3).to_sampling_params({}).max_tokens == 3
    assert chat(max_tokens=3, max_completion_tokens=3).to_sampling_params({}).max_tokens == 3
    assert chat().to_sampling_params({"max_tokens": 9}).max_tokens == 9
    assert refused_name(chat, max_tokens=3, max_completion_tokens=4) == "max_tokens"


def test_max_tokens_0_is_for_echo() -> None:
    echo = completion(max_tokens=0, echo=True)
    assert echo.is_echo_only
    assert echo.to_sampling_params({}).max_tokens == 1
    assert not completion(max_tokens=1, echo=True).is_echo_only
    assert refused_name(completion, max_tokens=0) == "max_tokens"


def test_logprobs_of_a_chat() -> None:
    assert chat().to_sampling_params({}).logprobs is None
    assert chat(logprobs=True).to_sampling_params({}).logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).to_sampling_params({}).logprobs == 4
    assert refused_name(chat, top_logprobs=4) == "top_logprobs"
    assert chat(top_logprobs=0).to_sampling_params({}).logprobs is None


def test_echo_reports_the_prompts_logprobs() -> None:
    assert completion(echo=True, logprobs=2).to_sampling_params({}).prompt_logprobs == 2
    assert completion(echo=True).to_sampling_params({}).prompt_logprobs is None
    assert completion(logprobs=2).to_sampling_params({}).prompt_logprobs is None
    assert refused_name(completion, echo=True, logprobs=2, prompt_logprobs=3) == "prompt_logprobs"


def test_logit_bias_has_token_ids_as_keys() -> None:
    assert chat(logit_bias={"7": -1}).to_sampling_params({}).logit_bias == {7: -1.0}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
        ({"n": 2, "best_of": 3}, "best_of"),
    ],
)
@pytest.mark.parametrize("make", [chat, completion])
def test_fields_that_contradict_each_other(make: Any, fields: dict[str, Any], name: str) -> None:
    assert refused_name(make, **fields) == name


@pytest.mark.parametrize(
    ("request_", "parameter", "name"),
    [
        (chat(max_completion_tokens=5), "max_tokens", "max_completion_tokens"),
        (chat(max_tokens=5), "max_tokens", "max_tokens"),
        (chat(), "max_tokens", "max_tokens"),
        (chat(logprobs=True, top_logprobs=25), "logprobs", "top_logprobs"),
        (completion(logprobs=25), "logprobs", "logprobs"),
        (completion(logprobs=25, echo=True), "prompt_logprobs", "logprobs"),
        (completion(prompt_logprobs=25), "prompt_logprobs", "prompt_logprobs"),
        (chat(guided_regex="("), "structured_outputs", "guided_regex"),
        (chat(response_format={"type": "json_object"}), "structured_outputs", "response_format"),
        (chat(structured_outputs={"regex": "("}), "structured_outputs", "structured_outputs"),
    ],
)
def test_the_engines_errors_get_the_names_the_client_used(request_: Any, parameter: str, name: str) -> None:
    with pytest.raises(ParameterError) as caught, request_.own_names():
        raise ParameterError(parameter, f"{parameter} is too much")
    assert caught.value.parameter == name
    assert str(caught.value) == f"{name} is too much"


# ---- structures

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputsParams(json_object=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            StructuredOutputsParams(json=SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, StructuredOutputsParams(json=SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, StructuredOutputsParams(json=json.dumps(SCHEMA))),
        ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutputsParams(choice=["a", "b"])),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": False}},
            StructuredOutputsParams(json_object=True, disable_any_whitespace=False),
        ),
        ({"guided_json": SCHEMA}, StructuredOutputsParams(json=SCHEMA)),
        ({"guided_regex": "a+"}, StructuredOutputsParams(regex="a+")),
        ({"guided_choice": ["a"]}, StructuredOutputsParams(choice=["a"])),
        ({"guided_grammar": 'root ::= "a"'}, StructuredOutputsParams(grammar='root ::= "a"')),
        ({"guided_json_object": True}, StructuredOutputsParams(json_object=True)),
        ({"guided_json_object": False}, None),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": " "},
            StructuredOutputsParams(json=SCHEMA, whitespace_pattern=" "),
        ),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, StructuredOutputsParams(regex="a")),
    ],
)
@pytest.mark.parametrize("make", [chat, completion])
def test_a_form_has_several_names(make: Any, fields: dict[str, Any], expected: StructuredOutputsParams | None) -> None:
    assert make(**fields).to_sampling_params({}).structured_outputs == expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_json"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_regex": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_json": {"description": "x" * limits.MAX_STRUCTURE_CHARACTERS}}, "guided_json"),
        ({"guided_json": "x" * (limits.MAX_STRUCTURE_CHARACTERS + 1)}, "guided_json"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"description": "x" * limits.MAX_STRUCTURE_CHARACTERS}},
                }
            },
            "response_format",
        ),
    ],
)
@pytest.mark.parametrize("make", [chat, completion])
def test_forms_that_are_refused(make: Any, fields: dict[str, Any], name: str) -> None:
    assert refused_name(make, **fields) == name


# ---- prompts


def test_prompts_are_a_list() -> None:
    assert completion(prompt="a").prompts == ["a"]
    assert completion(prompt=[1, 2]).prompts == [[1, 2]]
    assert completion(prompt=["a", "b"]).prompts == ["a", "b"]
    assert completion(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("fields", "max_tokens", "expected"),
    [
        ({}, 5, [0, 1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": 4}, 5, [2, 3, 4, 5]),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, 5, [0, 1, 2, 3]),
        ({"truncate_prompt_tokens": 6}, 5, [0, 1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": 99}, 5, [0, 1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": -1}, 5, [3, 4, 5]),
        ({"truncate_prompt_tokens": -1}, 2, [0, 1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": -1}, None, [0, 1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": -1}, 8, [5]),
        ({"truncate_prompt_tokens": -1}, 50, [5]),
    ],
)
def test_truncation(fields: dict[str, Any], max_tokens: int | None, expected: list[int]) -> None:
    assert completion(**fields).truncated([0, 1, 2, 3, 4, 5], 8, max_tokens) == expected


# ---- messages


def rendered(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return chat(messages=list(messages)).template_messages()


def test_messages_reach_the_template_as_they_are() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "x", "reasoning": "y", "tool_calls": [call]},
        {"role": "tool", "content": "z", "tool_call_id": "c1"},
    ]
    assert rendered(*messages) == messages


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    }
    (message,) = rendered(answer)
    assert message.keys() == {"role", "tool_calls"}
    assert message["tool_calls"][0].keys() == {"id", "type", "function"}


def test_a_developer_is_a_system_to_templates() -> None:
    assert rendered({"role": "developer", "content": "x"}) == [{"role": "system", "content": "x"}]


def test_a_refusal_is_what_the_assistant_said() -> None:
    assert rendered({"role": "assistant", "refusal": "No."}) == [{"role": "assistant", "content": "No."}]
    (message,) = rendered({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})
    assert message["content"] == [{"type": "text", "text": "No."}]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "assistant", "content": "x", "refusal": "y"}, "either content or a refusal"),
        ({"role": "assistant", "reasoning": "x", "reasoning_content": "y"}, "two names"),
        ({"role": "assistant", "tool_calls": []}, "content or tool_calls"),
        ({"role": "wizard", "content": "x"}, "'wizard'"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"content\[0\].type.*image_url",
        ),
        ({"role": "tool", "content": "x"}, "tool_call_id: missing"),
        ({"role": "user", "contents": "x", "content": "y"}, "contents"),
        ("Hello", "should be an object"),
    ],
)
def test_a_message_is_refused_with_its_place(message: Any, says: str) -> None:
    with pytest.raises(ParameterError, match=rf"^messages\[1\].*{says}") as caught:
        chat(messages=[*MESSAGES, message])
    assert caught.value.parameter == "messages"


def test_continuing_the_final_message_begins_no_other() -> None:
    assert chat(continue_final_message=True).add_generation_prompt is False
    assert chat().add_generation_prompt is True
    assert refused_name(chat, continue_final_message=True, add_generation_prompt=True) == "continue_final_message"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {"x": 1}}, {"x": 1}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
    ],
)
def test_template_variables(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**fields).template_variables() == expected


# ---- tools


def test_tools_reach_the_template_as_they_are() -> None:
    assert chat(tools=[TOOL]).template_tools() == [TOOL]
    assert chat().template_tools() is None


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL] * 2}, "tools"),
    ],
)
def test_tools_that_do_not_go_together(fields: dict[str, Any], name: str) -> None:
    assert refused_name(chat, **fields) == name


def test_no_tool_may_be_chosen_without_tools() -> None:
    assert chat(tool_choice="none").tool_choice == "none"


def test_who_asks_has_two_names() -> None:
    assert chat(safety_identifier="ann").user == "ann"
    assert chat(user="ann").user == chat(user="ann", safety_identifier="ann").user == "ann"
    assert refused_name(chat, user="ann", safety_identifier="bob") == "safety_identifier"


# ---- errors


def test_a_misspelt_field_is_told_the_right_one() -> None:
    with pytest.raises(ParameterError, match="did you mean 'max_tokens'"):
        chat(max_token=5)
    with pytest.raises(ParameterError) as caught:
        chat(function=[])
    assert "functions" not in str(caught.value)  # which is refused, too


def test_a_name_of_any_length_is_refused_in_a_short_line() -> None:
    with pytest.raises(ParameterError) as caught:
        chat(**{"x" * 10**6: 1})
    assert len(str(caught.value)) < 200
    assert len(caught.value.parameter) < 100


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (DetokenizeRequest, {"tokens": [-1] * 9}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": [-1] * 9}),
        (CompletionRequest, {"prompt": "a", "allowed_token_ids": [-1] * 9}),
        (ChatCompletionRequest, {"messages": [{"role": "user"}] * 9}),
        (ChatCompletionRequest, {"messages": MESSAGES, "tools": [{"type": "function"}] * 9}),
    ],
)
def test_a_long_list_is_read_up_to_its_first_mistake(model: Any, fields: dict[str, Any]) -> None:
    """An error for each of millions of items would take gigabytes."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_token_ids", [5] * 10_000),
        ("stop_token_ids", [5] * 1000),
        ("logit_bias", {str(i): 1 for i in range(1000)}),
        ("bad_words", ["x" * 250] * 100),
    ],
)
def test_lists_that_every_completion_carries_are_bounded_together(name: str, value: Any) -> None:
    assert getattr(completion(**{name: value}, n=8), name) == value
    assert refused_name(completion, **{name: value}, n=2000) == name
    assert refused_name(completion, **{name: value}, n=20, prompt=["a"] * 100) == name
    assert refused_name(chat, **{name: value}, n=2000) == name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*ChatCompletionRequest.model_fields, "unknown", "a\nb"]), JSON)
def test_any_value_of_any_field_is_taken_or_refused_in_one_printable_line(name: str, value: Any) -> None:
    refusal = None
    try:
        parse_object(ChatCompletionRequest, {"messages": MESSAGES, name: value}).to_sampling_params({})
    except ParameterError as error:
        refusal = error
    if refusal is not None:
        assert refusal.parameter == name
        assert str(refusal).isprintable()
        assert len(str(refusal)) < 500
