"""/tokenize and /detokenize."""

from typing import Any

import pytest

from tests.server.test_app import Server, error_of


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


def tokenize(server: Server, **body: Any) -> dict[str, Any]:
    response = server.ask("POST", "/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("text", ["Hello, world.", "", "a\nb\t😀", "<|im_start|>user"])
def test_a_text_has_the_tokenizers_tokens(server: Server, text: str) -> None:
    expected = server.engine.tokenizer.encode(text)
    answer = tokenize(server, prompt=text)
    assert answer == {"count": len(expected), "max_model_len": server.engine.max_model_len, "tokens": expected}


@pytest.mark.parametrize("text", ["Hello, world.", "a\nb\t😀", "<|im_start|>user"])
def test_detokenize_takes_it_back(server: Server, text: str) -> None:
    tokens = tokenize(server, prompt=text, add_special_tokens=False)["tokens"]
    assert server.ask("POST", "/detokenize", json={"tokens": tokens}).json() == {"prompt": text}


def test_tokens_by_name(server: Server) -> None:
    answer = tokenize(server, prompt="Hello", return_token_strs=True)
    assert "".join(answer["token_strs"]) == "Hello"
    assert len(answer["token_strs"]) == answer["count"]


def test_a_chat_has_the_tokens_of_its_rendered_template(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    tokenizer = server.engine.tokenizer
    for options in ({}, {"add_generation_prompt": False}):
        text = tokenizer.apply_chat_template(messages, **options)
        answer = tokenize(server, messages=messages, **options)
        assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=False)


def test_a_template_gets_variables_of_any_name(server: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}]}
    names = dict.fromkeys(("self", "variables", "loop", "a b", ""), 1)
    assert tokenize(server, **asked, chat_template_kwargs=names) == tokenize(server, **asked)


def test_arguments_of_calls_are_any_text(server: Server) -> None:
    for arguments in ("[" * 100_000, '{"a": "\\ud800"}', "{broken"):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]
        assert tokenize(server, messages=messages)["count"] > 0


def test_a_final_message_can_be_left_open(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good"}]
    tokens = tokenize(server, messages=messages, continue_final_message=True)["tokens"]
    assert server.engine.tokenizer.decode(tokens, skip_special_tokens=False).endswith("Good")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "unknown": 1}, "unknown"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"messages": [{"role": "x", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": []}, "tools"),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(server: Server, body: dict[str, Any], param: str) -> None:
    response = server.ask("POST", "/tokenize", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("tokens", [None, 5, "a", ["a"], [-1], [1.5], [True], [10**6], [2**70]])
def test_what_is_no_token_is_refused(server: Server, tokens: Any) -> None:
    response = server.ask("POST", "/detokenize", json={"tokens": tokens})
    assert response.status_code == 400
    assert error_of(response)["param"] == "tokens"


def test_no_tokens_are_no_text(server: Server) -> None:
    assert server.ask("POST", "/detokenize", json={"tokens": []}).json() == {"prompt": ""}
