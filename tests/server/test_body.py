"""Bodies: bounds of size and time, and what is no JSON object that everybody reads alike."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from lightvllm.errors import ParameterError
from lightvllm.server.body import Bodies, parse_body, parse_json, read_body
from lightvllm.server.errors import ApiError
from lightvllm.server.limits import MAX_JSON_DEPTH


def request_of(chunks: AsyncIterator[bytes], **headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "headers": raw}, receive)


def read(*chunks: bytes, max_bytes: int = 100, timeout: float = 5.0, pause: float = 0.0, **headers: str) -> bytes:
    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            await asyncio.sleep(pause)
            yield chunk

    return asyncio.run(read_body(request_of(sent(), **headers), max_bytes, timeout, Bodies(10**6)))


def refusal(*chunks: bytes, **how: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*chunks, **how)
    return caught.value


def test_a_body_comes_in_pieces() -> None:
    assert read(b'{"a"', b": 1}") == b'{"a": 1}'


def test_a_body_of_just_the_limit_is_read() -> None:
    assert read(b"x" * 60, b"x" * 40) == b"x" * 100


def test_bodies_are_bounded_together() -> None:
    bodies = Bodies(150)

    async def slow(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            await asyncio.sleep(0)
            yield b"x"

    async def main() -> list[Any]:
        reads = [read_body(request_of(slow(size)), 100, 5.0, bodies) for size in (90, 90, 20)]
        return await asyncio.gather(*reads, return_exceptions=True)

    results = asyncio.run(main())
    refused = [result for result in results if isinstance(result, ApiError)]
    assert len(refused) == 1
    assert refused[0].status == 503
    assert refused[0].headers["retry-after"]
    assert bodies.num_bytes == 0


@pytest.mark.parametrize("length", [None, "5", "101", "9" * 500, "-1", "many"])
def test_a_body_beyond_the_limit_is_refused_whatever_its_length_is_said_to_be(length: str | None) -> None:
    headers = {} if length is None else {"content_length": length}
    assert refusal(b"x" * 60, b"x" * 41, **headers).status == 413


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    error = refusal(b"x", b"x", pause=30.0, content_length="101")
    assert (error.status, error.headers["connection"]) == (413, "close")


def test_a_slow_body_is_given_up() -> None:
    error = refusal(b"x", b"x", pause=0.2, timeout=0.3)
    assert (error.status, error.code) == (408, "request_timeout")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_content_type_is_refused(kind: str) -> None:
    assert refusal(b"{}", content_type=kind).status == 415


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
def test_json_has_several_names(kind: str) -> None:
    assert read(b"{}", content_type=kind) == b"{}"


def test_a_compressed_body_is_refused() -> None:
    assert refusal(b"{}", content_encoding="gzip").status == 415


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1', "line 1, column 8"),
        (b'{"a": "\xff"}', "byte 7 is not valid UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b"[1, 2]", "expected an object, got a list of 2"),
        (b'"text"', "expected an object, got 'text'"),
        (b"null", "expected an object"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested more than"),
        (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, "nested more than"),
        (b"[" * 100_000, "nested more than"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(20_000)) + b"}", "20000 keys"),
    ],
)
def test_malformed_json_is_refused_with_where_and_why(body: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1])
def test_the_bound_of_the_depth_is_exact(depth: int) -> None:
    body = b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1)
    if depth > MAX_JSON_DEPTH:
        with pytest.raises(ApiError):
            parse_json(body)
    else:
        assert list(parse_json(body)) == ["a"]


@pytest.mark.parametrize("value", [r'"\ud800"', r'["x", {"y": "\uDFFF!"}]', r'{"\ud83d": 1}', r'"\ude00\ud83d"'])
def test_half_of_a_surrogate_pair_is_refused_by_the_fields_name(value: str) -> None:
    with pytest.raises(ParameterError, match="surrogate") as caught:
        parse_json(f'{{"model": "m", "prompt": {value}}}'.encode())
    assert caught.value.parameter == "prompt"
    str(caught.value).encode()  # it can be sent


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_json(rb'{"prompt": "\ud83d\ude00"}') == {"prompt": "\U0001f600"}


def test_a_large_body_is_parsed_in_a_thread_with_the_same_result() -> None:
    import threading

    threads = []

    def parse(data: dict[str, Any]) -> int:
        threads.append(threading.current_thread())
        return len(data["a"])

    small, large = (b'{"a": "' + b"x" * size + b'"}' for size in (10, 1_000_000))
    assert asyncio.run(parse_body(small, parse)) == 10
    assert asyncio.run(parse_body(large, parse)) == 1_000_000
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\ud8001e-+.nulltrfas ', max_size=40).map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        assert isinstance(parse_json(body), dict)
    except (ApiError, ParameterError) as error:
        str(error).encode()
