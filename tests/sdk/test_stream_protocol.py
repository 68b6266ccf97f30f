"""What is on the wire of a stream, byte by byte: events, ids, text that is cut anywhere and never broken."""

import itertools
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.sdk.wire import Server, events, question

CHAT: dict[str, Any] = {"messages": question(), "temperature": 0}
NOISE: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 120, "temperature": 1.3}


def frames(server: Server, path: str, body: dict[str, Any]) -> tuple[str, list[bytes]]:
    """The head of a stream's answer, and the pieces of its body as the server wrote them."""
    address: Any = urlsplit(server.url)
    content = json.dumps(body | {"stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    key = f"authorization: Bearer {server.api_key}\r\n" if server.api_key else ""
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"{head}{key}content-length: {len(content)}\r\n\r\n".encode() + content)
        reader = connection.makefile("rb")
        top = b"".join(iter(reader.readline, b"\r\n")).decode("latin-1")
        pieces = []
        while size := int(reader.readline(), 16):  # chunked transfer coding
            pieces.append(reader.read(size))
            assert reader.readline() == b"\r\n"
    return top.lower(), pieces


def text_of(chunks: list[Any]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def test_the_frames_of_a_chat(server: Server) -> None:
    head, pieces = frames(server, "/v1/chat/completions", CHAT)
    assert head.startswith("http/1.1 200")
    assert "content-type: text/event-stream" in head
    assert "content-encoding" not in head
    assert all(piece.endswith(b"\n\n") for piece in pieces)  # no event waits for the next one to be whole
    chunks = events(b"".join(pieces).decode())
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta for delta in deltas if "role" in delta] == deltas[:1] == [{"role": "assistant", "content": ""}]
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert ends == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in chunks)


def test_the_frames_of_a_completion(server: Server) -> None:
    _, pieces = frames(server, "/v1/completions", {"prompt": "SELECT", "max_tokens": 5, "temperature": 0})
    chunks = events(b"".join(pieces).decode())
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert text_of(chunks) == server.complete(prompt="SELECT", max_tokens=5, temperature=0).json()["choices"][0]["text"]


def test_two_streams_have_two_ids(server: Server) -> None:
    ids = {events(server.chat(**CHAT, max_tokens=1, stream=True).text)[0]["id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}], ids=str)
def test_no_usage_where_none_is_wanted(server: Server, options: dict[str, Any] | None) -> None:
    chunks = events(server.chat(**CHAT, max_tokens=2, stream=True, stream_options=options).text)
    assert all(chunk["choices"] for chunk in chunks)
    assert not any(chunk.get("usage") for chunk in chunks)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_comes_last_and_once(server: Server, path: str) -> None:
    body = CHAT if "chat" in path else {"prompt": ["SELECT", "x"]}
    _, pieces = frames(server, path, {**body, "max_tokens": 3, "n": 2, "stream_options": {"include_usage": True}})
    *chunks, last = events(b"".join(pieces).decode())
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 3 * 2 * (1 if "chat" in path else 2)
    assert all(chunk["usage"] is None for chunk in chunks)  # as OpenAI has it


@pytest.mark.parametrize("seed", range(6))
def test_noise_is_never_broken_utf8(assistant: Server, seed: int) -> None:
    body = {**NOISE, "seed": seed, "return_token_ids": True, "skip_special_tokens": False}
    _, pieces = frames(assistant, "/v1/chat/completions", body)
    for piece in pieces:
        piece.decode()  # no character is cut by an event's end
    chunks = events(b"".join(pieces).decode())
    whole = assistant.chat(**body).json()["choices"][0]
    streamed = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
    assert streamed == whole["token_ids"]
    assert text_of(chunks) == whole["message"]["content"]
    end = len(streamed) - (whole["finish_reason"] == "stop")
    assert text_of(chunks) == assistant.detokenize(streamed[:end])


def test_whole_characters_of_several_tokens(assistant: Server) -> None:
    """A character of which each byte is a token comes in one piece, without a replacement before it."""
    word = "né日本😀!"
    tokens = assistant.tokenize(word)
    assert len(tokens) == len(word.encode())
    # One token after the other: each step may only write the one that comes next.
    text = ""
    for chunk in events(assistant.chat(**NOISE, stream=True, structured_outputs={"choice": [word]}).text):
        piece = chunk["choices"][0]["delta"].get("content", "")
        assert "�" not in piece
        text += piece
    assert text == word


def cuts(text: str) -> list[str]:
    """Stop strings out of a text: of every length up to 6, from places spread over it."""
    starts = range(1, len(text) - 6, max(1, len(text) // 6))
    return [text[start : start + length] for start, length in itertools.product(starts, (1, 2, 3, 6))]


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
def test_no_part_of_a_stop_string_leaks(server: Server, endpoint: str) -> None:
    body = CHAT if endpoint == "chat" else {"prompt": "SELECT title FROM books", "temperature": 0, "max_tokens": 12}
    send = getattr(server, endpoint)
    whole = text_of(events(send(**body, stream=True).text))
    for stop in cuts(whole):
        chunks = events(send(**body, stream=True, stop=stop).text)
        ends = chunks[-1]["choices"][0]
        assert text_of(chunks) == whole[: whole.index(stop)], stop
        assert (ends["finish_reason"], ends["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize("seed", range(2))
def test_no_part_of_a_stop_string_leaks_from_noise(assistant: Server, seed: int) -> None:
    body = {**NOISE, "seed": seed, "max_tokens": 60}
    whole = text_of(events(assistant.chat(**body, stream=True).text))
    for stop in [cut for cut in cuts(whole) if "�" not in cut]:
        assert text_of(events(assistant.chat(**body, stream=True, stop=stop).text)) == whole[: whole.index(stop)], stop


def test_what_only_begins_like_a_stop_string_is_kept(server: Server) -> None:
    whole = text_of(events(server.chat(**CHAT, stream=True).text))
    stops = [whole[5:9] + "ÿ", whole[-3:] + "ÿ", whole + "ÿ"]
    chunks = events(server.chat(**CHAT, stream=True, stop=stops).text)
    assert text_of(chunks) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_earliest_of_several_stop_strings_counts(server: Server) -> None:
    whole = text_of(events(server.chat(**CHAT, stream=True).text))
    early, late = whole[4:6], whole[9:14]
    chunks = events(server.chat(**CHAT, stream=True, stop=[late, early]).text)
    assert text_of(chunks) == whole[: whole.index(early)]


def test_an_error_before_the_stream_is_no_stream(server: Server) -> None:
    response = server.chat(**CHAT | {"temperature": 5}, stream=True)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
