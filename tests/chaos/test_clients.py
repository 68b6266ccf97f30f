"""Clients that vanish, stall, or send half a request: nobody else notices, and nothing of theirs is kept."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.chaos.server import Server, client_of, completion, wait_for

LONG = 1500  # tokens: some seconds
CLIENT_TIMEOUT = 3.0  # the server's


def http(request: dict[str, Any], path: str = "/v1/completions") -> bytes:
    body = json.dumps(request).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    return connection


def reset(connection: socket.socket) -> None:
    """Close a connection as a machine does that loses its power and comes back: with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def undisturbed(server: Server) -> Iterator[None]:
    """Others are answered meanwhile, and all the same; then nothing is left."""
    requests = [completion(index) for index in range(4)]

    async def answers() -> list[Any]:
        async with client_of(server) as client:
            return [answer.content for answer in await client.ask_all(requests)]

    before, failed = asyncio.run(answers()), server.metrics()["lightvllm:failed_requests_total"]
    yield
    assert asyncio.run(answers()) == before
    server.check_clean()
    assert server.metrics()["lightvllm:failed_requests_total"] == failed
    assert "Traceback" not in server.log, server.log[-3000:]


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("when", ["before the first token", "amid the stream", "without a stream"])
def test_clients_that_vanish_free_their_blocks_within_a_second(server: Server, leave: Any, when: str) -> None:
    with undisturbed(server):
        connections = [connect(server) for _ in range(8)]
        for index, connection in enumerate(connections):
            request = completion(index, max_tokens=LONG, n=2, stream=when != "without a stream")
            connection.sendall(http(request))
        if when == "amid the stream":
            for connection in connections:
                assert b"200 OK" in connection.recv(1000)
        elif when == "without a stream":
            wait_for(lambda: server.metrics()["vllm:num_requests_running"] == 16, 10, "16 completions")
        for connection in connections:
            leave(connection)
        if when == "before the first token":
            time.sleep(0.1)  # they may not even have been read
        start = time.monotonic()
        wait_for(server.is_clean, 5, "an empty engine")
        assert time.monotonic() - start < 2.5  # a second, and what this machine adds when it has other work


def test_clients_that_never_read_are_dropped_and_hold_nothing_up(server: Server) -> None:
    request = completion(1, max_tokens=400, n=8, logprobs=5)  # more than the sockets' buffers hold
    with undisturbed(server):
        before = server.num_files()
        connections = [connect(server, receive_buffer=4096) for _ in range(4)]
        for connection in connections:
            connection.sendall(http(request))
        wait_for(lambda: server.metrics()["vllm:num_requests_running"] > 0, 10, "a start")
        start = time.monotonic()
        with undisturbed_speed(server):
            wait_for(lambda: server.num_files() <= before, 60, "dropped connections")
        assert time.monotonic() - start > CLIENT_TIMEOUT - 1
        for connection in connections:
            connection.close()


@contextmanager
def undisturbed_speed(server: Server) -> Iterator[None]:
    """A request of another client ends in good time."""

    async def answer() -> None:
        async with client_of(server) as client:
            assert (await client.ask(completion(7, max_tokens=10))).num_tokens == 10

    start = time.monotonic()
    asyncio.run(answer())
    assert time.monotonic() - start < 10
    yield


HALVES = {
    "nothing": b"",
    "half a header": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-ty",
    "no body": http(completion(1)).partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "half a body": http(completion(1))[:-20],
    "half a chunk": (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b'transfer-encoding: chunked\r\n\r\n20\r\n{"prompt": '
    ),
}


def test_half_a_request_is_not_waited_for_for_ever(server: Server) -> None:
    with undisturbed(server):
        before = server.num_files()
        connections = {name: connect(server) for name in HALVES}
        for name, connection in connections.items():
            connection.sendall(HALVES[name])
        for name, connection in connections.items():
            start = time.monotonic()
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            assert time.monotonic() - start < CLIENT_TIMEOUT + 5, name
            if "body" in name or "chunk" in name:
                assert answer.startswith(b"HTTP/1.1 408 "), (name, answer)
                error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
                assert error["message"]
                assert error["code"] is not None
            connection.close()
        wait_for(lambda: server.num_files() <= before, 5, "closed connections")


def test_a_request_byte_by_byte_has_its_time_and_no_more(server: Server) -> None:
    def trickle(seconds_per_piece: float, size: int) -> bytes:
        data = http(completion(1, stream=False, max_tokens=4))
        with connect(server) as connection:
            try:
                for start in range(0, len(data), size):
                    connection.sendall(data[start : start + size])
                    time.sleep(seconds_per_piece)
                return connection.recv(65536)
            except (BrokenPipeError, ConnectionResetError):
                return b""

    with undisturbed(server):
        assert trickle(0.001, 1).startswith(b"HTTP/1.1 200 ")
        start = time.monotonic()
        assert not trickle(0.2, 8).startswith(b"HTTP/1.1 200 ")  # it would take eight seconds
        assert time.monotonic() - start < CLIENT_TIMEOUT + 7


def test_memory_and_files_stay_flat(server: Server, num_rounds: int) -> None:
    """All of it at once, again and again."""

    async def touch_all_of_the_cache() -> None:
        async with client_of(server) as client:
            prompts = [[(index * 31 + place) % 4000 for place in range(1900)] for index in range(5)]
            await client.ask_all([completion(0, prompt=prompt, max_tokens=2) for prompt in prompts])

    async def talk() -> None:
        async with client_of(server) as client:
            await client.ask_all([completion(index, max_tokens=16, n=2) for index in range(16)])

    def one_round() -> None:
        connections = [connect(server) for _ in range(24)]
        for index, connection in enumerate(connections):
            half = list(HALVES.values())[index % len(HALVES)]
            connection.sendall(half if index % 2 else http(completion(index, max_tokens=LONG, stream=index % 4 == 0)))
        asyncio.run(talk())
        for index, connection in enumerate(connections):
            (reset if index % 3 else socket.socket.close)(connection)
        server.check_clean(5)

    asyncio.run(touch_all_of_the_cache())
    for _ in range(4):  # until the compiled kernels that are kept are as many as they may be
        one_round()
    before, files = server.memory(), server.num_files()
    for _ in range(num_rounds):
        one_round()
    wait_for(lambda: server.num_files() <= files, 5, "closed files")
    for now, then in zip(server.memory(), before, strict=True):
        assert now < then + 10 + 0.2 * num_rounds
