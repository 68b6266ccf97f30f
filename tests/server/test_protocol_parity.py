"""The parity table: complete against OpenAI's own types and vLLM's names, and true."""

from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat

from lightvllm.errors import ParameterError
from lightvllm.server.protocol.base import parse_object
from lightvllm.server.protocol.chat import ChatCompletionRequest
from lightvllm.server.protocol.completion import CompletionRequest
from tests.server.parity_table import (
    CHAT,
    COMPLETION,
    MESSAGES,
    VLLM_BOTH,
    VLLM_CHAT,
    VLLM_COMPLETION,
    Row,
    page,
)

DOCS = Path(__file__).parents[2] / "docs" / "fields.md"
ENDPOINTS = {
    "chat": (ChatCompletionRequest, CHAT, {"messages": MESSAGES}),
    "completion": (CompletionRequest, COMPLETION, {"prompt": "Hello"}),
}
ROWS = [
    pytest.param(endpoint, name, row, id=f"{endpoint}-{name}")
    for endpoint, (_, table, _) in ENDPOINTS.items()
    for name, row in table.items()
]


def test_the_table_has_every_field_that_openai_knows() -> None:
    chat = openai_chat.CompletionCreateParamsStreaming.__annotations__
    completion = openai_completion.CompletionCreateParamsStreaming.__annotations__
    assert len(chat) > 30
    assert len(completion) > 15
    assert set(chat) - set(CHAT) == set()
    assert set(completion) - set(COMPLETION) == set()


def test_the_table_has_every_field_that_vllm_knows() -> None:
    assert {*VLLM_BOTH, *VLLM_CHAT} - set(CHAT) == set()
    assert {*VLLM_BOTH, *VLLM_COMPLETION} - set(COMPLETION) == set()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_table_has_exactly_the_fields_of_the_model(endpoint: str) -> None:
    model, table, _ = ENDPOINTS[endpoint]
    assert set(model.model_fields) == set(table)


@pytest.mark.parametrize(("endpoint", "name", "row"), ROWS)
def test_a_good_value_is_accepted_and_kept(endpoint: str, name: str, row: Row) -> None:
    model, _, least = ENDPOINTS[endpoint]
    request = parse_object(model, {**least, **row.beside, name: row.good})
    kept = request.model_dump(by_alias=True, exclude_unset=True)
    if row.how == "refused":
        assert name not in kept  # the good value of these is null
    else:
        assert kept[name] == row.good


@pytest.mark.parametrize(("endpoint", "name", "row"), ROWS)
def test_a_null_is_as_if_the_field_was_not_there(endpoint: str, name: str, row: Row) -> None:
    model, _, least = ENDPOINTS[endpoint]
    if name not in least:
        assert parse_object(model, {**least, name: None}) == parse_object(model, least)


@pytest.mark.parametrize(("endpoint", "name", "row"), ROWS)
def test_a_bad_value_is_refused_by_the_fields_own_name(endpoint: str, name: str, row: Row) -> None:
    model, _, least = ENDPOINTS[endpoint]
    assert row.bad
    for bad in row.bad:
        with pytest.raises(ParameterError) as caught:
            parse_object(model, {**least, **row.beside, name: bad})
        assert caught.value.parameter == name, bad
        assert str(caught.value).startswith(name), bad


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_field_says_what_it_does(endpoint: str) -> None:
    model, table, _ = ENDPOINTS[endpoint]
    for name, described in model.model_fields.items():
        assert described.description, name
        assert (table[name].how == "refused") == described.description.startswith("Refused: "), name


def value_in_params(name: str, params: Any) -> Any:
    return getattr(params, {"top_logprobs": "logprobs", "max_completion_tokens": "max_tokens"}.get(name, name))


@pytest.mark.parametrize(("endpoint", "name", "row"), [row for row in ROWS if row.values[2].by == "SamplingParams"])
def test_what_is_sampled_by_reaches_the_sampling_parameters(endpoint: str, name: str, row: Row) -> None:
    model, _, least = ENDPOINTS[endpoint]
    without = parse_object(model, {**least, **row.beside}).to_sampling_params({})
    params = parse_object(model, {**least, **row.beside, name: row.good}).to_sampling_params({})
    expected = {5: 100.0} if name == "logit_bias" else 0 if (endpoint, name) == ("chat", "logprobs") else row.good
    assert value_in_params(name, params) == expected
    assert value_in_params(name, without) != expected


def test_the_page_of_the_documentation_is_the_table() -> None:
    assert DOCS.read_text(encoding="utf-8") == page()
