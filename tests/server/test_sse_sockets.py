"""Clients that leave, over real sockets and the real HTTP server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from lightvllm.config import ServerConfig
from lightvllm.server.app import build_app
from tests.server.exchange import MODEL
from tests.server.fakes import FOREVER, FakeEngine, Pace


@asynccontextmanager
async def serving(engine: FakeEngine) -> AsyncIterator[int]:
    """The port of a server that is there while the context is open."""
    app = build_app(engine, ServerConfig(), model_names=[MODEL])  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    task = asyncio.ensure_future(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def until(engine: FakeEngine, num_running: int) -> float:
    """Seconds until so many requests run."""
    start = time.monotonic()
    async with asyncio.timeout(10):
        while len(engine.running) != num_running:
            await asyncio.sleep(0.005)
    return time.monotonic() - start


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
def test_a_client_that_leaves_frees_its_request_within_a_second(stream: bool, resets: bool) -> None:
    engine = FakeEngine([40, 41, FOREVER], pace=Pace(seconds_per_step=0.005))

    async def play() -> float:
        async with serving(engine) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"prompt": ["a", "b"], "max_tokens": 4000, "stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            await until(engine, 2)
            if stream:
                assert b"data: " in await reader.readuntil(b"\n\n") + await reader.readuntil(b"\n\n")
            if resets:
                writer.transport.abort()
            else:
                writer.close()
            return await until(engine, 0)

    assert asyncio.run(play()) < 1
    assert len(engine.aborted) == 2
