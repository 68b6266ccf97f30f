"""Whatever goes wrong is answered with OpenAI's error object, before a request is understood, too."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.sdk.wire import Server, error_of

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/nowhere", 404),
        ("GET", "/v1/models/gpt-4", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/v1/completions", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/%F0%28%8C%28", 404),
    ],
)
def test_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    error_of(response, status)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/version", "/nowhere", "/tokenize"])
@pytest.mark.parametrize("header", [None, "secret", "Bearer wrong", "Bearer ", "Basic secret", "Bearer secret x"])
def test_keys(assistant: Server, path: str, header: str | None) -> None:
    # Written by hand: the client's own header is not to be sent.
    lines = [f"authorization: {header}"] if header is not None else []
    status, headers, body = raw(assistant, "GET", path, lines)
    assert status == 401
    assert headers["content-type"].startswith("application/json")
    error = json.loads(body)["error"]
    assert error["type"] == "authentication_error" or error["code"] == "invalid_api_key"
    assert "secret" not in error["message"]


def test_health_needs_no_key(assistant: Server) -> None:
    for path in ("/health", "/ping"):
        assert raw(assistant, "GET", path, [])[0] == 200


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b'{"prompt": "\xff\xfe"}',
        b"\xff",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"prompt": "a" "b"}',
        b'{"a": 1}{"b": 2}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "temperature": 1e999}',
        b"\x00",
        "{}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_bodies_that_are_no_request(server: Server, endpoint: str, body: bytes) -> None:
    error_of(server.http.post(endpoint, content=body, headers=JSON), 400)


def test_a_field_twice(server: Server) -> None:
    body = b'{"prompt": "a", "max_tokens": 1, "max_tokens": 2}'
    error = error_of(server.http.post("/v1/completions", content=body, headers=JSON), 400)
    assert "max_tokens" in error["message"]


@pytest.mark.parametrize(
    ("param", "endpoint", "body"),
    [
        ("prompt", "/v1/completions", r'{"prompt": "a\ud800b"}'),
        ("prompt", "/v1/completions", r'{"prompt": ["a", "\udc00"]}'),
        ("stop", "/v1/completions", r'{"prompt": "a", "stop": ["\ud83d"]}'),
        ("messages", "/v1/chat/completions", r'{"messages": [{"role": "user", "content": "\udfff"}]}'),
        ("messages", "/v1/chat/completions", r'{"messages": [{"role": "user", "content": "x", "name": "\ud800"}]}'),
        ("model", "/v1/completions", r'{"prompt": "a", "model": "\ud800"}'),
        ("user", "/v1/completions", r'{"prompt": "a", "user": "\ud800"}'),
        ("bad_words", "/v1/completions", r'{"prompt": "a", "bad_words": ["\ud800"]}'),
        ("prompt", "/tokenize", r'{"prompt": "\ud800"}'),
    ],
)  # fmt: skip
def test_a_lone_surrogate_is_refused_by_its_field(server: Server, param: str, endpoint: str, body: str) -> None:
    error = error_of(server.http.post(endpoint, content=body, headers=JSON), 400)
    assert error["param"] == param


def test_a_lone_surrogate_as_a_name(server: Server) -> None:
    body = r'{"prompt": "a", "\ud800": 1}'
    error_of(server.http.post("/v1/completions", content=body, headers=JSON), 400)


def test_a_pair_of_surrogates_is_a_character(server: Server) -> None:
    body = rb'{"prompt": "\ud83d\ude00", "max_tokens": 1, "echo": true}'
    response = server.http.post("/v1/completions", content=body, headers=JSON)
    assert response.json()["choices"][0]["text"].startswith("😀")


def test_content_types(server: Server) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    for kind in ("application/json", "application/json; charset=utf-8", "application/vnd.x+json"):
        response = server.http.post("/v1/completions", content=body, headers={"content-type": kind})
        assert response.status_code in ((200,) if "vnd" not in kind else (200, 415)), response.text
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        error_of(server.http.post("/v1/completions", content=body, headers={"content-type": kind}), 415)


def test_a_body_that_is_too_large(server: Server) -> None:
    body = json.dumps({"prompt": "a" * (33 << 20)}).encode()
    error_of(server.http.post("/v1/completions", content=body, headers=JSON), 413)


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/v1/models", ["x-long: " + "a" * 1_000_000]),
        ("/v1/models", [f"x-{i}: {'a' * 90}" for i in range(10_000)]),
        ("/v1/models?" + "a" * 1_000_000, []),
    ],
    ids=["one", "many", "query"],
)
def test_headers_of_a_megabyte(server: Server, path: str, lines: list[str]) -> None:
    try:
        status, _, body = raw(server, "GET", path, lines)
    except ConnectionError:  # the server hung up before it was all sent
        return
    assert 400 <= status < 500
    assert json.loads(body)["error"]["message"]


def test_what_is_no_http(server: Server) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_beyond_the_context_the_three_numbers_are_said(server: Server) -> None:
    prompt = server.tokenize("title " * 100)
    for body in ({"prompt": prompt, "max_tokens": 1024}, {"prompt": prompt, "max_tokens": 1025 - len(prompt)}):
        error = error_of(server.complete(**body, add_special_tokens=False), 400)
        assert error["param"] == "max_tokens"
        for number in (len(prompt), body["max_tokens"], 1024):
            assert str(number) in error["message"]
    only = {"allowed_token_ids": [5], "stop_token_ids": [5], "add_special_tokens": False}
    assert server.complete(prompt=prompt, max_tokens=1024 - len(prompt), **only).status_code == 200
    error = error_of(server.chat(max_completion_tokens=1020), 400)
    assert error["param"] == "max_completion_tokens"
    assert "1020" in error["message"]
    assert "1024" in error["message"]


def test_a_prompt_beyond_the_context(server: Server) -> None:
    error = error_of(server.complete(prompt=[5] * 1025, max_tokens=1), 400)
    assert error["param"] == "prompt"
    assert "1025" in error["message"]
    assert "1024" in error["message"]
    long = [{"role": "user", "content": "title year " * 1000}]
    assert error_of(server.chat(messages=long), 400)["param"] == "messages"


def test_a_chat_without_a_limit_ends_with_the_context(assistant: Server) -> None:
    response = assistant.chat(messages=[{"role": "user", "content": "a" * 4000}], ignore_eos=True)
    assert response.json()["usage"]["total_tokens"] == 4096
    assert response.json()["choices"][0]["finish_reason"] == "length"


def raw(server: Server, method: str, path: str, lines: list[str]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request written by hand."""
    address: Any = urlsplit(server.url)
    head = [f"{method} {path} HTTP/1.1", f"host: {address.netloc}", "connection: close", *lines]
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        top, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    status, *fields = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return int(status.split()[1]), headers, body
